"""The one question that a sampler asks of a tensor: yes only where the kernel can take it as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_fast import _cpu


class Subclass(Tensor):
    pass


def test_a_plain_tensor() -> None:
    assert _cpu.finite_floats(torch.ones(3, 4), 3, 4)
    assert _cpu.finite_floats(torch.empty(0, 4), 0, 4)
    assert _cpu.finite_floats(torch.ones(6, 4)[2:5], 3, 4)


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(4, 3),
        torch.ones(3, 4, 1),
        torch.ones(12),
        torch.ones(3, 4, dtype=torch.float64),
        torch.ones(3, 4, dtype=torch.bfloat16),
        torch.ones(4, 3).T,
        torch.ones(3, 8)[:, ::2],
        torch.ones(3, 4, requires_grad=True),
        torch.zeros(3, 4, dtype=torch.complex64).conj().imag,
        torch.ones(3, 4, device="meta"),
        torch.ones(3, 4).to_sparse(),
        torch.ones(3, 4).as_subclass(Subclass),
        torch.full((3, 4), float("nan")),
        torch.tensor([[1.0] * 4, [1.0] * 4, [1.0, 1.0, 1.0, -float("inf")]]),
        np.ones((3, 4), np.float32),
        None,
        3,
    ],
    ids=lambda given: type(given).__name__,
)
def test_anything_else(given: object) -> None:
    assert not _cpu.finite_floats(given, 3, 4)


def test_a_size_that_is_no_integer() -> None:
    with pytest.raises(TypeError):
        _cpu.finite_floats(torch.ones(3, 4), 3, "four")  # type: ignore[arg-type]


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "DIFFUSION_FAST_TEST_OF_ENVIRONMENT"
    assert _cpu.environment(name) is None
    for value in ("", "2", "zwölf"):
        monkeypatch.setenv(name, value)
        assert _cpu.environment(name) == value
    monkeypatch.delenv(name)
    assert _cpu.environment(name) is None
    with pytest.raises(TypeError, match="environment"):
        _cpu.environment()  # type: ignore[call-arg]
