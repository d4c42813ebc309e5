"""Builds the compiled core. Metadata is in pyproject.toml.

ninja compiles the objects in parallel and rebuilds only what changed: every object carries a depfile, so an
edited header rebuilds what includes it, and a changed flag what it touches. Nothing here needs torch.

The CUDA kernels are built where nvcc is found, with the CUDA runtime inside: no CUDA library is needed to
import them, and a package built without nvcc works on the CPU.

Environment: CXX chooses the compiler; CPPFLAGS, CFLAGS, CXXFLAGS and LDFLAGS are added to the flags below.
CUDACXX chooses nvcc, NVCC_APPEND_FLAGS adds to its flags. DIFFUSION_FAST_CUDA=0 leaves CUDA out, 1 requires
it.
"""

from __future__ import annotations

import os
import platform
import re
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
    ISA_FLAGS |= {"avx512_bf16": [*AVX512, "-mavx512bf16"]}
if "DIFFUSION_FAST_ISAS" in os.environ:  # only these, such as avx2,portable: what a sanitizer can run
    wanted = os.environ["DIFFUSION_FAST_ISAS"].split(",")
    ISA_FLAGS = {isa: flags for isa, flags in ISA_FLAGS.items() if isa in wanted}
HAVE_ISA = [f"-DDF_HAVE_{isa.upper()}" for isa in ISA_FLAGS if isa != "portable"]

# Compiled once for compute_80, whose PTX every one of these takes, and once for sm_90a, which has
# instructions of its own (H100, H200): a front end run for each of seven took most of the build. 8.7, 10.3
# and 12.1 run the code of 8.6, 10.0 and 12.0; the PTX serves what is newer. csrc/cuda/info.cu names them
# again. Products are not contracted, as above.
OLDEST_NVCC = (12, 8)
GENCODE = ["-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89,sm_100,sm_120,compute_80]"]
GENCODE += ["-gencode=arch=compute_90a,code=sm_90a"]
HOST = "-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"
NVCC = ["-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", f"-Xcompiler={HOST}"]
NVCC += [*GENCODE, "--compress-mode=size", "--threads=2"]
NVCC += ["-diag-suppress=1675"]  # GCC's pragmas in headers that both compilers read
# Nothing of the runtime inside is visible: torch has a runtime of its own in the same process.
CUDA_LINK = ["-shared", "--cudart=static", "--no-device-link", "-Xlinker=--exclude-libs=ALL"]


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


def find_nvcc() -> tuple[str | None, str]:
    """nvcc's command, or None and why CUDA is left out; an error where it is required and cannot be built."""
    wanted = os.environ.get("DIFFUSION_FAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise CompileError(
            f"DIFFUSION_FAST_CUDA: got {wanted!r}; accepted: 0 (leave CUDA out), 1 (require it)"
        )
    if wanted == "0":
        return None, "DIFFUSION_FAST_CUDA=0 left CUDA out"
    places = [os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next((path for path in filter(None, places) if shutil.which(path)), None)
    if found is None:
        problem = "nvcc was not found"
    else:
        told = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"release (\d+)\.(\d+)", told)
        if version and tuple(map(int, version.groups())) >= OLDEST_NVCC:
            return found, ""
        what = f"is of release {version[1]}.{version[2]}" if version else "does not tell its release"
        problem = f"{found} {what}"
    if wanted == "1":
        accepted = "{}.{} or later".format(*OLDEST_NVCC)
        raise CompileError(
            f"DIFFUSION_FAST_CUDA=1, but {problem}: install the CUDA toolkit {accepted}, or set CUDACXX to "
            "its nvcc"
        )
    return None, problem


Object = tuple[Path, str, list[str]]  # source, object's name, extra flags


