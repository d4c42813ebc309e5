"""The short way of ops.reverse_step: small tensors in their usual form, looked at in C++.

It must do what the long way does, and leave to it whatever is not in its usual form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_ops import DTYPES, FULL, made_row
from torch import Tensor

from diffusion_fast import _cpu
from diffusion_fast.ops import reverse_step
from diffusion_fast.solvers.table import StepRow

EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)
needs_exchange = pytest.mark.skipif(EXCHANGE is None, reason="this torch has no __dlpack_c_exchange_api__")

FULL_ROW = made_row(eval=True, clip=0.8, **FULL)
PUSH_ROW = made_row(eval=True, push=True, **FULL)
QUIET_ROW = made_row(eval=True, p_x=0.9, p_F=-0.4, a=0.7, b=0.3)
NO_NETWORK = made_row(eval=False, a=1.0, s=0.5)


@pytest.fixture
def long_way() -> Iterator[Any]:
    """A switch that closes the short way: torch before 2.10."""

    def close() -> None:
        _cpu.use_torch(Tensor, torch.empty_like, None)

    yield close
    _cpu.use_torch(Tensor, torch.empty_like, EXCHANGE)


def short(row: StepRow, x: Any, F: Any = None, **given: Any) -> Tensor | None:
    names = (
        "uncond_output",
        "guidance_scale",
        "history",
        "log_variance",
        "noise",
        "prediction",
        "out",
        "seed",
    )
    defaults = {"history": (), "step": 0, "start": 0}
    rest = (given.get(name, defaults.get(name)) for name in (*names, "step", "start"))
    return _cpu.small_step(row.packed, row.terms, x, F, *rest)


def values(count: int, shape: tuple[int, ...] = (5, 3), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(count)
    return [torch.randn(shape).to(dtype) for _ in range(count)]


def calls(dtype: torch.dtype, shape: tuple[int, ...]) -> Iterator[tuple[StepRow, dict[str, Any]]]:
    """Every argument in its usual form; tensors new in each."""
    x, F, u, z, v, h1, h2, h3, m, out = values(10, shape, dtype)
    yield QUIET_ROW, {"x": x, "model_output": F}
    yield QUIET_ROW, {"x": x.clone(), "model_output": F, "out": None}
    yield NO_NETWORK, {"x": x, "model_output": None, "seed": 2**64 - 1, "step": 2**28 - 1}
    drawn = {"x": x, "model_output": F, "seed": 7, "step": 3, "start": 2**48 - shape[0]}
    yield FULL_ROW, drawn | {"history": (h1, h2, h3)}
    yield FULL_ROW, drawn | {"history": [h1, h2, h3], "uncond_output": u, "guidance_scale": 2.5}
    yield FULL_ROW, drawn | {"history": (h1, h2, h3), "log_variance": v, "prediction": m, "out": out}
    yield FULL_ROW, {"x": x, "model_output": F, "noise": z, "history": (h1, h2, h3), "log_variance": v}
    yield FULL_ROW, drawn | {"history": (x, h1, h1)}  # which is read alone
    yield PUSH_ROW, drawn | {"history": (h1, h2, h3)}


@needs_exchange
@pytest.mark.parametrize("shape", [(1,), (5,), (5, 3), (2, 3, 4, 4), (1, 1, 1), (3, 0), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways_give_the_same_bits(dtype: torch.dtype, shape: tuple[int, ...], long_way: Any) -> None:
    found: list[list[list[Tensor]]] = []
    for close in (lambda: None, long_way):
        close()
        found.append([])
        for row, given in calls(dtype, shape):
            x, F = given.pop("x"), given.pop("model_output")
            result = reverse_step(x, F, row, **given)
            written = [value for value in given.values() if isinstance(value, Tensor)]
            found[-1].append([result, *written, *given.get("history", ())])
            assert given.get("out") is None or result is given["out"]
    for ours, theirs in zip(*found, strict=True):
        assert all(
            torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(ours, theirs, strict=True)
        )


@needs_exchange
def test_the_usual_forms_go_the_short_way() -> None:
    for row, given in calls(torch.float32, (5, 3)):
        x, F = given.pop("x"), given.pop("model_output")
        assert short(row, x, F, **given) is not None


@needs_exchange
def test_in_place_goes_the_short_way() -> None:
    x, F, u = values(3)
    want = reverse_step(x, F, QUIET_ROW, uncond_output=u, guidance_scale=2.0)
    for position in range(3):
        x, F, u = values(3)
        out = (x, F, u)[position]
        got = short(QUIET_ROW, x, F, uncond_output=u, guidance_scale=2.0, out=out)
        assert got is out and torch.equal(got, want)


def unusual() -> Iterator[tuple[str, StepRow, dict[str, Any]]]:
    """Calls that are left to the long way, which serves or refuses them."""
    x, F, h1, h2, h3, other = values(6)
    whole = torch.randn(40)
    base = {"x": x, "F": F}
    yield "a subclass", QUIET_ROW, {"x": torch.nn.Parameter(x, requires_grad=False), "F": F}
    yield "an array", QUIET_ROW, {"x": x, "F": F.numpy()}
    yield "float64", QUIET_ROW, {"x": x.double(), "F": F.double()}
    yield "int32", QUIET_ROW, {"x": x.int(), "F": F.int()}
    yield "mixed dtypes", QUIET_ROW, {"x": x, "F": F.half()}
    yield "another shape", QUIET_ROW, {"x": x, "F": values(1, (3, 5))[0]}
    yield "another rank", QUIET_ROW, {"x": x, "F": values(1, (15,))[0]}
    yield "a scalar", QUIET_ROW, {"x": torch.tensor(1.0), "F": torch.tensor(1.0)}
    yield "strided", QUIET_ROW, {"x": torch.randn(3, 5).t(), "F": F}
    yield "every second element", QUIET_ROW, {"x": whole[::2][:15].view(15, 1), "F": values(1, (15, 1))[0]}
    yield "expanded", QUIET_ROW, {"x": x, "F": torch.randn(1, 3).expand(5, 3)}
    yield "a gradient", QUIET_ROW, {"x": x, "F": F.clone().requires_grad_()}
    yield "a negative view", QUIET_ROW, {"x": x, "F": torch._neg_view(F)}
    yield "sparse", QUIET_ROW, {"x": x.to_sparse(), "F": F}
    yield "meta", QUIET_ROW, {"x": x.to("meta"), "F": F.to("meta")}
    yield "large", QUIET_ROW, {"x": torch.zeros(1 << 16), "F": torch.zeros(1 << 16)}
    yield "no network output", QUIET_ROW, {"x": x, "F": None}
    yield "an output too many", NO_NETWORK, {"x": x, "F": F, "seed": 1}
    yield "an unconditional one too many", NO_NETWORK, {"x": x, "uncond_output": F, "seed": 1}
    yield "a scale alone", QUIET_ROW, base | {"guidance_scale": 2.0}
    yield "no scale", QUIET_ROW, base | {"uncond_output": other}
    yield "an infinite scale", QUIET_ROW, base | {"uncond_output": other, "guidance_scale": float("inf")}
    yield "a scale above float32", QUIET_ROW, base | {"uncond_output": other, "guidance_scale": 1e39}
    yield "an integer scale", QUIET_ROW, base | {"uncond_output": other, "guidance_scale": 2}
    yield "no history", PUSH_ROW, base | {"seed": 1}
    yield "less history", PUSH_ROW, base | {"seed": 1, "history": (h1, h2)}
    yield "more history", PUSH_ROW, base | {"seed": 1, "history": (h1, h2, h3, other)}
    yield "a generator of tensors", PUSH_ROW, base | {"seed": 1, "history": iter((h1, h2, h3))}
    yield "one tensor twice", PUSH_ROW, base | {"seed": 1, "history": (h1, h1, h3)}
    yield "the sample as history", PUSH_ROW, base | {"seed": 1, "history": (x, h2, h3)}
    yield "the output as history", PUSH_ROW, base | {"seed": 1, "history": (h1, h2, h3), "out": h2}
    yield "no noise", NO_NETWORK, {"x": x}
    yield "two noises", NO_NETWORK, {"x": x, "seed": 1, "noise": other}
    yield "a bool as seed", NO_NETWORK, {"x": x, "seed": True}
    yield "a negative seed", NO_NETWORK, {"x": x, "seed": -1}
    yield "a seed of 65 bits", NO_NETWORK, {"x": x, "seed": 1 << 64}
    yield "a float as step", NO_NETWORK, {"x": x, "seed": 1, "step": 1.0}
    yield "a step of 29 bits", NO_NETWORK, {"x": x, "seed": 1, "step": 1 << 28}
    yield "a start too high", NO_NETWORK, {"x": x, "seed": 1, "start": (1 << 48) - 4}
    yield "x as prediction", QUIET_ROW, base | {"prediction": x}
    yield "one tensor for both results", QUIET_ROW, base | {"prediction": other, "out": other}
    yield "a prediction of another shape", QUIET_ROW, base | {"prediction": torch.randn(3, 5)}
    yield "an output of another shape", QUIET_ROW, base | {"out": torch.randn(3, 5)}
    shifted = {"x": whole[:15].view(5, 3), "F": F, "out": whole[3:18].view(5, 3)}
    yield "a shifted output", QUIET_ROW, shifted
    yield "rescaled guidance", made_row(eval=True, rescale=0.5, p_x=1.0, p_F=1.0, a=1.0, b=1.0), base
    yield "a threshold", made_row(eval=True, quantile=0.9, clip=2.0, p_x=1.0, p_F=1.0, a=1.0, b=1.0), base


@pytest.mark.parametrize(("row", "given"), [pytest.param(*rest, id=name) for name, *rest in unusual()])
def test_the_unusual_is_left_untouched(row: StepRow, given: dict[str, Any]) -> None:
    tensors = [t for t in (*given.values(), *(given.get("history") or ())) if type(t) is Tensor]
    readable = [t for t in tensors if t.layout is torch.strided and t.device.type == "cpu"]
    before = [t.detach().clone() for t in readable]
    assert short(row, **given) is None
    assert all(torch.equal(t, was) for t, was in zip(readable, before, strict=True))


@needs_exchange
def test_batched_tensors_go_the_long_way() -> None:
    """vmap's tensors have the type of any other, and no memory of their own."""
    x, F = values(2)
    seen: list[Tensor | None] = []

    def inside(a: Tensor, b: Tensor) -> Tensor:
        seen.append(short(QUIET_ROW, a, b))
        return a

    torch.func.vmap(inside)(x, F)
    assert seen == [None]


