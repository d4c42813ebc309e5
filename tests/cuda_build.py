"""Builds the CUDA sources with the C++ compiler for the emulator of tests/cuda_emulator.

``emulated()`` is diffusion_fast._cuda with kernels that run on the host; ``changes`` plants a bug in it, and
``library("thread")`` has its kernels instrumented. ninja compiles what is out of date, under build/.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
EMULATOR = ROOT / "tests" / "cuda_emulator"
FOLDER = ROOT / "build" / "cuda-emulator"

# what diffusion_fast._cuda is made of, below csrc; bindings are not instrumented
KERNELS = ("cuda/*.cu", "cuda/*.cpp", "plan.cpp", "slots.cpp")
BINDINGS = ("bind_cuda*.cpp",)

COMMON_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
COMMON_FLAGS += ["-Wno-unknown-pragmas", "-DDF_EMULATED", f"-I{EMULATOR}"]
# one rounding for each operation that the source spells, as nvcc's -fmad=false
KERNEL_FLAGS = ["-ffp-contract=off", "-fno-math-errno"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-shared"]
NVCC_FLAGS += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", f"-I{CSRC}"]
SANITIZE = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize=vptr"],
}
RUNTIMES = {"thread": ["libtsan.so"], "address": ["libasan.so", "libubsan.so"]}
OPTIONS = {
    # sizes that no machine has are for the code to refuse; leaks are the interpreter's own
    "TSAN_OPTIONS": "exitcode=66:allocator_may_return_null=1",
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=66",
}

SANITIZER = "DIFFUSION_FAST_EMULATED_SANITIZER"  # set in the processes that run_sanitized starts

Change = tuple[str, str, str]  # a file below csrc, a text that occurs in it once, what stands there instead


@dataclass(frozen=True)
class Object:
    """One translation unit: where it comes from and how it is compiled."""

    source: Path
    output: Path
    flags: tuple[str, ...]


@functools.cache
def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]


@functools.cache
def instruction_flags() -> list[str]:
    """fma as an instruction where the processor has it: the function is fifty times slower."""
    cpuinfo = Path("/proc/cpuinfo")
    return ["-mfma"] if cpuinfo.exists() and " fma " in cpuinfo.read_text() else []


def objects(sources: Iterable[Path], folder: Path, *flags: str) -> list[Object]:
    return [Object(source, folder / f"{source.name}.o", flags) for source in sources]


def engine_objects(fibers: Sequence[str] = ()) -> list[Object]:
    """The engine, never instrumented; `fibers` are defines for the way they are switched."""
    switch = EMULATOR / "fibers.cpp"
    rest = [path for path in sorted(EMULATOR.glob("*.cpp")) if path != switch]
    flags = [f"-D{define}" for define in fibers]
    return [
        *objects([switch], FOLDER / "-".join(["engine", *fibers]), f"-I{CSRC}", *flags),
        *objects(rest, FOLDER / "engine", f"-I{CSRC}"),
    ]


def kernel_flags(sanitizer: str | None, defines: Sequence[str]) -> list[str]:
    flags = KERNEL_FLAGS + instruction_flags() + [f"-D{define}" for define in defines]
    return flags + (["-O1", "-g", *SANITIZE[sanitizer]] if sanitizer else [])


def binding_objects() -> list[Object]:
    import pybind11

    includes = {sysconfig.get_path("include"), sysconfig.get_path("platinclude"), pybind11.get_include()}
    sources = (path for pattern in BINDINGS for path in sorted(CSRC.glob(pattern)))
    flags = [f"-I{CSRC}", *(f"-isystem{folder}" for folder in sorted(includes))]
    return objects(sources, FOLDER / "bindings", *flags)


def escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def build(library: Path, parts: Sequence[Object]) -> Path:
    """Compiles and links what is out of date. One build at a time, for all share objects and ninja's log."""
    cxx = shlex.join(compiler())
    lines = ["ninja_required_version = 1.5", f"builddir = {escaped(FOLDER)}"]
    lines += ["rule cxx", f"  command = {cxx} $flags -MMD -MF $out.d -x c++ -c $in -o $out"]
    lines += ["  depfile = $out.d", "  description = $out"]
    lines += ["rule link", f"  command = {cxx} -shared -pthread $in -o $out", "  description = $out"]
    for part in parts:
        lines += [f"build {escaped(part.output)}: cxx {escaped(part.source)}"]
        lines += [f"  flags = {shlex.join([*COMMON_FLAGS, *part.flags]).replace('$', '$$')}"]
    lines += [f"build {escaped(library)}: link {' '.join(escaped(part.output) for part in parts)}", ""]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = FOLDER / "build.ninja"
        manifest.write_text("\n".join(lines))
        done = subprocess.run(
            [sys.executable, "-m", "ninja", "--quiet", "-f", str(manifest)], capture_output=True, text=True
        )
    if done.returncode != 0:
        raise RuntimeError(f"compiling for the emulator failed:\n{done.stdout}{done.stderr}")
    return library


