# Everything below sets itself up in .venv; nothing else is needed than Python 3.10+, a C++17 compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CXX_SOURCES = $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh \
	tests/cuda_emulator/*.h tests/cuda_emulator/*.cpp tests/cuda_emulator/*.cu)
PYTHON_SOURCES := setup.py diffusion_fast tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow sanitize fuzz bench lint format build cuda gpu-check clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       train a small model, draw a million samples, show speed and distance"
	@echo "make test       the tests for every change          make test-slow  the long ones"
	@echo "make sanitize   the core's tests under the address, undefined and thread sanitizers"
	@echo "make fuzz       spoilt plans, tables and files for FUZZ_SECONDS, 600"
	@echo "make bench      measure against peers and the machine's own ceiling"
	@echo "make cuda       build with the CUDA kernels    make gpu-check  prove and measure them on a device"
	@echo "make lint       ruff, mypy, clang-format            make format     apply the formatters"
	@echo "make clean      remove what was built (.venv stays)"

# One stamp for each set of requirements. The package is installed editable, so an edit of Python counts at once and
# `build` below recompiles what an edit of C++ touched. A satisfied requirement is not looked up, so nothing here
# needs the network once it is set up.
STAMP := $(VENV)/.installed-

$(BIN)/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(STAMP)package: pyproject.toml constraints.txt setup.py | $(BIN)/python
	@echo "installing the package and what it needs into $(VENV) (torch is large), and compiling its C++ core:"
	@echo "nothing is printed for up to ten minutes on two cores, and with CUDA's compiler (nvcc) for some four more,"
	@echo "which DIFFUSION_FAST_CUDA=0 make ... leaves out"
	@$(INSTALL) setuptools pybind11 ninja
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(STAMP)test $(STAMP)dev $(STAMP)bench: $(STAMP)%: $(STAMP)package
	@echo "installing the extra '$*'"
	@$(INSTALL) --no-build-isolation --editable '.[$*]'
	@touch $@

build: $(STAMP)package
	@$(BIN)/python setup.py --quiet build_ext --inplace

cuda: $(STAMP)package
	@DIFFUSION_FAST_CUDA=1 $(BIN)/python setup.py --quiet build_ext --inplace

# Exit code 2 where there is no device.
gpu-check: $(STAMP)bench $(STAMP)test cuda
	@$(BIN)/python -m benchmarks.gpu_check

demo: build
	@$(BIN)/diffusion-fast demo --force

# Two processes, each with whole files; then what looks at the clock.
test: $(STAMP)test build
	@$(BIN)/python -m pytest --quiet -m "not slow and not alone" --numprocesses 2 --dist loadfile
	@$(BIN)/python -m pytest --quiet -m "alone and not slow"

test-slow: $(STAMP)test build
	@$(BIN)/python -m pytest --quiet -m slow

sanitize: $(STAMP)test build
	@$(BIN)/python tests/sanitize.py address
	@$(BIN)/python tests/sanitize.py thread

FUZZ_SECONDS ?= 600
fuzz: $(STAMP)test build
	@DIFFUSION_FAST_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest --quiet --show-capture=no -m slow tests/test_fuzz.py

bench: $(STAMP)bench build
	@$(BIN)/python -m benchmarks.run
	@$(BIN)/python -m benchmarks.solver_figure

lint: $(STAMP)dev
	@$(BIN)/ruff check --quiet $(PYTHON_SOURCES)
	@$(BIN)/ruff format --quiet --check $(PYTHON_SOURCES) || { echo "unformatted Python: run make format"; exit 1; }
	@$(BIN)/mypy --no-error-summary diffusion_fast
	@$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	@echo "lint: ok"

format: $(STAMP)dev
	@$(BIN)/ruff check --quiet --fix $(PYTHON_SOURCES)
	@$(BIN)/ruff format --quiet $(PYTHON_SOURCES)
	@$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -f diffusion_fast/_cpu*.so diffusion_fast/_cuda*.so
	@find $(PYTHON_SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