def plain_objects(*patterns: str) -> list[Object]:
    """The sources that match, each compiled once."""
    sources = [path.relative_to(ROOT) for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [
        (
            path,
            "_".join(path.with_suffix("").parts[1:]),
            python_flags() if path.name.startswith("bind_") else [],
        )
        for path in sources
    ]


def cpu_objects() -> list[Object]:
    """The objects of diffusion_fast._cpu in link order.

    Of an inline function that several objects hold, the linker keeps the first copy. So the plain objects
    come first and the widest instruction set last: otherwise an old CPU could run into an AVX-512 copy of a
    standard container.
    """
    kernels = Path("csrc/cpu/kernels.cpp")
    plain = plain_objects("csrc/*.cpp", "csrc/cpu/*.cpp")
    objects = [o for o in plain if o[0] != kernels and not o[0].name.startswith("bind_cuda")]
    next(o for o in objects if o[0].name == "bind_cpu.cpp")[2].append(f'-DDF_WITHOUT_CUDA="{without_cuda}"')
    more = environment_flags("DIFFUSION_FAST_KERNEL_FLAGS")
    return objects + [
        (kernels, f"kernels_{isa}", [f"-DDF_ISA={isa}", *f, *more]) for isa, f in ISA_FLAGS.items()
    ]


def cuda_objects() -> list[Object]:
    return plain_objects(
        "csrc/bind_cuda*.cpp", "csrc/plan.cpp", "csrc/slots.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu"
    )


CUDA = "diffusion_fast._cuda"
OBJECTS = {"diffusion_fast._cpu": cpu_objects, CUDA: cuda_objects}


class NinjaBuild(build_ext):
    """Lets ninja build the extensions under build/, then copies them to where setuptools wants them."""

    def build_extensions(self) -> None:
        folder = Path("build") / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        cxx = find_compiler()
        link = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
        ninja = NinjaFile(folder)
        ninja.rule("cxx", f"{cxx} -MMD -MF $out.d $flags -c $in -o $out", depfile=True)
        ninja.rule("link", f"{cxx} {link} -pthread $in -o $out $flags")
        if nvcc:
            host = f"{shlex.quote(nvcc)} -ccbin {shlex.quote(shlex.split(cxx)[0])}"
            ninja.rule("nvcc", f"{host} -MMD -MF $out.d $flags -c $in -o $out", depfile=True)
            ninja.rule("nvcc_link", f"{host} $in -o $out $flags")

        user = environment_flags("CPPFLAGS", "CFLAGS", "CXXFLAGS")
        link_flags = {"link": environment_flags("LDFLAGS"), "nvcc_link": CUDA_LINK}
        made: set[Path] = set()  # plan.o is in both
        outputs = {ext.name: Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions}
        for extension, output in outputs.items():
            objects = []
            for source, name, extra in OBJECTS[extension]():
                objects.append(folder / f"{name}.o")
                if objects[-1] in made:
                    continue
                made.add(objects[-1])
                if source.suffix == ".cu":
                    ninja.edge("nvcc", objects[-1], [source], NVCC)
                else:
                    ninja.edge("cxx", objects[-1], [source], [*OPTIMIZE, *user, *REQUIRED, *HAVE_ISA, *extra])
            rule = "nvcc_link" if extension == CUDA else "link"
            ninja.edge(rule, folder / output.name, objects, link_flags[rule])

        ninja.run(ROOT / folder / "build.ninja", self.parallel, bool(os.environ.get("VERBOSE")))
        for output in outputs.values():
            output.parent.mkdir(parents=True, exist_ok=True)
            # A running process may have the old file mapped: replace it, never write into it.
            output.unlink(missing_ok=True)
            shutil.copy2(ROOT / folder / output.name, output)
        if CUDA not in outputs:  # an older build's kernels would not go with the rest
            Path(self.get_ext_fullpath(CUDA)).unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        if not nvcc:
            (ROOT / self.get_ext_filename(CUDA)).unlink(missing_ok=True)


nvcc, without_cuda = find_nvcc()
setup(
    ext_modules=[Extension(name, sources=[], language="c++") for name in OBJECTS if nvcc or name != CUDA],
    cmdclass={"build_ext": NinjaBuild},
)
