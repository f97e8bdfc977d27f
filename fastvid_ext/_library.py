"""Loads the built libraries and gives their ops the kernels that are written in Python.

libfastvid defines the ops and the checks of their arguments, libfastvid_cuda the CUDA kernels. The CPU kernels are
``fastvid_ext.reference``. What was loaded, and why CUDA is off if it is, stands in :data:`status`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastvid_ext import _fakes, reference
from fastvid_ext._version import __version__

__all__ = ["LibraryStatus", "covers", "status"]

OPS = ("segment", "plan", "knn_density", "select_peaks", "scatter_merge", "prune", "prune_padded")
BACKENDS = ("auto", "cuda", "reference")
OLDEST_TORCH = (2, 10)


@dataclasses.dataclass(frozen=True)
class LibraryStatus:
    """What was built and what this process loaded.

    Attributes:
        backend: "auto", "cuda" or "reference", from FASTVID_BACKEND.
        folder: where the libraries lie.
        version: version of fastvid_ext that they were built from.
        torch: version of torch that they were compiled against.
        compiler: name and version of the C++ compiler.
        cuda: version of the CUDA toolkit that compiled libfastvid_cuda; None where it was not built.
        architectures: what libfastvid_cuda holds: "sm_90" is machine code for 9.0, "compute_120" PTX.
        cuda_off: why libfastvid_cuda is not in use; None where it is.
    """

    backend: str
    folder: Path
    version: str
    torch: str
    compiler: str
    cuda: str | None
    architectures: tuple[str, ...]
    cuda_off: str | None


def covers(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether a device of this compute capability runs code built for these architectures.

    Machine code runs on its own major version, from its minor version on; PTX on every later device; either, with
    the suffix "a", on exactly its own.
    """
    for architecture in architectures:
        kind, major, minor, exact = re.fullmatch(r"(sm|compute)_(\d+)(\d)(a?)", architecture).groups()
        built = int(major), int(minor)
        if exact:
            found = capability == built
        elif kind == "sm":
            found = capability[0] == built[0] and capability[1] >= built[1]
        else:
            found = capability >= built
        if found:
            return True
    return False


def _backend() -> str:
    backend = os.environ.get("FASTVID_BACKEND", "auto")
    if backend not in BACKENDS:
        raise ValueError(f"FASTVID_BACKEND: got {backend!r}, want one of {', '.join(BACKENDS)}")
    return backend


def _build_info(folder: Path) -> dict[str, Any]:
    try:
        info = json.loads((folder / "build_info.json").read_text())
    except FileNotFoundError:
        raise ImportError(
            f"fastvid_ext is not built: no libraries in {folder}; "
            "run `pip install --no-build-isolation -e .` in the checkout (FASTVID_LIBRARY_DIR names another folder)"
        ) from None
    if info["version"] != __version__:
        raise ImportError(
            f"fastvid_ext is {__version__}, but the libraries in {folder} were built from {info['version']}: "
            "build or install it again"
        )
    return info


def _cause(error: OSError) -> BaseException:
    # torch names the file; what the loader said stands behind it.
    return error.__cause__ or error


def _driver_version() -> tuple[int, int] | None:
    """The CUDA version up to which the NVIDIA driver goes; None without a driver. Starts no CUDA, so one may fork."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _driver_too_old(built: str, driver: tuple[int, int] | None) -> str | None:
    """Why this driver cannot run a build of this CUDA version. It runs those of its own major version, newer or not."""
    major = int(built.split(".")[0])
    if driver is None or driver[0] >= major:
        return None
    return (
        f"the NVIDIA driver goes up to CUDA {driver[0]}.{driver[1]}, but libfastvid_cuda.so was built with CUDA "
        f"{built}: update the driver, or install or build fastvid_ext for CUDA {driver[0]}"
    )


def _load_schemas(folder: Path, info: dict[str, Any]) -> None:
    found = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if found < OLDEST_TORCH:
        raise ImportError(f"fastvid_ext needs torch >= 2.10, got {torch.__version__}")
    try:
        torch.ops.load_library(folder / "libfastvid.so")
    except OSError as error:
        raise ImportError(
            f"fastvid_ext cannot load libfastvid.so, compiled against torch {info['torch']}, "
            f"under torch {torch.__version__}: {_cause(error)}"
        ) from None


def _load_cuda(folder: Path, info: dict[str, Any], backend: str) -> str | None:
    """Loads libfastvid_cuda; gives the reason where it does not."""
    if backend == "reference":
        return "FASTVID_BACKEND=reference"
    if info["cuda"] is None:
        return f"fastvid_ext holds no CUDA kernels: {info['cuda_off']}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    if too_old := _driver_too_old(info["cuda"], _driver_version()):
        return too_old
    try:
        torch.ops.load_library(folder / "libfastvid_cuda.so")
    except OSError as error:
        return f"libfastvid_cuda.so cannot be loaded under torch {torch.__version__}: {_cause(error)}"
    return None


def _reference_kernel(name: str) -> Callable:
    check = getattr(torch.ops.fastvid, f"_check_{name}").default
    compute = getattr(reference, name)

    def kernel(*args, **kwargs):
        check(*args, **kwargs)
        return compute(*args, **kwargs)

    return kernel


def _refusal(name: str, cuda_off: str) -> Callable:
    def kernel(*args, **kwargs):
        raise RuntimeError(
            f"fastvid::{name} got CUDA tensors, but CUDA is off: {cuda_off}. Install or build fastvid_ext with CUDA "
            "for a CUDA build of torch, or set FASTVID_BACKEND=reference to compute with plain PyTorch"
        )

    return kernel


def _load() -> tuple[LibraryStatus, torch.library.Library]:
    backend = _backend()
    folder = Path(os.environ.get("FASTVID_LIBRARY_DIR") or Path(__file__).parent).resolve()
    info = _build_info(folder)
    _load_schemas(folder, info)
    cuda_off = _load_cuda(folder, info, backend)
    if cuda_off and backend == "cuda":
        raise ImportError(f"FASTVID_BACKEND=cuda, but {cuda_off}")
    if cuda_off and backend == "auto" and torch.version.cuda is not None:
        warnings.warn(f"fastvid_ext: CUDA is off: {cuda_off}", RuntimeWarning, stacklevel=2)

    library = torch.library.Library("fastvid", "IMPL")
    for name in OPS:
        library.impl(name, _reference_kernel(name), "CPU")
        if backend == "reference":
            library.impl(name, _reference_kernel(name), "CUDA")
        elif cuda_off:
            library.impl(name, _refusal(name, cuda_off), "CUDA")
        torch.library.register_fake(f"fastvid::{name}", getattr(_fakes, name), lib=library)

    status = LibraryStatus(
        backend=backend,
        folder=folder,
        version=info["version"],
        torch=info["torch"],
        compiler=info["compiler"],
        cuda=info["cuda"],
        architectures=tuple(info["architectures"]),
        cuda_off=cuda_off,
    )
    return status, library


# The kernels stay registered for as long as the Library lives.
status, _registered = _load()
