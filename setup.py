"""Builds the two libraries with CMake and puts them into the package; everything else is in pyproject.toml.

Environment:
    FASTVID_CUDA                AUTO (default: where nvcc is found), ON or OFF.
    FASTVID_CUDA_ARCHITECTURES  such as "80-real;90"; default: all that are supported.
    FASTVID_BUILD_TESTS         1 also builds tests/fastvid_core, the module that shows csrc/core to the tests.
    FASTVID_BUILD_DIR           where CMake builds and keeps what it built (default build/cmake).
    FASTVID_LOCAL_VERSION       label behind the version of the package, such as cu130 for 0.1.0+cu130; default: none.
    MAX_JOBS                    parallel compilers; default: as many as there are cores, and memory for.
    CUDA_HOME, CUDACXX          where nvcc is, if not on PATH.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
PACKAGE = "fastvid_ext"
PRODUCTS = ("libfastvid.so", "libfastvid_cuda.so", "build_info.json")
GIB_PER_JOB = 4  # nvcc on a templated kernel, two architectures at a time


def fail(message: str) -> None:
    sys.exit(f"{PACKAGE}: {message}")


def require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        fail(
            "building needs torch >= 2.10 in this Python: `pip install torch`, "
            "then `pip install --no-build-isolation` this package"
        )


def find_tool(name: str, module: str) -> str:
    """A build tool from PATH, or from the PyPI package of that name, whose scripts may not be on PATH."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        fail(f"building needs {name}: `pip install {module}`")
    return found


def parallel_jobs() -> int:
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("MAX_JOBS")
    if asked is None:
        memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return max(1, min(cores, int(memory_gib / GIB_PER_JOB)))
    if not re.fullmatch(r"[1-9][0-9]*", asked):
        fail(f"MAX_JOBS: got {asked!r}, want a whole number, at least 1")
    return min(int(asked), cores)


def package_version() -> str:
    """What ``fastvid_ext.__version__`` says, with the label that tells wheels of one version apart."""
    label = os.environ.get("FASTVID_LOCAL_VERSION", "")
    if not re.fullmatch(r"([a-z0-9]+(\.[a-z0-9]+)*)?", label):
        fail(f"FASTVID_LOCAL_VERSION: got {label!r}, want lower-case letters and digits, such as cu130")
    version = runpy.run_path(str(ROOT / PACKAGE / "_version.py"))["__version__"]
    return f"{version}+{label}" if label else version


class CMakeBuild(build_ext):
    """``build_ext`` that runs CMake and Ninja and installs the libraries into the package."""

    def run(self) -> None:
        require_torch()
        destination = ROOT if self.inplace else Path(self.build_lib).resolve()
        build_dir = (ROOT / os.environ.get("FASTVID_BUILD_DIR", "build/cmake")).resolve()
        cmake, ninja = find_tool("cmake", "cmake"), find_tool("ninja", "ninja")
        jobs = parallel_jobs()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python3_EXECUTABLE": sys.executable,
            "FASTVID_CUDA": os.environ.get("FASTVID_CUDA", "AUTO").upper(),
            "FASTVID_CUDA_ARCHITECTURES": os.environ.get("FASTVID_CUDA_ARCHITECTURES", ""),
            "FASTVID_NVCC_THREADS": "1" if jobs == 1 else "2",
            "FASTVID_BUILD_TESTS": os.environ.get("FASTVID_BUILD_TESTS", "0"),
        }
        self.forget_other_toolchain(build_dir, cmake)
        define = [f"-D{name}={value}" for name, value in options.items()]
        self.call([cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja", *define])
        self.call([cmake, "--build", str(build_dir), "--parallel", str(jobs)])
        for name in PRODUCTS:  # a CUDA library of an earlier build must not outlive a CPU-only one
            (destination / PACKAGE / name).unlink(missing_ok=True)
        self.call([cmake, "--install", str(build_dir), "--prefix", str(destination), "--component", "python"])

    def forget_other_toolchain(self, build_dir: Path, cmake: str) -> None:
        """CMake keeps the compilers that it first found: start afresh where they, or the tree's place, changed."""
        asked = {name: os.environ.get(name) for name in ("CXX", "CUDAHOSTCXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH")}
        asked.update(source=str(ROOT), cmake=cmake, nvcc=shutil.which("nvcc"))
        stamp = build_dir / "toolchain.json"
        if not stamp.exists() or json.loads(stamp.read_text()) != asked:
            (build_dir / "CMakeCache.txt").unlink(missing_ok=True)
            shutil.rmtree(build_dir / "CMakeFiles", ignore_errors=True)
            build_dir.mkdir(parents=True, exist_ok=True)
            stamp.write_text(json.dumps(asked))

    def call(self, command: list[str]) -> None:
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            fail(f"`{' '.join(command[:2])} ...` failed with status {error.returncode}; its messages are above")

    # What setuptools asks of a build step: the libraries carry no ABI tag and no source stands in the package.
    def get_outputs(self) -> list[str]:
        return [str(path) for name in PRODUCTS if (path := Path(self.build_lib, PACKAGE, name)).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class AnyPythonWheel(bdist_wheel):
    """The libraries hold no CPython symbol, so one wheel a platform serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class DistInfo(dist_info):
    """Says at once that torch is missing, before pip resolves (and downloads) the dependencies."""

    def run(self) -> None:
        require_torch()
        super().run()


setup(
    version=package_version(),
    ext_modules=[Extension(f"{PACKAGE}.libfastvid", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel, "dist_info": DistInfo},
)
