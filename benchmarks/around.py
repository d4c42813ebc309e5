"""What stands around the sampler: metrics on large sets, files, the import, training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import isolated
from diffusion_fast import NoiseSchedule, demo, metrics, train
from diffusion_fast._timing import Check, Contender, Result, compare, torch_threads
from diffusion_fast.datasets import helix_3d
from diffusion_fast.models import MLPDenoiser

SLICED_ROWS = 1_000_000
EMD_ROWS = 2000
IMPORT_SECONDS = 0.3
IMPORTS = 5
IMPORT_CODE = """
import time, torch
began = time.perf_counter()
import diffusion_fast as df
df.Sampler, df.NoiseSchedule, df.models.MLPDenoiser, df.train, df.save  # names are looked up at first use
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Metric:
    """One metric between two sets of normal rows: `measured` is called with both."""

    name: str
    title: str
    rows: int
    measured: Callable[[np.ndarray, np.ndarray], object]
    limit: float  # seconds
    names: tuple[str, ...] = ("ours",)

    def prepare(self, name: str) -> Callable[[], object]:
        return self.on(self.rows // 10)

    def on(self, rows: int) -> Callable[[], object]:
        rng = np.random.default_rng(0)
        x, y = (rng.standard_normal((rows, 3), dtype=np.float32) for _ in range(2))
        return partial(self.measured, x, y)

    def measure(self, quick: bool) -> Result:
        result = Result(self.name, self.title, "calls/s")
        compare(result, [Contender("ours", self.on(self.rows // (10 if quick else 1)))], 1, 3)
        if not quick:
            result.checks.append(Check("one call", result.rows[0].seconds, self.limit, " s", most=True))
        return result


@dataclass(frozen=True)
class LargeFile:
    """A .npy file of 1 GB, opened and checked by datasets.read in a process of its own."""

    name: str = "around-large-file"
    names: tuple[str, ...] = ("ours",)

    def prepare(self, name: str) -> Callable[[], object]:
        return partial(isolated.measure, "open", True)

    def measure(self, quick: bool) -> Result:
        found = isolated.measure("open", quick)
        title = f"datasets.read of {found['file_mb']:,.0f} MB of float32, every number checked"
        result = Result(self.name, f"{title}: {found['seconds']:.2f} s")
        result.checks.append(Check("memory that it takes", found["growth_mb"], 64, " MB", most=True))
        return result


@dataclass(frozen=True)
class Import:
    """Loading the package where torch is loaded already: the least of several new processes."""

    name: str = "around-import"
    names: tuple[str, ...] = ("ours",)

    def prepare(self, name: str) -> Callable[[], object]:
        return self.seconds

    def seconds(self) -> float:
        command = [sys.executable, "-c", IMPORT_CODE]
        run = subprocess.run(command, cwd=isolated.ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return float(run.stdout)

    def measure(self, quick: bool) -> Result:
        result = Result(self.name, "import diffusion_fast with its sampler, models and training, after torch")
        best = min(self.seconds() for _ in range(2 if quick else IMPORTS))
        result.checks.append(Check("import", best, IMPORT_SECONDS, " s", most=True))
        return result


@dataclass(frozen=True)
class Training:
    """df.train beside a loop by hand, on the data, network and recipe of the demo, on one thread."""

    name: str = "around-training"
    names: tuple[str, ...] = ("ours", "loop by hand")
    epochs: int = 30
    limit: float = 1.2

    def prepare(self, name: str) -> Callable[[], object]:
        return self.run(name, 2)

    def run(self, name: str, epochs: int) -> Callable[[], object]:
        data = torch.from_numpy(helix_3d().standardised_train).float()
        torch.manual_seed(0)
        model = MLPDenoiser(3, demo.HIDDEN, demo.ACTIVATION, demo.TIME_EMBEDDING, demo.N_STEPS)
        schedule = NoiseSchedule.cosine(demo.N_STEPS)
        return partial(self.ours if name == "ours" else loop_by_hand, model, schedule, data, epochs)

    @staticmethod
    def ours(model: MLPDenoiser, schedule: NoiseSchedule, data: Tensor, epochs: int) -> None:
        options: dict[str, Any] = {"lr": demo.LEARNING_RATE, "lr_decay": "cosine", "ema": demo.EMA}
        train(model, schedule, data, epochs=epochs, batch_size=demo.BATCH_SIZE, progress=False, **options)

    def measure(self, quick: bool) -> Result:
        epochs = 5 if quick else self.epochs
        steps = epochs * -(-len(helix_3d().train) // demo.BATCH_SIZE)
        result = Result(self.name, f"{steps} training steps of the demo, one thread", "steps/s")
        found = [Contender(name, self.run(name, epochs)) for name in self.names]
        with torch_threads(1):
            for contender in found:
                contender.run()
            compare(result, found, steps, 3 if quick else 7)
        slower = 1 / result.rows[1].ratio
        result.checks.append(Check("time over the loop's", slower, self.limit, most=True))
        return result


def loop_by_hand(model: MLPDenoiser, schedule: NoiseSchedule, data: Tensor, epochs: int) -> None:
    """What a torch user writes: Adam with a cosine rate, batches by index, averaged weights."""
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=demo.LEARNING_RATE, fused=True)
    steps = epochs * -(-len(data) // demo.BATCH_SIZE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    signal = schedule.alphas_cumprod.sqrt().float()
    noise = (1 - schedule.alphas_cumprod).sqrt().float()
    done = 0
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(data)).split(demo.BATCH_SIZE):
            x0 = data[index]
            t = torch.randint(len(signal), (len(x0),))
            eps = torch.randn_like(x0)
            x = signal[t, None] * x0 + noise[t, None] * eps
            loss = F.mse_loss(model(x, t), eps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            done += 1
            decay = min(demo.EMA, (1 + done) / (10 + done))
            with torch.no_grad():
                for mean, parameter in zip(average, parameters, strict=True):
                    mean.lerp_(parameter, 1 - decay)
    with torch.no_grad():
        for mean, parameter in zip(average, parameters, strict=True):
            parameter.copy_(mean)


CASES: list[Metric | LargeFile | Import | Training] = [
    Metric(
        "around-sliced-wasserstein",
        f"sliced_wasserstein of {SLICED_ROWS:,} x 3 against as many",
        SLICED_ROWS,
        metrics.sliced_wasserstein,
        5.0,
    ),
    # of twice as many rows, for the value of real data comes from two halves
    Metric("around-emd", f"emd at n = {EMD_ROWS}", 2 * EMD_ROWS, metrics.emd, 3.0),
    LargeFile(),
    Import(),
    Training(),
]
