"""What a call of ops.reverse_step costs beside its arithmetic: 64 elements, best of many.

python -m benchmarks.call_overhead
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

import torch

import diffusion_fast as df

NUMBER, REPEATS = 500, 60


def microseconds(call: Callable[[], object]) -> float:
    return 1e6 * min(timeit.repeat(call, number=NUMBER, repeat=REPEATS)) / NUMBER


def calls() -> dict[str, Callable[[], object]]:
    schedule = df.NoiseSchedule.linear(50)
    row, multistep = df.solvers.ddpm(schedule)[20], df.solvers.dpmpp_2m(schedule)[5]
    x, output, history = torch.randn(3, 16, 4).unbind()
    step = df.ops.reverse_step
    return {
        "in place": lambda: step(x, output, row, seed=1, step=3, out=x),
        "a new result": lambda: step(x, output, row, seed=1, step=3),
        "in place, with a history": lambda: step(x, output, multistep, history=(history,), out=x),
        "torch's x.add_(output)": lambda: x.add_(output),
    }


def main() -> None:
    for name, call in calls().items():
        print(f"{name:26}{microseconds(call):8.2f} us")


if __name__ == "__main__":
    main()
