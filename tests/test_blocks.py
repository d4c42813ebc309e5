"""Memory of large results goes round: given back when the last tensor on it is gone, and not before."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch

import diffusion_fast as df
from diffusion_fast import _cpu, _tensors

MEGABYTE = 1 << 20
ROW = df.solvers.ddpm(df.NoiseSchedule.linear(10))[4]


def new(megabytes: int) -> torch.Tensor:
    return _tensors.empty_like(torch.empty(megabytes * MEGABYTE // 4))


@pytest.fixture(autouse=True)
def no_blocks_from_before() -> None:
    """Nine blocks of other sizes than the tests' push out what was kept."""
    held = [_cpu.Block(2 * MEGABYTE + i) for i in range(9)]
    del held


def test_a_result_takes_the_memory_of_the_one_before() -> None:
    first = new(6)
    address = first.data_ptr()
    second = new(6)
    assert second.data_ptr() != address
    del first
    assert new(6).data_ptr() == address


def test_other_sizes_stay_apart() -> None:
    first = new(6)
    address = first.data_ptr()
    del first
    assert new(8).data_ptr() != address
    assert new(6).data_ptr() == address


def test_a_view_keeps_the_memory() -> None:
    first = new(6)
    view, array = first[100:], first.numpy()
    address = first.data_ptr()
    del first
    assert new(6).data_ptr() != address
    del view
    assert new(6).data_ptr() != address
    del array
    assert new(6).data_ptr() == address


def test_like_any_other_tensor() -> None:
    x = torch.randn(2, 1024, 1024, dtype=torch.float32).transpose(1, 2)
    made = _tensors.empty_like(x)
    assert type(made) is torch.Tensor and made.shape == x.shape and made.dtype == x.dtype
    assert made.is_contiguous() and not made._is_view() and not made.requires_grad
    made.fill_(3)
    assert torch.equal(torch.clone(made), made) and made.share_memory_().is_shared()
    assert _tensors.empty_like(torch.empty(4 * MEGABYTE, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_is_kept_is_bounded() -> None:
    tensors = [new(150) for _ in range(9)]
    del tensors
    assert 0 < _cpu.kept_bytes() <= 1 << 30
    for size in range(4, 24):
        new(size)
    assert _cpu.kept_bytes() <= 8 * 24 * MEGABYTE
    new(1100)  # more than is kept at all
    assert _cpu.kept_bytes() <= 8 * 24 * MEGABYTE


def test_steps_in_a_loop_need_two_blocks() -> None:
    x, F = torch.randn(2, 1 << 21).unbind()
    x, addresses = x.clone(), set()
    for i in range(10):
        x = df.ops.reverse_step(x, F, ROW, seed=1, step=i)
        addresses.add(x.data_ptr())
    assert len(addresses) == 2


def test_many_threads() -> None:
    wrong: list[int] = []

    def work(value: int) -> None:
        for _ in range(50):
            a, b = new(5).fill_(value), new(5).fill_(-value)
            if not (a.eq(value).all() and b.eq(-value).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def child(kept: torch.Tensor) -> None:
    a = new(6).numpy()  # torch's own threads do not survive a fork
    a[:] = 1
    assert (a == 1).all() and (kept.numpy() == 7).all()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_after_a_fork() -> None:
    kept = new(6).fill_(7)
    new(6).fill_(3)  # one that is kept when the process forks
    process = multiprocessing.get_context("fork").Process(target=child, args=(kept,))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 0 and kept.eq(7).all()


def test_no_memory() -> None:
    for size in ((1 << 63) - 1, 1 << 62):
        with pytest.raises(MemoryError):
            _cpu.Block(size)