def changed_tree(folder: Path, changes: Sequence[Change]) -> Path:
    """A copy of csrc with the changes made. What stays the same keeps its time, so ninja leaves it alone."""
    texts: dict[Path, str] = {}
    for name, old, new in changes:
        text = texts.get(folder / name) or (CSRC / name).read_text()
        if text.count(old) != 1:
            raise ValueError(f"changes: {old!r} occurs {text.count(old)} times in {name}; accepted: once")
        texts[folder / name] = text.replace(old, new)
    for source in (path for path in CSRC.rglob("*") if path.is_file()):
        copy = folder / source.relative_to(CSRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if copy in texts:
            if not copy.exists() or copy.read_text() != texts[copy]:
                copy.write_text(texts[copy])
        elif not copy.exists() or copy.stat().st_mtime != source.stat().st_mtime:
            shutil.copy2(source, copy)
    return folder


def with_changes(base: Sequence[Object], folder: Path, changes: Sequence[Change]) -> list[Object]:
    """The objects that read a changed file, from a copy of the sources; the others as they are."""
    tree = changed_tree(folder / "csrc", changes)
    names = {str(CSRC / name) for name, _, _ in changes}
    result = []
    for part in base:
        read = Path(f"{part.output}.d").read_text().replace("\\\n", " ").split()
        if names.isdisjoint(os.path.normpath(path) for path in read):
            result.append(part)
            continue
        flags = tuple(f"-I{tree}" if flag == f"-I{CSRC}" else flag for flag in part.flags)
        source = tree / part.source.relative_to(CSRC)
        result.append(Object(source, folder / part.output.name, flags))
    return result


@functools.cache
def library(
    sanitizer: str | None = None, defines: tuple[str, ...] = (), changes: tuple[Change, ...] = ()
) -> Path:
    """The shared library of ``emulated``."""
    flags = kernel_flags(sanitizer, defines)
    folder = FOLDER / ("kernels-" + hashlib.sha256("\n".join(flags).encode()).hexdigest()[:12])
    sources = [path for pattern in KERNELS for path in sorted(CSRC.glob(pattern))]
    kernels = objects(sources, folder, f"-I{CSRC}", *flags)
    rest = binding_objects() + engine_objects()
    path = build(folder / "_cuda_emulated.so", kernels + rest)
    if changes:
        folder = folder / hashlib.sha256(repr(changes).encode()).hexdigest()[:12]
        path = build(folder / "_cuda_emulated.so", with_changes(kernels, folder, changes) + rest)
    return path


def load(path: Path) -> ModuleType:
    """The module in a library; each library has its own state and settings."""
    # pybind11 keeps modules by name: a second one of the same name would be the first again
    name = f"{path.parent.name}._cuda"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@functools.cache
def emulated(defines: tuple[str, ...] = (), changes: tuple[Change, ...] = ()) -> ModuleType:
    """diffusion_fast._cuda with kernels that run on the host; device memory is host memory.

    Instrumented in the process of ``run_sanitized``, so that whole test files can run there.
    """
    return load(library(os.environ.get(SANITIZER), defines, changes))


@functools.cache
def self_test(sanitizer: str | None = None, *fiber_defines: str) -> Path:
    """The library of tests/cuda_emulator/self_test*.cu."""
    folder = FOLDER / f"self_test-{sanitizer or 'plain'}"
    kernels = objects(sorted(EMULATOR.glob("*.cu")), folder, f"-I{CSRC}", *kernel_flags(sanitizer, ()))
    name = "-".join(["self_test", *fiber_defines])
    return build(folder / f"{name}.so", kernels + engine_objects(fiber_defines))


@functools.cache
def device_self_test(arch: str) -> tuple[Path, str]:
    """The same library for a device, compiled by nvcc; and what the compiler said."""
    sources = sorted(EMULATOR.glob("*.cu"))
    read = [*sources, EMULATOR / "self_test.h", *sorted((CSRC / "cuda").glob("*.h"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in read)).hexdigest()[:12]
    library = FOLDER / f"device-{arch}-{digest}.so"
    messages = library.with_suffix(".log")
    if not messages.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["nvcc", *NVCC_FLAGS, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-o", str(library)]
        done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc failed:\n{done.stdout}{done.stderr}")
        messages.write_text(done.stdout + done.stderr)
    return library, messages.read_text()


def configure(path: Path | str, **settings: int) -> None:
    """Chooses the emulated machine of a library: see tests/cuda_emulator/settings.h."""
    emulator_set = ctypes.CDLL(str(path)).emulator_set
    emulator_set.restype = ctypes.c_bool
    for name, value in settings.items():
        if not emulator_set(name.encode(), ctypes.c_int64(value)):
            raise ValueError(f"settings: the emulator has none named {name!r}")


@functools.cache
def runtimes(sanitizer: str) -> list[str]:
    """The sanitizer's libraries; empty where the compiler has none."""
    found = []
    for name in RUNTIMES[sanitizer]:
        command = [*compiler(), f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(path):
            return []
        found.append(path)
    return found


@functools.cache
def without_randomisation() -> list[str]:
    """The thread sanitizer of older compilers cannot place its memory where addresses are very random."""
    command = ["setarch", "-R"]
    usable = (
        shutil.which("setarch") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    )
    return command if usable else []


def run_sanitized(sanitizer: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python script under a sanitizer. Its reports are in stderr, and the exit status is 66 if any.

    The script imports tests/cuda_build.py and loads a library that was built with the same sanitizer.
    """
    environment = {
        **os.environ,
        **OPTIONS,
        SANITIZER: sanitizer,
        "LD_PRELOAD": ":".join(runtimes(sanitizer)),
        "PYTHONPATH": str(ROOT / "tests"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [*without_randomisation(), sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
