"""Runs of sample_to in forks of one process, so that a hundred of them cost one import: killed, and as ranks.

python run_in_forks.py kill|ranks FOLDER prints one line of JSON.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import diffusion_fast as df

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
        print(repr(error), file=sys.stderr)
        os._exit(1)


def exit_codes(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill(folder: Path) -> dict[str, Any]:
    """A run that is killed at random moments and resumed; after each kill the manifest is true."""
    sampler, rng = make_sampler(), random.Random(0)
    options: dict[str, Any] = {"chunk_size": CHUNK, "threads": 1}
    began = time.perf_counter()
    df.sample_to(folder / "whole.npy", sampler, N, **options)
    seconds = time.perf_counter() - began
    path, faults, lost, done, kills = folder / "x.npy", [], [], 0, 0
    while kills < KILLS:
        if path.exists():  # complete: once more
            path.unlink()
            done = 0
        pid = fork(lambda: df.sample_to(path, sampler, N, resume=True, **options))
        time.sleep(rng.uniform(0, 2 * seconds / KILLS))
        os.kill(pid, signal.SIGKILL)
        kills += exit_codes([pid]) == [-signal.SIGKILL]
        if (folder / "x.npy.manifest.json").exists():
            found = df.verify(path)
            faults += found.faults if not path.exists() else ()
            lost.append(found.done < done)
            done = found.done
    df.sample_to(path, sampler, N, resume=True, **options)
    same = sha256(path) == sha256(folder / "whole.npy")
    return {"kills": kills, "faults": faults, "lost": any(lost), "same": same, "files": names(folder)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rank(sampler: df.Sampler, path: Path, port: int, rank: int, world: int, **options: Any) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    devices = [sampler] * (1 + world % 2)  # ranks with one thread that draws, and with two
    df.sample_to(path, devices, N, chunk_size=CHUNK, threads=1, **options)


def ranks(folder: Path) -> dict[str, Any]:
    """World sizes 1 to 4; a run of two ranks that is killed and goes on with three."""
    sampler = make_sampler()
    result: dict[str, Any] = {"sha256": {}}

    def start(path: Path, world: int, **options: Any) -> list[int]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        return [fork(lambda i=i: rank(sampler, path, port, i, world, **options)) for i in range(world)]

    for world in (1, 2, 3, 4):
        path = folder / f"{world}.npy"
        codes = exit_codes(start(path, world))
        result["sha256"][world] = sha256(path) if not any(codes) else codes
    path = folder / "killed.npy"
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"kill": kill, "ranks": ranks}[sys.argv[1]](Path(sys.argv[2]))))
