"""``python -m fastvid_ext info``: versions, what was built, what is loaded, and why CUDA is off if it is."""

from __future__ import annotations

import argparse
import platform

import torch

from fastvid_ext._library import LibraryStatus, covers, status
from fastvid_ext._version import __version__

__all__ = ["add_arguments", "report", "run"]


def _devices(status: LibraryStatus) -> list[str]:
    lines = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        line = f"{index}: {device.name}, compute capability {device.major}.{device.minor}"
        if status.cuda is not None and not covers(status.architectures, (device.major, device.minor)):
            line += f", NOT COVERED by this build ({' '.join(status.architectures)})"
        lines.append(line)
    return lines or ["none visible"]


def report() -> str:
    """The lines that ``info`` prints, one fact a line."""
    libraries = ["libfastvid"] + ([] if status.cuda_off else ["libfastvid_cuda"])
    rows = [
        ("fastvid_ext", __version__),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("built with", f"{status.compiler}, headers of torch {status.torch}"),
        ("built for CUDA", f"{status.cuda}: {' '.join(status.architectures)}" if status.cuda else "no"),
        ("loaded", f"{' '.join(libraries)} from {status.folder}"),
        ("backend", status.backend),
        ("CPU kernels", "fastvid_ext.reference"),
        ("CUDA kernels", "libfastvid_cuda"),
    ]
    if status.backend == "reference":
        rows[-1] = ("CUDA kernels", "fastvid_ext.reference (FASTVID_BACKEND=reference)")
    elif status.cuda_off:
        rows[-1] = ("CUDA kernels", f"off: {status.cuda_off}")
    rows += [("GPU", line) for line in _devices(status)]
    return "\n".join(f"{name:<15}{value}" for name, value in rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``info`` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    print(report())
    return 0
