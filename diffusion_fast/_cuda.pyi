from typing import Any

import numpy as np

def probe() -> tuple[int, int, int, int, str]: ...
def architectures() -> list[int]: ...
def prepare(device: int) -> None: ...
def reverse_step(
    row: bytes,
    terms: int,
    dtype: int,
    tensors: tuple[int, ...],
    scale: float,
    n: int,
    dim: int,
    start: int,
    seed: int,
    step: int,
    seed_at: int,
    step_at: int,
    factor: int,
    threshold: int,
    device: int,
    stream: int,
) -> None: ...
def normal(
    out: int,
    n: int,
    dim: int,
    start: int,
    seed: int,
    step: int,
    purpose: int,
    substream: int,
    seed_at: int,
    step_at: int,
    device: int,
    stream: int,
) -> None: ...

class Program:
    def __init__(
        self,
        plan: bytes,
        precision: str,
        shared_bytes: int,
        capability: int,
        multiprocessors: int,
        tensor_cores: bool = True,
    ) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def image(self) -> np.ndarray[Any, np.dtype[np.uint32]]: ...
    def scratch_bytes(self, n: int) -> int: ...
    def prepare(self, device: int) -> None: ...
    def run(
        self,
        image: int,
        scratch: int,
        out: int,
        n: int,
        start: int,
        seed: int,
        stream: int,
        device: int,
        x_T: int = 0,
        noise: int = 0,
        trajectory: int = 0,
        labels: int = 0,
        label: int = 0,
        guidance: int = 0,
        context: int = 0,
        context_stride: int = 0,
        fixed_mask: int = 0,
        fixed: int = 0,
        fixed_stride: int = 0,
        fixed_clean: bool = False,
        device_seed: int = 0,
        max_blocks: int = 0,
    ) -> None: ...
