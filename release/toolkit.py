"""Finds an nvcc of a CUDA version on this machine, or fetches one from PyPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# All that compiling takes, without the libraries that torch brings. PyPI has nvcc itself from CUDA 13 on.
PACKAGES = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
OLDEST_ON_PYPI = 13


def nvcc_version(nvcc: Path) -> str | None:
    """Version of the toolkit, such as "13.0"; None where this is no nvcc that runs."""
    try:
        printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", printed)
    return found[1] if found else None


def installed(version: str) -> Path | None:
    """The nvcc of this version on this machine, if there is one."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), f"/usr/local/cuda-{version}"]
    candidates = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home), shutil.which("nvcc")]
    for nvcc in candidates:
        if nvcc and nvcc_version(Path(nvcc)) == version:
            return Path(nvcc)
    return None


def fetched(version: str, folder: Path) -> Path:
    """The nvcc of this version from PyPI, installed under ``folder`` unless it is there."""
    major = int(version.split(".")[0])
    if major < OLDEST_ON_PYPI:
        sys.exit(
            f"CUDA {version}: no such toolkit on this machine, and PyPI has none before {OLDEST_ON_PYPI}.0: "
            "install it, and name it in CUDA_HOME"
        )
    target = folder / version
    home = target / "nvidia" / f"cu{major}"
    library_link = home / "lib64"
    if not library_link.exists():
        shutil.rmtree(target, ignore_errors=True)
        packages = [f"{name}=={version}.*" for name in PACKAGES]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", target, *packages], check=True)
        library_link.symlink_to(
            "lib"
        )  # where nvcc.profile looks; last, so that a broken install is not taken for whole
    return home / "bin" / "nvcc"


def find(version: str, folder: Path) -> Path:
    """The nvcc of a CUDA version such as "13.0": this machine's, or else PyPI's, installed under ``folder``."""
    if not re.fullmatch(r"\d+\.\d+", version):
        sys.exit(f"CUDA version: got {version!r}, want such as 13.0")
    return installed(version) or fetched(version, folder)