def test_a_wrong_count_of_arguments() -> None:
    for given in ((), (b"", 0), (QUIET_ROW.packed, 0, None), ("", 0, *[None] * 12)):
        with pytest.raises(TypeError, match="small_step"):
            _cpu.small_step(*given)


def test_without_the_exchange_nothing_is_known(long_way: Any) -> None:
    x, F = values(2)
    long_way()
    assert short(QUIET_ROW, x, F) is None
    assert _cpu.fingerprint([{"x": x}], [], []) is None
    torch.testing.assert_close(reverse_step(x, F, QUIET_ROW), 0.97 * x - 0.12 * F)


def test_another_capsule_is_refused() -> None:
    with pytest.raises(ValueError, match="PyCapsule"):
        _cpu.use_torch(Tensor, torch.empty_like, torch.empty(1).__dlpack__())
    _cpu.use_torch(Tensor, torch.empty_like, EXCHANGE)


@pytest.mark.parametrize("close", [False, True], ids=["exchange", "attributes"])
def test_a_write_to_the_weights_is_noticed(close: bool, long_way: Any) -> None:
    from diffusion_fast.weights import Weights

    if close:
        long_way()
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2, bias=False)
    )
    weights = Weights(net)
    states = [weights.fingerprint()]
    assert weights.fingerprint() == states[0]
    with torch.no_grad():
        net[0].weight.add_(1)
    states.append(weights.fingerprint())
    net[2].weight.data = net[2].weight.data.clone()
    states.append(weights.fingerprint())
    net[1].running_mean = torch.zeros(4)
    states.append(weights.fingerprint())
    net[0] = torch.nn.Linear(3, 4)
    states.append(weights.fingerprint())
    for value in (-1, -2, -1.0, -2.0, None, (1, -1), (1, -2), "a"):
        net.attribute = value
        states.append(weights.fingerprint())
        assert weights.fingerprint() == states[-1]
    assert len(set(states)) == len(states)
