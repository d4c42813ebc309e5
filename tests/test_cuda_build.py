"""The CUDA extension where there is no device: what it says of the machine, and what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_fast as df
from diffusion_fast import cuda

try:
    from diffusion_fast import _cuda
except ImportError:
    _cuda = None

NAME = "diffusion_fast._cuda"
built = pytest.mark.skipif(_cuda is None, reason="built without nvcc: no diffusion_fast._cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes the package see another driver and other devices; without a driver's version, no extension."""

    def see(driver: int | None, devices: int = 0, code: int = 0, message: str = "") -> None:
        module = None
        if driver is not None:
            module = types.ModuleType(NAME)
            module.probe = lambda: (driver, 13000, devices, code, message)  # type: ignore[attr-defined]
            module.architectures = lambda: [80, 90]  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, NAME, module)
        cuda._state.cache_clear()

    yield see
    monkeypatch.undo()
    cuda._state.cache_clear()


# driver, devices, code, message; what the reason says, and what it says to do
MACHINES: dict[str, tuple[tuple[Any, ...], str]] = {
    "not built": ((None,), "not built: .*nvcc.*DIFFUSION_FAST_CUDA=1"),
    "no driver": ((0, 0, 35, "insufficient"), r"no NVIDIA driver: install one .*CUDA 13 \(580 or later\)"),
    "old driver": ((12040, 0, 35, "insufficient"), r"too old: .*12\.4,.*13\.0; install one .*580"),
    "old driver, unsaid": ((12080, 1), "too old"),
    "no device": ((13000, 0, 100, "no CUDA-capable device"), r"no CUDA device \(no CUDA-c.*VISIBLE_DEVICES"),
    "none counted": ((13010, 0), "no CUDA device: see nvidia-smi"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_each_reason_says_what_to_do(name: str, machine: Callable[..., None]) -> None:
    seen, reason = MACHINES[name]
    machine(*seen)
    assert not df.cuda_available()
    told = df.build_info()["cuda"]
    assert not told["available"] and re.search(reason, told["reason"])
    assert ("runtime" in told) == (seen[0] is not None)
    others = [other for other in MACHINES if not other.startswith(name[:6])]
    assert not any(re.search(MACHINES[other][1], told["reason"]) for other in others)


def test_a_machine_with_devices(machine: Callable[..., None]) -> None:
    machine(13010, 2)
    assert df.cuda_available() and cuda.problem() is None
    assert df.build_info()["cuda"] == {
        "available": True,
        "devices": 2,
        "runtime": "13.0",
        "driver": "13.1",
        "architectures": [80, 90],
    }
    with pytest.raises(ValueError, match=r"device: got 'cuda:2'.*accepted: a CUDA device below 2"):
        df.noise.normal(3, 2, seed=0, step=0, device="cuda:2")
    for other in ("cpu", torch.device("cpu")):
        assert df.noise.normal(3, 2, seed=0, step=0, device=other).is_cpu
    for bad, error in (("meta", ValueError), ("gpu", ValueError), (1.5, TypeError), (None, TypeError)):
        with pytest.raises(error, match="device: got .*accepted: the CPU or a CUDA device"):
            cuda.device_of("device", bad)


@pytest.mark.parametrize("name", MACHINES)
def test_calls_say_it_too(name: str, machine: Callable[..., None]) -> None:
    seen, reason = MACHINES[name]
    machine(*seen)
    with pytest.raises(ValueError, match=f"device: got 'cuda'.*the CPU, for .*{reason}"):
        df.noise.normal(3, 2, seed=0, step=0, device="cuda")
    with pytest.raises(RuntimeError, match=reason):
        cuda.prepare()


def test_a_broken_extension_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("version `GLIBC_9.99' not found")

    monkeypatch.setattr(cuda.importlib, "import_module", broken)
    cuda._state.cache_clear()
    assert re.search("built, but it cannot be loaded .*GLIBC_9.99", str(cuda.problem()))
    cuda._state.cache_clear()


def test_importing_asks_no_driver() -> None:
    """Nor loads the extension: a machine without CUDA pays nothing."""
    code = f"import sys, diffusion_fast.ops, diffusion_fast.cuda; print({NAME!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@built
def test_the_extension_on_this_machine() -> None:
    driver, runtime, devices, code, message = _cuda.probe()
    assert runtime >= 12080 and (devices > 0) == (code == 0 and message == "") and devices >= 0
    assert set(_cuda.architectures()) >= {80, 90, 120}
    if devices == 0:
        with pytest.raises(RuntimeError, match="cuda"):
            _cuda.prepare(0)
        assert _cuda.probe() == (driver, runtime, devices, code, message)  # alive, and of the same opinion
        assert not df.cuda_available()


@built
def test_it_links_no_cuda_library() -> None:
    listing = subprocess.run(["readelf", "-d", _cuda.__file__], capture_output=True, text=True, check=True)
    libraries = re.findall(r"NEEDED.*\[(.*)\]", listing.stdout)
    assert libraries and not [name for name in libraries if re.search("cuda|nv|torch|c10|python", name)]
    listing = subprocess.run(["nm", "-D", "--defined-only", _cuda.__file__], capture_output=True, text=True)
    names = [line.split()[-1] for line in listing.stdout.splitlines()]
    assert "PyInit__cuda" in names and not [name for name in names if re.search("2df|cuda[A-Z]", name)]


# ---- what the compiler made: SASS by cuobjdump and nvdisasm of PyPI


def sass(arch: str) -> dict[str, str]:
    """Each kernel's instructions by its mangled name."""
    folder = Path(sys.prefix)
    found = list(folder.rglob("bin/cuobjdump")) if _cuda else []
    assert found, "cuobjdump is not installed: pip install '.[test]'"
    return {arch: str(found)}
