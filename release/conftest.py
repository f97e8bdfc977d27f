from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# These tests start Python by the hundred: each would compile the modules of torch anew, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser):
    parser.addoption("--dist", type=Path, default=ROOT / "dist", help="folder with what `make wheels` built")
    parser.addoption(
        "--cell",
        action="append",
        metavar="PYTHON:TORCH",
        help="versions to try the wheel under, such as 3.12:2.11.0; may be repeated (default: what CI tries)",
    )


def the_one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        pytest.fail(f"{folder} holds {len(found)} of {pattern}, want one: empty it and run `make wheels`")
    return found[0]


@pytest.fixture(scope="session")
def cuda_wheel(pytestconfig) -> Path:
    """The wheel of the lowest CUDA version."""
    found = sorted(pytestconfig.getoption("dist").glob("fastvid_ext-*+cu*.whl"))
    if not found:
        pytest.fail(f"no CUDA wheel in {pytestconfig.getoption('dist')}: run `make wheels`")
    return found[0]


@pytest.fixture(scope="session")
def cpu_wheel(pytestconfig) -> Path:
    return the_one(pytestconfig.getoption("dist"), "fastvid_ext-*+cpu-*.whl")


@pytest.fixture(scope="session")
def sdist(pytestconfig) -> Path:
    return the_one(pytestconfig.getoption("dist"), "fastvid_ext-*.tar.gz")


@pytest.fixture
def unpack(sdist):
    """Gives a function that unpacks the sdist into a folder and says where its sources are."""

    def unpack_into(folder: Path) -> Path:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        return folder / sdist.name.removesuffix(".tar.gz")

    return unpack_into
