"""Runs of sample_to in forks of one process, so that a hundred of them cost one import: killed, as ranks,
as ranks that fail, and interrupted.

python run_in_forks.py kill|columns|ranks|faults|interrupts FOLDER prints one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import diffusion_fast as df
from diffusion_fast.long_runs import distributed, keeper

N, CHUNK, KILLS = 30_000, 60, 20


def make_sampler() -> df.Sampler:
    torch.manual_seed(0)
    model = df.models.MLPDenoiser(2, (64, 64), "relu", n_steps=100).eval()
    return df.Sampler(model, df.NoiseSchedule.cosine(100), backend="native")


def fork(work: Callable[[], Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(str(error) or repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def exit_codes(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill(folder: Path) -> dict[str, Any]:
    """Runs that are killed at a random moment, each of which then goes on to its end."""
    sampler, rng, found = make_sampler(), random.Random(0), []
    options: dict[str, Any] = {"chunk_size": CHUNK, "threads": 1}
    n, path, manifest = 100 * CHUNK, folder / "x.npy", folder / "x.npy.manifest.json"
    began = time.perf_counter()
    df.sample_to(folder / "whole.npy", sampler, n, **options)
    seconds = time.perf_counter() - began
    while len(found) < KILLS:
        pid = fork(lambda: df.sample_to(path, sampler, n, **options))
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if exit_codes([pid]) == [-signal.SIGKILL] and not path.exists():
            left = df.verify(path) if manifest.exists() else None  # what it claims is there
            drawn = df.sample_to(path, sampler, n, resume=True, **options).drawn
            done, faults = (0, ()) if left is None else (left.done, left.faults)
            found.append({"done": done, "faults": faults, "drawn": drawn, "sha256": sha256(path)})
        path.unlink()
        manifest.unlink()
    return {"kills": found, "whole": sha256(folder / "whole.npy"), "files": names(folder)}


def columns(folder: Path) -> dict[str, Any]:
    """Runs of one .csv file, each killed when it is written: what each leaves, and the run that goes on."""
    sampler, path, unfinished, left = make_sampler(), folder / "x.csv", folder / ".x.csv.columns.csv", []
    n = 10 * CHUNK
    df.sample_to(folder / "whole.csv", sampler, n)

    def run() -> None:
        keeper.sync_file = lambda *given: time.sleep(60)
        df.sample_to(path, sampler, n, chunk_size=CHUNK, resume=True)

    for _ in range(3):
        unfinished.unlink(missing_ok=True)  # by which the next is known to have begun it
        pid = fork(run)
        while not unfinished.exists():
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        exit_codes([pid])
        (folder / ".0123456789ab.x.csv.manifest.json").touch()  # as where a save is killed
        left.append(names(folder))
    df.sample_to(path, sampler, n, resume=True)
    return {"left": left, "same": sha256(path) == sha256(folder / "whole.csv"), "files": names(folder)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rank(sampler: df.Sampler, path: Path, port: int, rank: int, world: int, **options: Any) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    devices = [sampler] * (1 + world % 2)  # ranks with one thread that draws, and with two
    df.sample_to(path, devices, N, chunk_size=CHUNK, threads=1, **options)
    assert path.exists()  # every rank returns when the output is complete


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextmanager
def slow_samplers() -> Iterator[None]:
    """In processes that are started here a call takes a while: none is at its end before it is killed."""
    sample = df.Sampler.sample

    def slow(*given: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return sample(*given, **options)

    df.Sampler.sample = slow  # type: ignore[method-assign]
    try:
        yield
    finally:
        df.Sampler.sample = sample  # type: ignore[method-assign]


def ranks(folder: Path) -> dict[str, Any]:
    """World sizes 1 to 4; a run of two ranks that is killed and goes on with three."""
    sampler = make_sampler()
    result: dict[str, Any] = {"sha256": {}}

    def start(path: Path, world: int, **options: Any) -> list[int]:
        port = free_port()
        return [fork(lambda i=i: rank(sampler, path, port, i, world, **options)) for i in range(world)]

    for world in (1, 2, 3, 4):
        path = folder / f"{world}.npy"
        codes = exit_codes(start(path, world))
        result["sha256"][world] = sha256(path) if not any(codes) else codes
    path = folder / "killed.npy"
    with slow_samplers():
        pids = start(path, 2)
    while not (folder / "killed.npy.manifest.json").exists() or df.verify(path).done < 20:
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    result["killed"] = exit_codes(pids)
    result["before"] = df.verify(path).done
    result["resumed"] = exit_codes(start(path, 3, resume=True))
    result["sha256"]["killed"] = sha256(path)
    return result | {"files": names(folder)}


SILENT, START = 0.5, 1.0  # seconds, in place of half a minute and five


def fail(how: str) -> None:
    """What a rank does that does not come to its end."""

    def stop(*given: Any, **options: Any) -> Any:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device", "x.npy.partial")

    if how != "good":
        df.Sampler.sample = stop  # type: ignore[method-assign]


def faults(folder: Path) -> dict[str, Any]:
    """Two ranks, one of which is killed, fails, or never comes: exit code, line and seconds of the other."""
    distributed.SIGN_SECONDS, distributed.SILENT_SECONDS, distributed.START_SECONDS = 0.1, SILENT, START
    sampler, result = make_sampler(), {}

    def run(name: str, hows: dict[int, str], sent: int | None = None) -> None:
        port, pids = free_port(), {}
        for i, how in hows.items():

            def work(i: int = i, how: str = how) -> None:
                error = os.open(folder / f"{name}-{i}", os.O_CREAT | os.O_WRONLY)
                os.dup2(error, 2)
                fail(how)
                rank(sampler, folder / f"{name}.npy", port, i, 2)

            pids[i] = fork(work)
        if sent is not None:
            time.sleep(START / 3)
            os.kill(pids[0], sent)
        began = time.perf_counter()
        codes = exit_codes(list(pids.values()))
        lines = [(folder / f"{name}-{i}").read_text().splitlines()[-1:] for i in hows]
        result[name] = {"codes": codes, "lines": lines, "seconds": time.perf_counter() - began}

    run("rank 1 killed", {0: "good", 1: "killed"})
    run("rank 0 killed", {0: "killed", 1: "good"})
    run("rank 1 fails", {0: "good", 1: "fails"})
    run("rank 0 fails", {0: "fails", 1: "good"})
    run("rank 1 never comes", {0: "good"})
    run("rank 0 never comes", {1: "good"})
    run("interrupted before rank 1 comes", {0: "good"}, signal.SIGINT)
    again = folder / "rank 1 killed.npy"
    result["drawn again"] = df.sample_to(again, sampler, N, resume=True).drawn
    df.sample_to(folder / "whole.npy", sampler, N)
    return result | {"same": sha256(again) == sha256(folder / "whole.npy")}


def interrupts(folder: Path) -> dict[str, float]:
    """Seconds from SIGINT to the end of a run of 64 columns, the best of three, for each form of output."""
    model = df.models.MLPDenoiser(64, (8,), "relu", n_steps=10).eval()
    sampler = df.Sampler(model, df.NoiseSchedule.cosine(10), backend="native")

    def latency(path: str) -> float:
        manifest = Path(f"{path.rstrip('/')}.manifest.json")
        pid = fork(lambda: df.sample_to(path, sampler, 4_000_000, threads=1, overwrite=True))
        while not manifest.exists() or '"0": ' not in manifest.read_text():
            time.sleep(0.01)
        time.sleep(0.3)  # text is behind the drawing by now
        began = time.perf_counter()
        os.kill(pid, signal.SIGINT)
        code = exit_codes([pid])
        return time.perf_counter() - began if code == [1] else -1.0

    found = {}
    for name in ("x.npy", "x.csv", "x.npz", "x.parquet", "rows/"):
        seconds = [latency(f"{folder}/{name}")]
        while len(seconds) < 3 and not 0 < min(seconds) < 0.5:
            seconds.append(latency(f"{folder}/{name}"))
        found[name] = min(seconds)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    what = {"kill": kill, "columns": columns, "ranks": ranks, "faults": faults, "interrupts": interrupts}[
        sys.argv[1]
    ]
    print(json.dumps(what(Path(sys.argv[2]))))
