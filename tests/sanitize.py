"""The core's tests on a core that reports wrong addresses, undefined operations or data races.

    python tests/sanitize.py address|thread [arguments of pytest]

builds diffusion_fast._cpu with GCC's or Clang's sanitizer under build/, in a tree of links to this one, and
runs the tests below with it. A report ends the run with exit code 66.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cuda_build import OPTIONS, ROOT, SANITIZE, runtimes, without_randomisation

# what calls into the core with every kind of plan, tensor and thread
TESTS = {
    "address": [
        "test_activations.py",
        "test_addends.py",
        "test_bfloat16.py",
        "test_blocks.py",
        "test_chain.py",
        "test_chain_bits.py",
        "test_context.py",
        "test_fixed.py",
        "test_functions.py",
        "test_fuzz.py",
        "test_guidance.py",
        "test_network_table.py",
        "test_noise.py",
        "test_ops.py",
        "test_ops_guidance.py",
        "test_ops_statistics.py",
        "test_plan.py",
        "test_sampler.py",
        "test_small_step.py",
        "test_thread_safety.py",
        "test_tile_ops.py",
        "test_usual_case.py",
    ],
    "thread": [
        "test_blocks.py",
        "test_chain_bits.py",
        "test_chain.py",
        "test_noise.py",
        "test_thread_safety.py",
    ],
}
# Torch's own threads synchronise in ways that the sanitizer does not see; and the tests that fork have
# threads before and after, which it refuses by default.
MORE = "ignore_noninstrumented_modules=1:die_after_fork=0"
OPTIONS = OPTIONS | {"TSAN_OPTIONS": f"{OPTIONS['TSAN_OPTIONS']}:{MORE}"}
FLAGS = ["-O1", "-g1", "-fno-var-tracking", "-fno-omit-frame-pointer"]
# In the kernels everything is inlined, and with every check at every access one instruction set does not
# compile in five minutes: there an address is checked by a call, and pointers are left to that. Sums, shifts,
# divisions, indices and casts are checked (1.6 minutes an instruction set).
KERNEL_FLAGS = {
    "address": "-fno-sanitize=null,alignment,object-size,pointer-overflow,vptr --param=asan-stack=0 "
    "--param=asan-instrumentation-with-call-threshold=0",
    "thread": "",
}
SCRIPT = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


def tree(folder: Path) -> Path:
    """Links to everything but what is built; setup.py is a copy, for it builds where it lies."""
    package = folder / "diffusion_fast"
    package.mkdir(parents=True, exist_ok=True)
    own = ("build", ".git", ".venv", "diffusion_fast", "setup.py")
    links = {folder / path.name: path for path in ROOT.iterdir() if path.name not in own}
    links |= {
        package / path.name: path for path in (ROOT / "diffusion_fast").iterdir() if path.suffix != ".so"
    }
    for link, path in links.items():
        if not link.is_symlink():
            link.symlink_to(path)
    shutil.copy2(ROOT / "setup.py", folder / "setup.py")
    return folder


def build(sanitizer: str) -> Path:
    from diffusion_fast import _cpu

    folder = tree(ROOT / "build" / f"sanitize-{sanitizer}")
    flags = " ".join([*FLAGS, *SANITIZE[sanitizer]])
    environment = {**os.environ, "DIFFUSION_FAST_CUDA": "0", "CXXFLAGS": flags, "LDFLAGS": flags}
    environment["DIFFUSION_FAST_KERNEL_FLAGS"] = KERNEL_FLAGS[sanitizer]
    environment["DIFFUSION_FAST_ISAS"] = ",".join(_cpu.isas())
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder,
        env=environment,
        check=True,
    )
    return folder


def main() -> int:
    sanitizer, more = sys.argv[1], sys.argv[2:]
    if not runtimes(sanitizer):
        print(f"the compiler has no {sanitizer} sanitizer", file=sys.stderr)
        return 2
    folder = build(sanitizer)
    environment = {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": ":".join(runtimes(sanitizer)),
        "PYTHONPATH": str(folder),
        "OPENBLAS_NUM_THREADS": "1",
    }
    tests = [str(ROOT / "tests" / name) for name in TESTS[sanitizer]]
    # capture=sys: a report is written to the descriptor, which pytest would take to the grave with it
    options = [
        "-q",
        "-x",
        "--capture=sys",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
    ]
    # it looks for an instruction set that this build may leave out
    options += ["--deselect", "tests/test_bfloat16.py::test_the_kernel_has_the_instruction"]
    command = [*without_randomisation(), sys.executable, "-c", SCRIPT, *options, *(more or tests)]
    return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
