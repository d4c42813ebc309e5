"""The tests of the emulated kernels again, on builds that report data races or wrong addresses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cuda_build
import pytest

TESTS = Path(__file__).parent
FILES = ["test_cuda_step.py", "test_cuda_chain.py", "test_cuda_mma.py", "test_cuda_wide.py"]
FILES += ["test_cuda_wgmma.py"]
# what goes through every kernel, for each change
PART = [
    "test_cuda_step.py::test_every_size_as_on_the_cpu",
    "test_cuda_step.py::test_normals_to_the_bit",
    "test_cuda_step.py::test_statistics_as_on_the_cpu",
    "test_cuda_chain.py::test_given_noise_start_and_trajectory",
    "test_cuda_chain.py::test_thresholds_rescale_and_guidance",
    "test_cuda_mma.py::test_classes_and_guidance",
    "test_cuda_wide.py::test_classes_and_guidance",
    "test_cuda_wgmma.py::test_classes_and_guidance",
]
SCRIPT = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


def run(sanitizer: str, *tests: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process whose ``cuda_build.emulated()`` is instrumented."""
    if not cuda_build.runtimes(sanitizer):
        pytest.skip(f"the compiler has no {sanitizer} sanitizer")
    cuda_build.library(sanitizer)
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(cuda_build.ROOT)]
    return cuda_build.run_sanitized(sanitizer, SCRIPT, *options, *(str(TESTS / test) for test in tests))


@pytest.mark.slow  # an instrumented build of every kernel takes minutes of processor time
def test_no_data_races() -> None:
    done = run("thread", *PART)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
@pytest.mark.parametrize("file", FILES)
def test_nothing_found_in_whole_files(file: str, sanitizer: str) -> None:
    done = run(sanitizer, file)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
