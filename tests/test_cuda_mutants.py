"""That the tests of the emulated step can fail: bugs planted in the sources, each seen by one of them.

All are in one build; the number in DF_MUTANT says which one is awake.
"""

from __future__ import annotations

from typing import Any

import pytest
import test_cuda_step as tests
import torch
from cuda_build import Change, emulated

GUARD = "const DeviceGuard guard(target.device);"
AWAKE = 'mutant() = std::atoi(std::getenv("DF_MUTANT"));'
SWITCH = "inline int& mutant() { static int awake = 0; return awake; }"
SOURCES: tuple[Change, ...] = (
    ("cuda/quads.cuh", "#include <stdexcept>", "#include <cstdlib>\n#include <stdexcept>"),
    ("cuda/quads.cuh", "constexpr int kThreads", f"{SWITCH}\nconstexpr int kThreads"),
    ("cuda/step.cu", GUARD, AWAKE),
    ("cuda/noise.cu", GUARD, AWAKE),
)
# what it breaks: file, the expression as it is, the one with the bug
MUTANTS: dict[str, Change] = {
    "a tail as long as a quad": ("cuda/quads.cuh", "left < 4 ? int(left) : 4", "4"),
    "no tail": ("cuda/quads.cuh", "uint64_t(n) * quads.value - first_quad", "0"),
    "a quotient 1 too small": ("cuda/quads.cuh", "rest >= value", "false"),
    "a pack within one sample": ("cuda/quads.cuh", "e.quad[k - 1] + 1 == quads.value", "false"),
    "always the first pair": ("cuda/quads.cuh", "component & 2", "0u"),
    "samples of 32 bits": ("cuda/quads.cuh", "uint32_t(index >> 32)", "0u"),
    "no substream": ("cuda/quads.cuh", "substream << 16", "0u"),
    "a clamp that swallows NaN": (
        "cuda/step.cuh",
        "min_keep_nan(vf(limit), vf(m))",
        "min_keep_nan(vf(m), vf(limit))",
    ),
    "one scale for a pack": ("cuda/step.cuh", "a.guidance_scales[to.at.sample[k]]", "a.guidance_scales[0]"),
    "a history that is not shifted": (
        "cuda/step.cuh",
        "to.store(a.history[2], raw_h[1])",
        "to.store(a.history[2], raw_h[0])",
    ),
    "the whole log variance": ("cuda/step.cuh", "exp(vf(0.5f * other[k]))", "exp(vf(other[k]))"),
    "a sum for the difference": ("cuda/step.cuh", "F[k] - other[k]", "F[k] + other[k]"),
    "the seed given, not the one in memory": (
        "cuda/step.cuh",
        "p.replay.seed ? *p.replay.seed : p.args.seed",
        "p.args.seed",
    ),
    "the step given": ("cuda/step.cuh", "draw.move_to(*p.replay.step)", "void()"),
    "parts added in another order": ("cuda/statistics.cuh", "uint32_t(half)", "uint32_t(8 / half)"),
    "the magnitude before": ("cuda/statistics.cuh", "left >= mine[digit]", "left > mine[digit]"),
    "magnitudes with their sign": ("cuda/statistics.cuh", "0x7fffffffu", "0xffffffffu"),
}


def planted(number: int, change: Change) -> Change:
    file, right, wrong = change
    return file, right, f"(mutant() == {number} ? {wrong} : {right})"


@pytest.fixture(scope="module")
def module() -> Any:
    changes = [planted(number, change) for number, change in enumerate(MUTANTS.values(), 1)]
    return emulated(changes=(*SOURCES, *changes))


def every_test(module: Any) -> None:
    float32, bfloat16 = torch.float32, torch.bfloat16
    for n, dim in tests.SIZES:
        for dtype in (float32, bfloat16):
            tests.test_every_size_as_on_the_cpu(module, n, dim, dtype)
    for dim in (2, 5):
        tests.test_normals_to_the_bit(module, dim, 2**48 - 9)
    tests.test_seed_and_step_from_memory(module)
    tests.test_extreme_values(module)
    tests.test_statistics_as_on_the_cpu(module, 37, float32)
    tests.test_every_combination_of_options(module, 3, float32)


def test_none_awake(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_MUTANT", "0")
    every_test(module)


@pytest.mark.parametrize("name", MUTANTS)
def test_each_is_caught(name: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_MUTANT", str(1 + list(MUTANTS).index(name)))
    with pytest.raises((AssertionError, RuntimeError)):
        every_test(module)
