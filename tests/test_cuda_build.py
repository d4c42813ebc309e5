"""The CUDA extension where there is no device: what it says of the machine, and what nvcc made of it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
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
SETUP = Path(__file__).resolve().parent.parent / "setup.py"
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
    "not built": ((None,), r"not built \(.*\): .*build again with DIFFUSION_FAST_CUDA=1"),
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
        with pytest.raises(error, match=r"device: got .*accepted: the CPU or a CUDA"):
            cuda.device_of("device", bad)


@pytest.mark.parametrize("name", MACHINES)
def test_calls_say_it_too(name: str, machine: Callable[..., None]) -> None:
    seen, reason = MACHINES[name]
    machine(*seen)
    with pytest.raises(ValueError, match=f"device: got 'cuda'.*the CPU, for .*{reason}"):
        df.noise.normal(3, 2, seed=0, step=0, device="cuda")
    with pytest.raises(RuntimeError, match=reason):
        cuda.prepare()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"DIFFUSION_FAST_CUDA": "0"}, "DIFFUSION_FAST_CUDA=0 left CUDA out"),
        ({"PATH": "", "CUDACXX": ""}, "nvcc was not found"),
        ({"CUDACXX": "true"}, "true does not tell its release"),
    ],
)
@pytest.mark.skipif(not SETUP.is_file(), reason="setup.py is not beside the tests")
def test_why_the_build_left_cuda_out(
    environment: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch, machine: Callable[..., None]
) -> None:
    """setup.py's reason, which it compiles into the core, is the one that is told."""
    names: dict[str, Any] = {"__file__": str(SETUP), "__name__": "setup"}
    exec(compile(SETUP.read_text().partition("\nnvcc, without_cuda")[0], str(SETUP), "exec"), names)
    monkeypatch.delenv("DIFFUSION_FAST_CUDA", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(names["shutil"], "which", lambda path: path == "true")
    assert names["find_nvcc"]() == (None, reason)
    monkeypatch.setattr(cuda._cpu, "without_cuda", reason)
    machine(None)
    assert f"not built ({reason}):" in str(cuda.problem())
    monkeypatch.setenv("DIFFUSION_FAST_CUDA", "1")
    with pytest.raises(Exception, match=r"DIFFUSION_FAST_CUDA=1, but .*: install the CUDA toolkit 12\.8"):
        names["find_nvcc"]()


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


# ---- what the compiler made: SASS, by the disassembler of PyPI's nvidia-cuda-cuobjdump and -nvdisasm


def tool(package: str) -> Path:
    """The command that a package of the test extra brings."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install '.[test]' on Linux brings it")
    return Path(next(file for file in files if file.parent.name == "bin").locate())


@functools.cache
def sass(arch: str) -> dict[str, list[str]]:
    """The instructions of each kernel for sm_`arch` by its mangled name."""
    cuobjdump, nvdisasm = tool("nvidia-cuda-cuobjdump"), tool("nvidia-cuda-nvdisasm")
    path = os.pathsep.join([str(nvdisasm.parent), os.environ["PATH"]])
    command = [str(cuobjdump), "--dump-sass", f"--gpu-architecture=sm_{arch}", _cuda.__file__]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    functions = re.split(r"^\s*Function : ", done.stdout, flags=re.MULTILINE)[1:]
    found = {}
    for text in functions:
        name, _, body = text.partition("\n")
        found[name.strip()] = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(.*?);", body, flags=re.MULTILINE)
    return found


def kernels(arch: str, name: str) -> dict[str, list[str]]:
    found = {mangled: body for mangled, body in sass(arch).items() if name in mangled}
    assert found, f"no {name} for sm_{arch}"
    return found


def positions(body: list[str], pattern: str) -> list[int]:
    return [i for i, instruction in enumerate(body) if re.search(pattern, instruction)]


@built
@pytest.mark.parametrize("arch", ["80", "90a", "120"])
def test_no_array_lives_in_memory(arch: str) -> None:
    """Registers hold all that a thread works on: no load or store of local memory."""
    for name in ("step_kernel", "noise_kernel"):
        for mangled, body in kernels(arch, name).items():
            assert not positions(body, r"\b(LDL|STL)\b"), mangled


@built
@pytest.mark.parametrize("arch", ["80", "90a", "120"])
def test_a_pack_is_loaded_16_bytes_at_a_time_before_its_noise(arch: str) -> None:
    for mangled, body in kernels(arch, "step_kernel").items():
        full = "ELb1E" in mangled
        loads = positions(body, r"\bLDG\.E\.128")
        assert len(loads) == (8 if full else 3), mangled  # x, F, u; three of history, log_variance, noise
        assert len(positions(body, r"\bSTG\.E\.128")) == (5 if full else 1), mangled
        # Of the twenty and more products of Philox the scheduler may move one a call between the loads.
        early = [at for at in positions(body, "-0x2daee0ad") if loads[0] < at < loads[-1]]
        assert len(early) <= 2, mangled


# ---- the chains: what runs on tensor cores, and what it takes


@functools.cache
def resources(arch: str) -> dict[str, dict[str, int]]:
    """Registers, stack and so on of each kernel by its mangled name."""
    cuobjdump = tool("nvidia-cuda-cuobjdump")
    command = [str(cuobjdump), "--dump-resource-usage", f"--gpu-architecture=sm_{arch}", _cuda.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"Function (\S+):\s+(.*)", done.stdout)
    return {name: {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", text)} for name, text in found}


# Threads of a block and blocks that a multiprocessor is to hold: together they have its 65536 registers.
CHAINS = {"mma_chain": (128, 2), "wide_chain": (256, 1)}


@built
@pytest.mark.parametrize("arch", ["80", "90a", "120"])
@pytest.mark.parametrize("name", CHAINS)
def test_the_chains_on_tensor_cores(name: str, arch: str) -> None:
    """All that a thread works on is in registers, and there are enough of them."""
    threads, blocks = CHAINS[name]
    for mangled, body in kernels(arch, f"{len(name)}{name}").items():  # not wgmma_chain
        assert not positions(body, r"\b(LDL|STL)\b"), mangled
        products = positions(body, r"\bHMMA\.16816\.F32")
        assert products, mangled
        used = resources(arch)[mangled]
        assert used["STACK"] == 0 and threads * blocks * used["REG"] <= 65536, (mangled, used)


# Of the wgmma kernels, by parts of a value, width of the layers and eights of columns of x: registers of a
# thread, and threads of the one block that a multiprocessor holds (csrc/cuda/chain_args.h).
WGMMA = {
    (1, 128, 1): (168, 384),
    (1, 128, 8): (255, 256),
    (2, 128, 1): (255, 256),
}


def wgmma_kernels(arch: str) -> dict[tuple[int, ...], tuple[str, list[str]]]:
    """Name and instructions by the key of WGMMA, bfloat16 for both formats of 16 bits"""
    found = {}
    for mangled, body in kernels(arch, "wgmma_chain").items():
        shape = re.search(r"Li(\d+)ELi(\d+)EEEvNS", mangled)
        assert shape, mangled
        found[2 if "SplitFloat32" in mangled else 1, int(shape[1]), int(shape[2])] = mangled, body
    return found


@built
def test_products_of_a_warpgroup() -> None:
    """All that a thread works on is in registers, and a layer's products run one behind the other: the last
    of each group alone says that it is complete, where ptxas serializes them every one does."""
    found = wgmma_kernels("90a")
    assert found.keys() == WGMMA.keys()
    for key, (mangled, body) in found.items():
        registers, threads = WGMMA[key]
        assert not positions(body, r"\b(LDL|STL)\b"), mangled
        used = resources("90a")[mangled]
        assert used["STACK"] == 0 and used["REG"] <= registers and threads * registers <= 65536, (key, used)
        products, waits = positions(body, r"\bHGMMA\.64x"), positions(body, r"\bWARPGROUP\.DEPBAR")
        last = positions(body, r"\bHGMMA\.64x.*gsb0")
        parts, width, eights = key
        chunks = width // (64 if parts == 2 else 128)
        depths = (width // 16, (eights + 1) // 2)  # of a layer, of the first one
        assert len(products) == (3 if parts == 2 else 1) * (chunks * sum(depths) + depths[0]), key
        assert len(last) == len(waits) == 2 * chunks + 1, key


@built
@pytest.mark.parametrize("arch", ["80", "120"])
def test_other_devices_have_no_code_of_hopper(arch: str) -> None:
    for mangled, body in kernels(arch, "wgmma_chain").items():
        assert len([instruction for instruction in body if "NOP" not in instruction]) < 10, mangled
        assert positions(body, r"\bBPT\.TRAP"), mangled


@built
@pytest.mark.parametrize("arch", ["80", "90a", "120"])
def test_weights_stream_while_products_run(arch: str) -> None:
    """In the loop over inputs what comes next is on its way before the products of what is there."""
    for mangled, body in kernels(arch, "wide_chain").items():
        copies, products = positions(body, r"\bLDGSTS\.E\.BYPASS\.128"), positions(body, r"\bHMMA")
        count = 32 if "SixteenBits" in mangled else 48  # of one piece, for all samples of the block
        loops = [at for at in copies if sum(at < p < at + 250 for p in products) >= count]
        assert loops, mangled
