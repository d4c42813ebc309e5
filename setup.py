"""Builds the compiled core. Metadata is in pyproject.toml.

ninja compiles the objects in parallel and rebuilds only what changed: every object carries a depfile, so an
edited header rebuilds what includes it, and a changed flag what it touches. Nothing here needs torch.

Environment: CXX chooses the compiler; CPPFLAGS, CFLAGS, CXXFLAGS and LDFLAGS are added to the flags below.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
OPTIMIZE = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
# Last on the command line: the same bits on every instruction set depend on products not being contracted.
REQUIRED = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra"]

# csrc/cpu/kernels.cpp is compiled once for each of these; the dispatcher picks one at run time.
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
ISA_FLAGS: dict[str, list[str]] = {"portable": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS |= {"avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": AVX512}
HAVE_ISA = [f"-DDF_HAVE_{isa.upper()}" for isa in ISA_FLAGS if isa != "portable"]


class NinjaFile:
    """The text of a build.ninja: one rule for each kind of command, one edge for each output."""

    def __init__(self, folder: Path) -> None:
        # Without builddir ninja would leave its logs in the top of the repository.
        self.lines = ["ninja_required_version = 1.5", f"builddir = {folder}"]

    @staticmethod
    def _path(path: Path | str) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def rule(self, name: str, command: str, depfile: bool = False) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def edge(self, rule: str, output: Path, inputs: list[Path], flags: list[str]) -> None:
        sources = " ".join(self._path(path) for path in inputs)
        self.lines += [f"build {self._path(output)}: {rule} {sources}"]
        self.lines += [f"  flags = {shlex.join(flags).replace('$', '$$')}"]

    def run(self, path: Path, jobs: int | None, verbose: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(self.lines) + "\n")
        command = [sys.executable, "-m", "ninja", "-f", str(path)]
        command += (["-j", str(jobs)] if jobs else []) + (["-v"] if verbose else ["--quiet"])
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise CompileError("compiling the C++ core failed; the compiler's messages are above")


def find_compiler() -> str:
    """The C++ compiler's command: CXX, else the first usual name that exists."""
    for command in filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]):
        if shutil.which(shlex.split(command)[0]):
            return command
    given = f" (CXX is set to {os.environ['CXX']!r})" if os.environ.get("CXX") else ""
    raise CompileError(
        f"no C++ compiler found{given}: install g++ or clang++ with C++17 support, or set CXX to one"
    )


def environment_flags(*names: str) -> list[str]:
    return [flag for name in names for flag in shlex.split(os.environ.get(name, ""))]


def python_flags() -> list[str]:
    """Include folders of the binding sources only, so that the kernels' objects serve every environment."""
    import pybind11

    folders = {sysconfig.get_path("include"), sysconfig.get_path("platinclude"), pybind11.get_include()}
    return [f"-isystem{folder}" for folder in sorted(folders)]


def cpu_objects() -> list[tuple[Path, str, list[str]]]:
    """(source, object's name, extra flags) for each object of diffusion_fast._cpu, in link order.

    Of an inline function that several objects hold, the linker keeps the first copy. So the plain objects
    come first and the widest instruction set last: otherwise an old CPU could run into an AVX-512 copy of a
    standard container.
    """
    kernels = Path("csrc/cpu/kernels.cpp")
    sources = sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*.cpp"))
    objects: list[tuple[Path, str, list[str]]] = []
    for source in (path.relative_to(ROOT) for path in sources):
        if source != kernels and not source.name.startswith("bind_cuda"):
            extra = python_flags() if source.name.startswith("bind_") else []
            objects.append((source, "_".join(source.with_suffix("").parts[1:]), extra))
    return objects + [(kernels, f"kernels_{isa}", [f"-DDF_ISA={isa}", *f]) for isa, f in ISA_FLAGS.items()]


class NinjaBuild(build_ext):
    """Lets ninja build each extension under build/, then copies it to where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        folder = Path("build") / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        cxx = find_compiler()
        link = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
        ninja = NinjaFile(folder)
        ninja.rule("cxx", f"{cxx} -MMD -MF $out.d $flags -c $in -o $out", depfile=True)
        ninja.rule("link", f"{cxx} {link} -pthread $in -o $out $flags")

        user = environment_flags("CPPFLAGS", "CFLAGS", "CXXFLAGS")
        objects = []
        for source, name, extra in cpu_objects():
            objects.append(folder / f"{name}.o")
            ninja.edge("cxx", objects[-1], [source], [*OPTIMIZE, *user, *REQUIRED, *HAVE_ISA, *extra])
        library = folder / output.name
        ninja.edge("link", library, objects, environment_flags("LDFLAGS"))

        ninja.run(ROOT / folder / "build.ninja", self.parallel, bool(os.environ.get("VERBOSE")))
        output.parent.mkdir(parents=True, exist_ok=True)
        # A running process may have the old file mapped: replace it, never write into it.
        output.unlink(missing_ok=True)
        shutil.copy2(ROOT / library, output)


setup(
    ext_modules=[Extension("diffusion_fast._cpu", sources=[], language="c++")],
    cmdclass={"build_ext": NinjaBuild},
)
