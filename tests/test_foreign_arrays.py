"""ops.reverse_step on arrays of NumPy, JAX and any library that speaks DLPack: the same bits, no copy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusion_fast as df
from diffusion_fast import cuda, foreign_arrays
from diffusion_fast.ops import reverse_step

SCHEDULE = df.NoiseSchedule.linear(n_steps=6, beta_start=0.01, beta_end=0.3)
ROW = df.solvers.ddpm(SCHEDULE, variance="beta")[2]
PUSH = dataclasses.replace(df.solvers.dpmpp_2m(SCHEDULE, steps=4)[1], push=True)


class Stranger:
    """An array of a library that torch does not know: nothing but memory and the protocol."""

    def __init__(self, tensor: Tensor, device: int = 1) -> None:
        self.tensor, self.device = tensor, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


def values(n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(9, 5).to(dtype) for _ in range(n)]


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The addresses that each call hands to C++: out, x, model_output, uncond_output, scales, h1, ..."""
    calls: list[tuple[int, ...]] = []
    kernel = df.ops._cpu.reverse_step

    def watched(*args: Any) -> None:
        calls.append(args[3])
        kernel(*args)

    monkeypatch.setattr(df.ops._cpu, "reverse_step", watched)
    monkeypatch.setattr(df.ops._cpu, "small_step", lambda *args: None)  # which takes tensors, no addresses
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_numpy_in_numpy_out(dtype: torch.dtype, crossed: list[tuple[int, ...]]) -> None:
    x, F, u, z, v = values(5, dtype)
    scale = torch.linspace(0, 3, 9)
    want = reverse_step(x, F, ROW, noise=z, uncond_output=u, guidance_scale=scale, log_variance=v)
    a = [t.numpy().copy() for t in (x, F, u, scale, z, v)]
    got = reverse_step(
        a[0], a[1], ROW, noise=a[4], uncond_output=a[2], guidance_scale=a[3], log_variance=a[5]
    )
    assert isinstance(got, np.ndarray) and np.array_equal(got, want.numpy())
    out, x_at, F_at, u_at, scale_at, *_, v_at, z_at, _ = crossed[-1]
    assert [x_at, F_at, u_at, scale_at, z_at, v_at] == [address(array) for array in a]
    assert out == address(got)


def test_numpy_is_written_in_place(crossed: list[tuple[int, ...]]) -> None:
    x, F, h1, h2, m = values(5)
    ours = [t.numpy().copy() for t in (x, F, h1, h2, m)]
    reverse_step(x, F, PUSH, history=[h1, h2], prediction=m, out=x)
    got = reverse_step(ours[0], ours[1], PUSH, history=ours[2:4], prediction=ours[4], out=ours[0])
    assert got is ours[0]
    for array, tensor in zip(ours, (x, F, h1, h2, m), strict=True):
        assert np.array_equal(array, tensor.numpy())
    assert crossed[-1][:3] == (address(ours[0]), address(ours[0]), address(ours[1]))


def test_numpy_of_any_strides() -> None:
    x, F = values(2)
    want = reverse_step(x, F, ROW, seed=3).numpy()
    backwards = x.numpy()[::-1].copy()[::-1]
    for array in (np.asfortranarray(x.numpy()), backwards):
        assert np.array_equal(reverse_step(array, F.numpy(), ROW, seed=3), want)


def test_kinds_may_be_mixed() -> None:
    x, F = values(2)
    want = reverse_step(x, F, ROW, seed=3)
    assert np.array_equal(reverse_step(x.numpy(), F, ROW, seed=3), want.numpy())
    out = torch.empty(9, 5)
    assert reverse_step(x.numpy(), Stranger(F), ROW, seed=3, out=out) is out and torch.equal(out, want)


