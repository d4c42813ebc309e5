from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

class Program:
    def __init__(self, plan: bytes, isa: str = "", low_rows: int = 0, emulated: bool = False) -> None: ...
    @property
    def has_pairs(self) -> bool: ...
    @property
    def isa(self) -> str: ...
    @property
    def work_per_step(self) -> int: ...
    def run(
        self,
        out: int,
        n: int,
        start: int,
        seed: int,
        threads: int,
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
        progress: Callable[[int], None] | None = None,
        tables: Tables | None = None,
    ) -> tuple[int, list[int]]: ...
    def network(
        self, rows: npt.NDArray[np.int32], x: int, out: int, k: int, label: int, threads: int
    ) -> None: ...

class Tables:
    block: int
    def __init__(
        self,
        dim: int,
        n_classes: int,
        of_row: npt.NDArray[np.int32],
        scale: npt.NDArray[np.float32],
        shift: npt.NDArray[np.float32],
        cells: npt.NDArray[np.int32],
        values: npt.NDArray[np.float32],
    ) -> None: ...
    def lookup(
        self, grids: npt.NDArray[np.int32], x: int, out: int, k: int, label: int = 0, isa: str = ""
    ) -> None: ...

FIT_MARGIN: int
LOOKUP_WORK: tuple[int, int]

def fit(cells: npt.NDArray[np.int32], nodes: int, values: int, count: int) -> None: ...

class Trainer:
    def __init__(
        self,
        chains: list[tuple[list[tuple[int, int, bool, int, float]], int, bool]],
        decoupled: bool,
        weight_decay: float,
        max_norm: float,
        average: float,
        isa: str = "",
    ) -> None: ...
    def load(self, parameters: list[int]) -> None: ...
    def store(self, parameters: list[int], average: bool) -> None: ...
    def run(
        self,
        x: int,
        target: int,
        indices: list[int],
        rows: int,
        batch: int,
        rates: int,
        losses: int,
        threads: int,
        progress: Callable[[int], None] | None = None,
    ) -> int: ...

def validate_plan(plan: bytes) -> None: ...
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
    threads: int,
) -> None: ...
def small_step(row: bytes, terms: int, *arguments: Any) -> Any: ...
def use_torch(tensor_type: type, empty_like: Callable[[Tensor], Tensor], exchange: object) -> None: ...
def fingerprint(
    stores: list[dict[str, Tensor | None]],
    children: list[dict[Any, Any]],
    attributes: list[tuple[dict[str, Any], int, tuple[str, ...]]],
) -> int | None: ...
def alike(a: object, b: object) -> bool: ...
def all_finite(address: int, count: int) -> bool: ...
def finite_floats(tensor: object, *shape: int) -> bool: ...
def environment(name: str) -> str | None: ...
def dict_output(kind: type, names: tuple[str, ...], values: tuple[Tensor, ...]) -> Any: ...
def kept_bytes() -> int: ...

class Block:
    def __init__(self, size: int) -> None: ...
    def __buffer__(self, flags: int) -> memoryview: ...

def normal(
    out: int,
    n: int,
    dim: int,
    start: int,
    seed: int,
    step: int,
    purpose: int,
    substream: int,
    threads: int,
    isa: str = "",
) -> None: ...
def activate(
    code: int, param: float, x: npt.NDArray[np.float32], isa: str = ""
) -> npt.NDArray[np.float32]: ...
def philox(counter: tuple[int, int, int, int], key_lo: int, key_hi: int) -> list[int]: ...
def box_muller(a: int, b: int) -> tuple[float, float]: ...
def isa() -> str: ...
def has_bfloat16() -> bool: ...
def isas() -> list[str]: ...

without_cuda: str  # why the build left CUDA out; "" where it did not

def fma_peak(isa: str = "", threads: int = 1, seconds: float = 0.5, pairs: bool = False) -> float: ...
def schedule_betas(name: str, n_steps: int, params: dict[str, float]) -> npt.NDArray[np.float64]: ...
def alphas_cumprod(betas: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...
def log_snr(alphas_cumprod: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...
def zero_terminal_snr(betas: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...
def spaced_timesteps(name: str, n_train: int, steps: int) -> npt.NDArray[np.int64]: ...
