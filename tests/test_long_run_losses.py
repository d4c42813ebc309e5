"""What a kill loses: chunks in flight, and chunks that the manifest does not have yet; less than 2 % of a run
that takes more than two seconds."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import diffusion_fast as df
from benchmarks import long_runs
from diffusion_fast.long_runs import keeper as keepers
from diffusion_fast.long_runs import run
from diffusion_fast.long_runs.distributed import Alone
from diffusion_fast.long_runs.keeper import Keeper
from diffusion_fast.long_runs.manifest import Manifest
from diffusion_fast.long_runs.run import _chunk_size
from diffusion_fast.long_runs.target import Target

IN_FLIGHT = 2  # chunks of a process: one is drawn, one is written
FMA_PER_SECOND = 20e9  # of one slow core


@functools.cache
def sampler(hidden: tuple[int, ...], steps: int) -> df.Sampler:
    torch.manual_seed(0)
    model = df.models.MLPDenoiser(2, hidden, "relu", n_steps=steps).eval()
    return df.Sampler(model, df.NoiseSchedule.cosine(steps))


def seconds_of(sampler: df.Sampler, n: int, threads: int) -> float:
    weights = sum(value.numel() for value in sampler.model.parameters())
    return n * weights * sampler.table.nfe / FMA_PER_SECOND / threads


@pytest.mark.parametrize(
    ("threads", "ranks", "devices"), [(1, 1, 1), (2, 1, 1), (8, 1, 1), (1, 64, 1), (2, 8, 8)]
)
@pytest.mark.parametrize(
    ("hidden", "steps"), [((64, 64), 20), ((128, 128), 200), ((512, 512), 1000), ((4,), 1)]
)
@pytest.mark.parametrize("n", [20_000, 1_000_000, 100_000_000])
def test_chunks_in_flight_are_few(
    hidden: tuple[int, ...], steps: int, n: int, threads: int, ranks: int, devices: int
) -> None:
    """And none is shorter than what pays for a call, nor larger than its memory."""
    made, drawing = sampler(hidden, steps), ranks * devices
    size = _chunk_size(None, n, made, threads, drawing)
    assert 1 <= size * 8 <= 1 << 22
    if seconds_of(made, n, threads * drawing) > 2 and n >= 20_000 * threads * drawing:
        assert ranks * (devices + 1) * size < 0.02 * n
    if n > 192 * threads:
        assert size >= 192 * threads or seconds_of(made, size, threads) >= 5e-3
    assert size % 192 == 0


@pytest.mark.parametrize("name", ["x.npy", "rows/"])
def test_ranks_have_smaller_chunks_and_the_same_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begun: list[Manifest] = []
    monkeypatch.setattr(run, "_run", lambda samplers, new, *more, **options: begun.append(new))
    for world in (1, 4, 64):
        monkeypatch.setattr(run, "launched", lambda world=world: (0, world))
        df.sample_to(f"{tmp_path}/{name}", sampler((64, 64), 20), 100_000_000, threads=1)
        assert world * IN_FLIGHT / begun[-1].n_chunks < 0.02
    shards = {made.rows_per_file for made in begun}
    assert name == "x.npy" or len(shards) == 1


def test_chunks_of_a_module_that_torch_runs_are_batches() -> None:
    """However slow one sample is: weights of a convolution work at every position."""

    class Convolution(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    schedule = df.NoiseSchedule.cosine(1000)
    made = df.Sampler(Convolution().eval(), schedule, shape=(3, 64, 64), backend="torch")
    assert _chunk_size(None, 10_000, made, 2, 1) == 64
    made = df.Sampler(
        Convolution().eval(), schedule, shape=(3, 64, 64), backend="torch", steps=2, solver="ddim"
    )
    assert _chunk_size(None, 10_000, made, 2, 1) == 85  # that fit into four megabytes


@pytest.mark.slow
def test_a_kill_in_the_middle_of_some_seconds(tmp_path: Path) -> None:
    assert 0 < long_runs.drawn_twice(sampler((64, 64), 20), tmp_path, 3_000_000) < 0.02


# (chunks, seconds of one, seconds of a save with so many): a run of 2 s, one of 100 s, one of hours
RUNS = [(330, 0.006, 0.0006), (1024, 0.1, 0.001), (20_000, 0.5, 0.02)]


@pytest.mark.parametrize(("chunks", "seconds", "save"), RUNS)
def test_what_the_manifest_lacks_and_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int, seconds: float, save: float
) -> None:
    """With a clock that goes on by the length of a chunk, and of a save, alone."""
    now, saved, saves, worst = 0.0, 0, 0, 0

    def save_manifest(made: Manifest, path: Path) -> None:
        nonlocal now, saved, saves
        now += save * len(made.done) / chunks
        saved, saves = len(made.done), saves + 1

    monkeypatch.setattr(keepers, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Manifest, "save", save_manifest)
    made = Manifest({"index range": [0, chunks]}, "npy", None, 1, 1)
    bar = SimpleNamespace(update=lambda count: None)
    target = Target("x.npy", tmp_path / "x.npy", "npy")
    keeper = Keeper(made, target, Alone(), bar)
    for chunk in range(chunks):
        now += seconds
        worst = max(worst, chunk - saved)
        keeper.record(chunk, "")
    assert (worst + IN_FLIGHT) / chunks < 0.02
    assert now - chunks * seconds < 0.05 * chunks * seconds
    assert saves <= keepers.SAVES


@pytest.mark.slow  # six processes that import torch
def test_the_benchmark_of_long_runs_writes_what_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_runs, "ROUNDS", 1)
    command = ["long_runs", "--samples", "40000", "--save", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", command)
    long_runs.main()
    content = json.loads((tmp_path / "found.json").read_text())
    checks = content["results"][0]["checks"]
    told = capsys.readouterr().out
    assert len(checks) == 4 and all(check["text"] in told for check in checks)
    extra, again, peak, ranks = (check["value"] for check in checks)
    assert extra > 0.5 and 0 <= again < 100 and 100 < peak < 600 and 0.3 < ranks < 2.5