def test_a_stranger_without_a_namespace_gets_a_tensor(crossed: list[tuple[int, ...]]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, F = values(2, dtype)
        got = reverse_step(Stranger(x), Stranger(F), ROW, seed=3)
        assert isinstance(got, Tensor) and torch.equal(got, reverse_step(x, F, ROW, seed=3))
        assert crossed[-2][1:3] == (x.data_ptr(), F.data_ptr())


def test_a_stranger_with_a_namespace_gets_its_own_kind() -> None:
    class Named(Stranger):
        def __array_namespace__(self) -> Any:
            return type("namespace", (), {"from_dlpack": staticmethod(Named)})

    x, F = values(2)
    got = reverse_step(Named(x), F, ROW, seed=3)
    assert isinstance(got, Named) and torch.equal(got.tensor, reverse_step(x, F, ROW, seed=3))


@pytest.mark.parametrize(("device", "why"), [(10, ""), (2, r"\(CUDA cannot be used: no driver\)")])
def test_another_device_is_refused(device: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """kDLROCM; and CUDA where there is none."""
    monkeypatch.setattr(cuda, "problem", lambda: "no driver")
    x, F, out = values(3)
    before = out.clone()
    good = {
        "x": Stranger(x),
        "model_output": F,
        "noise": x,
        "uncond_output": F,
        "log_variance": F,
        "out": out,
    }
    for name, tensor in good.items():
        bad = good | {name: Stranger(getattr(tensor, "tensor", tensor), device=device)}
        with pytest.raises(
            ValueError, match=rf"^{name}: got .* on DLPack device \({device}, 0\); accepted: .*{why}"
        ):
            reverse_step(row=ROW, guidance_scale=2.0, **bad)
    with pytest.raises(ValueError, match=r"history\[1\]: got .* on DLPack device"):
        reverse_step(Stranger(x), F, PUSH, history=[out, Stranger(x, device=device)])
    assert torch.equal(out, before)


def test_read_only_memory() -> None:
    x, F, h1, h2 = (t.numpy().copy() for t in values(4))
    want = reverse_step(x, F, PUSH, history=[h1.copy(), h2.copy()])
    for array in (x, F, h1):
        array.flags.writeable = False
    for name, call in {
        "out": lambda: reverse_step(x, F, ROW, seed=0, out=x),
        "prediction": lambda: reverse_step(x, F, ROW, seed=0, prediction=h1),
        r"history\[0\]": lambda: reverse_step(x, F, PUSH, history=[h1, h2]),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: got .*read-only; accepted: a writable"):
            call()
    still = dataclasses.replace(PUSH, push=False)  # history that is only read
    assert np.array_equal(reverse_step(x, F, still, history=[h1, h2]), want)


def test_bad_arrays() -> None:
    x, F = (t.numpy() for t in values(2))
    for bad in (x.tolist(), 3, None, object()):
        with pytest.raises(TypeError, match=r"^x: got"):
            reverse_step(bad, F, ROW, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^x: got .*float64"):
        reverse_step(x.astype(np.float64), F, ROW, seed=0)
    with pytest.raises(ValueError, match=r"^model_output: got .*shape \(9, 4\)"):
        reverse_step(x, F[:, :4], ROW, seed=0)
    with pytest.raises(TypeError, match=r"^model_output: got"):
        reverse_step(x, F.tolist(), ROW, seed=0)
    with pytest.raises(ValueError, match=r"^out: got .*overlaps"):
        memory = np.zeros(60, np.float32)
        reverse_step(memory[:45].reshape(9, 5), F, ROW, seed=0, out=memory[5:50].reshape(9, 5))
    with pytest.raises(ValueError, match=r"^x: got .*cannot be exported"):
        reverse_step(x.astype(">f4"), F, ROW, seed=0)
    with pytest.raises(ValueError, match=r"^out: got .*negative"):  # torch.from_dlpack would end the process
        reverse_step(x, F, ROW, seed=0, out=np.zeros((9, 5), np.float32)[::-1])


def test_jax(crossed: list[tuple[int, ...]]) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed: pip install '.[bench]'")
    jnp = jax.numpy
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x, F = (jnp.asarray(t.numpy(), dtype) for t in values(2))
        got = reverse_step(x, F, ROW, seed=3)
        want = reverse_step(torch.from_dlpack(x), torch.from_dlpack(F), ROW, seed=3)
        assert isinstance(got, jax.Array) and got.dtype == dtype
        assert torch.equal(torch.from_dlpack(got), want)
        assert crossed[-2][:3] == tuple(a.unsafe_buffer_pointer() for a in (got, x, F))
    for name, call in {
        "out": lambda: reverse_step(x, F, ROW, seed=0, out=x),
        "prediction": lambda: reverse_step(x, F, ROW, seed=0, prediction=x),
        r"history\[0\]": lambda: reverse_step(x, F, PUSH, history=[x, F]),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: got .*read-only; accepted: a writable"):
            call()
    assert foreign_arrays._is_writable(np.zeros(1))
