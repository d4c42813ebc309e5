"""That the tests of the emulated chains can fail: bugs planted in the sources, each seen by one of them.

All are in one build; the number in DF_MUTANT says which one is awake.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_build import Change, configure, emulated
from cuda_chains import assert_cpu_bits, labels_of, normals
from nets import random_plan, statistical_plan, with_rows
from test_cuda_mma import check_precision, constant_plan

SWITCH = "inline int& mutant() { static int awake = 0; return awake; }"
AWAKE = 'mutant() = std::atoi(std::getenv("DF_MUTANT"));'
SOURCES: tuple[Change, ...] = (
    ("cuda/chain_args.h", '#include "../noise.h"', '#include <cstdlib>\n#include "../noise.h"'),
    ("cuda/chain_args.h", "constexpr int64_t kAbsent", f"{SWITCH}\nconstexpr int64_t kAbsent"),
    ("cuda/program.cpp", ": limits_(limits) {", f": limits_(limits) {{ {AWAKE}"),
    (
        "cuda/row.cuh",
        '#include "../cpu/functions.h"',
        '#include "../cpu/functions.h"\n#include "chain_args.h"',
    ),
    ("cuda/mma_tiers.cuh", '#include "ptx.h"', '#include "chain_args.h"\n#include "ptx.h"'),
)
# what it breaks: file, the text as it is, the text with the bug where BUG is true
MUTANTS: dict[str, Change] = {
    # the general path
    "a chain in one piece": (
        "cuda/chain_general.cuh",
        "op.n_in - from > kChain ?",
        "!BUG && op.n_in - from > kChain ?",
    ),
    "samples of 32 bits": ("cuda/chain_general.cuh", "uint32_t(index >> 32)", "(BUG ? 0u : index >> 32)"),
    "no barrier behind an op": (
        "cuda/chain_general.cuh",
        "run_op(ops[i], b, table);\n            __syncthreads();",
        "run_op(ops[i], b, table);\n            if (!BUG) __syncthreads();",
    ),
    "no tail": ("cuda/chain_general.cuh", "a.n - first < S ?", "!BUG && a.n - first < S ?"),
    "both branches of the sample's class": (
        "cuda/chain_general.cuh",
        "if (branch) return p.n_classes - 1;",
        "if (branch && !BUG) return p.n_classes - 1;",
    ),
    "a step's noise for a fixed coordinate's": (
        "cuda/chain_general.cuh",
        "uint32_t(kPurposeForward) << 28, set)",
        "uint32_t(BUG ? kPurposeStep : kPurposeForward) << 28, set)",
    ),
    "no rescale": ("cuda/chain_general.cuh", "row.rescale != 0.0f", "!BUG && row.rescale != 0.0f"),
    # the row
    "a history that is not shifted": (
        "cuda/row.cuh",
        "element.h[1] = element.h[0];",
        "element.h[1] = BUG ? m : element.h[0];",
    ),
    "no clamp": ("cuda/row.cuh", "terms & kTermClip", "!BUG && terms & kTermClip"),
    # tensor cores
    "swapped fragments": (
        "cuda/mma_tiers.cuh",
        "out.a[2 * half] = ptx::pack<type>(v[0], v[1]);\n        out.a[2 * half + 1]",
        "out.a[2 * (half ^ BUG)] = ptx::pack<type>(v[0], v[1]);\n        out.a[2 * (half ^ BUG) + 1]",
    ),
    "two products of three": (
        "cuda/mma_tiers.cuh",
        "ptx::mma<type>(acc.low, in.low,",
        "if (!BUG) ptx::mma<type>(acc.low, in.low,",
    ),
    "weights in another order": ("cuda/mma_plan.cpp", "8 * b + 2 * t + i;", "8 * b + 2 * t + (BUG ^ i);"),
    "no wait for a row": (
        "cuda/chain_resident.cuh",
        "ptx::cp_async_wait<0>();\n            meet();",
        "if (!BUG) ptx::cp_async_wait<0>();\n            meet();",
    ),
    "no wait for the weights": (
        "cuda/chain_resident.cuh",
        "ptx::cp_async_wait<0>();\n    return r;",
        "if (!BUG) ptx::cp_async_wait<0>();\n    return r;",
    ),
    "the next row where this one lies": (
        "cuda/chain_resident.cuh",
        "return ring + i % 2 *",
        "return ring + !BUG * (i % 2) *",
    ),
    "the table of the row before": (
        "cuda/chain_resident.cuh",
        "n_rows ? i + 2 : n_rows - 1",
        "n_rows ? i + 2 - BUG : n_rows - 1",
    ),
    "halves of a quad not swapped": (
        "cuda/state_lane.cuh",
        "odd ? low0 : v[2]",
        "odd != BUG ? low0 : v[2]",
    ),
    "always the first pair": ("cuda/state_lane.cuh", "component < 2 ?", "BUG || component < 2 ?"),
    "a class for both rows of a lane": ("cuda/chain_mma.cuh", "of_class(m, 1))", "of_class(m, !BUG))"),
    "the null branch twice": (
        "cuda/chain_resident.cuh",
        "network(row.c_in, step_starts, branch, F)",
        "network(row.c_in, step_starts, branch | BUG, F)",
    ),
    "rows beyond the last": (
        "cuda/state_lane.cuh",
        "return sample(first, half) < a.n;",
        "return BUG || sample(first, half) < a.n;",
    ),
}
WIDE_MUTANTS: dict[str, Change] = {
    "no wait for a piece": (
        "cuda/chain_wide.cuh",
        "ptx::cp_async_wait<kPieceStages - 2>();",
        "if (!BUG) ptx::cp_async_wait<kPieceStages - 2>();",
    ),
    "a piece where one is read": (
        "cuda/chain_wide.cuh",
        "load(slot ? slot - 1 : kPieceStages - 1);",
        "load(BUG ? slot : slot ? slot - 1 : kPieceStages - 1);",
    ),
    "a stream that ends a piece early": (
        "cuda/chain_wide.cuh",
        "next = next + 1 == pieces ?",
        "next = next + 1 + BUG == pieces ?",
    ),
    "no barrier before a layer": (
        "cuda/chain_wide.cuh",
        "__syncthreads();  // all that the layer reads is there",
        "if (!BUG) __syncthreads();",
    ),
    "the next row where this one is read": (
        "cuda/chain_wide.cuh",
        "return at<StepRow>(memory.rows)[i % 2];",
        "return at<StepRow>(memory.rows)[BUG ? 0 : i % 2];",
    ),
    "operands beyond a layer's inputs": (
        "cuda/chain_wide.cuh",
        "if (i && k + i >= in_tiles) break;",
        "if (!BUG && i && k + i >= in_tiles) break;",
    ),
    "no second half of the last operand": (
        "cuda/chain_wide.cuh",
        "Tier::store(in, 1, operand(0, c / 2, m), 1);",
        "if (!BUG) Tier::store(in, 1, operand(0, c / 2, m), 1);",
    ),
    "operands of another stride": (
        "cuda/chain_wide.cuh",
        "(k * tiles + m) * 32 * kLaneWords",
        "(k * (tiles - BUG) + m) * 32 * kLaneWords",
    ),
    "a warp's columns of another group": (
        "cuda/wide_pack.cpp",
        "const int group = warp % l.groups, last",
        "const int group = (warp + BUG) % l.groups, last",
    ),
    "low parts where the high ones lie": (
        "cuda/mma_tiers.cuh",
        "reinterpret_cast<uint2*>(at + 32)[half]",
        "reinterpret_cast<uint2*>(at + (BUG ? 0 : 32))[half]",
    ),
    "three columns for four": (
        "cuda/chain_wide.cuh",
        "j < 3 || columns == 4",
        "j < 3 || (!BUG && columns == 4)",
    ),
    "the step's own table for all steps": (
        "cuda/wide_pack.cpp",
        "op.step_table < 0 ? 0 : width",
        "BUG || op.step_table < 0 ? 0 : width",
    ),
}
WGMMA_MUTANTS: dict[str, Change] = {
    "weights that no product may see yet": (
        "cuda/chain_wgmma.cuh",
        "ptx::fence_async_proxy();",
        "if (!BUG) ptx::fence_async_proxy();",
    ),
    "weights before all are there": (
        "cuda/chain_wgmma.cuh",
        "__syncthreads();  // all weights",
        "if (!BUG) __syncthreads();  // all weights",
    ),
    "no fence before products": (
        "cuda/chain_wgmma.cuh",
        "ptx::wgmma_fence();",
        "if (!BUG) ptx::wgmma_fence();",
    ),
    "no wait for products": (
        "cuda/chain_wgmma.cuh",
        "ptx::wgmma_wait<0>();",
        "if (!BUG) ptx::wgmma_wait<0>();",
    ),
    "eights of outputs of another stride": (
        "cuda/chain_wgmma.cuh",
        "* kEight, kEight, 128)",
        "* kEight, kEight, BUG ? 256 : 128)",
    ),
    "eights of inputs of another stride": (
        "cuda/chain_wgmma.cuh",
        "2 * (part * depth + k) * kEight",
        "2 * (part * depth + k) * (kEight - 128 * BUG)",
    ),
    "low parts where the high ones of a product lie": (
        "cuda/chain_wgmma.cuh",
        "value(0), matrix(k, 1)",
        "value(0), matrix(k, !BUG)",
    ),
    "the first chunk's weights for all": (
        "cuda/chain_wgmma.cuh",
        "multiply<N, H, K>(sums, in, w + column * 16);",
        "multiply<N, H, K>(sums, in, w + !BUG * column * 16);",
    ),
    "swapped fragments of a warpgroup": (
        "cuda/chain_wgmma.cuh",
        "Tier::pack(v, eight % 2, out",
        "Tier::pack(v, (eight + BUG) % 2, out",
    ),
    "all warps have the first's samples": (
        "cuda/chain_wgmma.cuh",
        "% kWarpgroup / 32 * 16",
        "% kWarpgroup / 32 * !BUG * 16",
    ),
    "no last tile": (
        "cuda/chain_wgmma.cuh",
        "tile * kWgmmaSamples < a.n",
        "(tile + BUG) * kWgmmaSamples < a.n",
    ),
    "the null branch where the history lies": (
        "cuda/chain_resident.cuh",
        "(has_history ? 12 * M * D : 0)",
        "(!BUG && has_history ? 12 * M * D : 0)",
    ),
    "a row before its warpgroup is there": (
        "cuda/chain_resident.cuh",
        "meet();  // row i is there",
        "if (!BUG || i == 0) meet();  // row i is there",
    ),
    "outputs where inputs lie": (
        "cuda/wgmma_pack.cpp",
        "s.precision, part, j, i) |",
        "s.precision, part, BUG ? j ^ 1 : j, i) |",
    ),
}


ALL = MUTANTS | WIDE_MUTANTS | WGMMA_MUTANTS


def planted() -> list[Change]:
    return [
        (file, right, wrong.replace("BUG", f"(mutant() == {number})"))
        for number, (file, right, wrong) in enumerate(ALL.values(), 1)
    ]


@pytest.fixture(scope="module")
def module() -> Any:
    return emulated(changes=(*SOURCES, *planted()))


def every_test(module: Any) -> None:
    n = 70
    configure(module.__file__, schedule=0)
    general = {
        "wide": random_plan(3, 4, (130, 9), n_rows=3),
        "guided": random_plan(9, 2, (40, 9), n_classes=5, branches=2),
        "rescale": statistical_plan(1, 4),
    }
    for plan in general.values():
        assert_cpu_bits(plan, n, start=2**32 - 30, module=module, **labels_of(plan, n))
    dim = 5
    plan = constant_plan(dim, dim)
    plan = with_rows(plan, signal=normals(5, len(plan.rows)), noise=normals(6, len(plan.rows)))
    fixed = {"mask": np.arange(dim, dtype=np.uint8) % 2, "fixed": normals(7, n, dim)}
    for tensor_cores in (False, True):
        assert_cpu_bits(plan, n, trajectory=True, tensor_cores=tensor_cores, module=module, **fixed)
    for dim in (2, 5):
        plan = constant_plan(dim, dim, n_classes=4)
        assert_cpu_bits(plan, n, tensor_cores=True, module=module, **labels_of(plan, n))
    for precision in ("float32", "bfloat16"):
        check_precision(
            general["guided"], n, precision, on={"module": module}, **labels_of(general["guided"], n)
        )


def wide_test(module: Any) -> None:
    plan, n = random_plan(21, 21, (140, 264), n_classes=5, branches=2, n_rows=3), 33
    configure(module.__file__, schedule=1)  # in the usual order warps keep step, as if barriers were there
    for precision in ("float32", "bfloat16"):
        check_precision(plan, n, precision, path="wide", on={"module": module}, **labels_of(plan, n))


def wgmma_test(module: Any) -> None:
    plan, n = random_plan(6, 6, (100, 66), n_classes=5, branches=2, n_rows=3), 67
    on = {"module": module, "capability": 90, "multiprocessors": 1}  # two warpgroups a block
    # any order; then a warpgroup as far as it comes before the next begins, as if it had no barrier
    for precision, schedule in (("float32", 1), ("bfloat16", -1)):
        configure(module.__file__, schedule=schedule)
        check_precision(plan, n, precision, path="wgmma", on=on, **labels_of(plan, n))


def test_none_awake(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_MUTANT", "0")
    every_test(module)
    wide_test(module)
    wgmma_test(module)


@pytest.mark.parametrize("name", ALL)
def test_each_is_caught(name: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_MUTANT", str(1 + list(ALL).index(name)))
    with pytest.raises((AssertionError, RuntimeError)):
        tests = ((WIDE_MUTANTS, wide_test), (WGMMA_MUTANTS, wgmma_test), (MUTANTS, every_test))
        next(test for mutants, test in tests if name in mutants)(module)
