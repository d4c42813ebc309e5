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
