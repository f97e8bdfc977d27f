"""One wheel under several Pythons and torches, installed as a user would, away from the checkout.

    python -m pytest release/test_wheels.py --cell 3.12:2.11.0

The environments stay in build/environments. PyPI's torch is a CUDA build: the CUDA library is loaded too, GPU or not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "build" / "environments"
CELLS = ("3.10:2.10.0", "3.11:2.13.0")  # the oldest of both, and those of `make test`
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
# A CUDA build of torch is 7 GB in 20 packages: uv, which fetches and unpacks several at once, takes a quarter of pip's
# time. It has to be told of the folders that pip would look into.
UV = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--cache-dir", ENVIRONMENTS / "cache")
FOLDERS = [f"--find-links={folder}" for folder in os.environ.get("PIP_FIND_LINKS", "").split()]


def pytest_generate_tests(metafunc):
    cells = metafunc.config.getoption("cell") or CELLS
    metafunc.parametrize("environment", cells, indirect=True, scope="module")


def interpreter(version: str) -> str:
    """A Python of this version, from PATH or from pyenv."""
    candidates = [shutil.which(f"python{version}")]  # which may be a shim of pyenv for a version that is not chosen
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    for python in candidates:
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return str(python)
    return pytest.fail(f"no Python {version} on PATH or in pyenv: install it, or choose others with --cell")


def run(*command, **options) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def environment(request, cuda_wheel) -> Path:
    """The Python of a virtual environment with this torch and the wheel, and nothing else that was asked for."""
    python_version, torch_version = request.param.split(":")
    folder = ENVIRONMENTS / f"python{python_version}-torch{torch_version}"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(interpreter(python_version), "-m", "venv", folder)
        run(*UV, *FOLDERS, "--python", python, f"torch=={torch_version}")
        ready.touch()
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "fastvid_ext")
    run(python, *PIP, cuda_wheel)
    assert run(python, "-c", "import torch; print(torch.__version__)").startswith(torch_version)
    return python


def readme_snippet() -> str:
    """The first thing that a reader tries."""
    readme = (ROOT / "README.md").read_text()
    return re.search(r"^In model code:\n+```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)[1]


def test_readme(environment, tmp_path):
    assert run(environment, "-c", readme_snippet(), cwd=tmp_path).startswith("torch.Size([608, 3584]) [")


def test_version(environment, cuda_wheel, tmp_path):
    """One version everywhere; the wheel's own adds the CUDA version."""
    code = (
        "import fastvid_ext\n"
        "from importlib import metadata\n"
        "print(fastvid_ext.__version__, metadata.version('fastvid_ext'))"
    )
    version, installed = run(environment, "-c", code, cwd=tmp_path).split()
    assert cuda_wheel.name.startswith(f"fastvid_ext-{installed}-py3-none-")
    assert re.fullmatch(rf"{re.escape(version)}\+cu\d+", installed)
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_symbol_is_found(environment, tmp_path):
    """The loader looks for all of them at once, not at the first call: so none is newer than this torch."""
    code = (
        "import torch; from fastvid_ext import _library\n"
        "print(_library.status.folder)\n"
        "print(_library.status.cuda_off if torch.version.cuda else None)"
    )
    folder, cuda_off = run(environment, "-c", code, cwd=tmp_path, env={**os.environ, "LD_BIND_NOW": "1"}).splitlines()
    assert Path(folder).is_relative_to(environment.parent.parent.resolve())
    assert cuda_off == "None"


def test_driver_is_too_old(environment, tmp_path):
    """A driver of CUDA 11 under a CUDA build of torch: the package says what is wrong, and the CPU path stays."""
    if run(environment, "-c", "import torch; print(torch.version.cuda)") == "None\n":
        pytest.skip("torch is not a CUDA build, which comes first among the reasons")
    driver = "int cuDriverGetVersion(int* version) { *version = 11080; return 0; }"
    compiler = ("cc", "-shared", "-fPIC", "-x", "c", "-", "-o", tmp_path / "libcuda.so.1")
    run(*compiler, input=driver)
    code = "import torch, fastvid_ext; x = torch.rand(8, 20, 16); print(torch.ops.fastvid.prune(x, x[..., 0])[0].shape)"
    machine = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    printed = run(environment, "-c", code, cwd=tmp_path, env=machine)
    assert "CUDA is off: the NVIDIA driver goes up to CUDA 11.8, but libfastvid_cuda.so was built with CUDA" in printed
    assert printed.endswith("torch.Size([16, 16])\n")


def test_cpp_package(environment, cuda_wheel, tmp_path):
    """C++ programs against the build that the wheel holds; pruning needs a GPU, and is skipped without one."""
    if run(environment, "-c", "import torch; print(torch.version.cuda)") == "None\n":
        pytest.skip("torch is not a CUDA build: `make cpp` tries such a one")
    label = re.search(r"\+(cu\d+)", cuda_wheel.name)[1]
    prefix, build = tmp_path / "prefix", tmp_path / "build"
    run("cmake", "--install", ROOT / "build" / "wheels" / label, "--prefix", prefix)
    options = (f"-DCMAKE_PREFIX_PATH={prefix}", f"-DPython3_EXECUTABLE={environment}")
    run("cmake", "-S", ROOT / "tests" / "cpp", "-B", build, *options)
    run("cmake", "--build", build, "--parallel")
    run("ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error")


def test_cpu_wheel(environment, cpu_wheel, tmp_path):
    """The same snippet with the wheel without CUDA, which under a CUDA build of torch says what it lacks."""
    run(environment, *PIP, "--no-deps", "--target", tmp_path / "site", cpu_wheel)
    before_the_other = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    printed = run(environment, "-c", readme_snippet(), cwd=tmp_path, env=before_the_other)
    assert "torch.Size([608, 3584]) [" in printed
    printed = run(environment, "-m", "fastvid_ext", "info", cwd=tmp_path, env=before_the_other)
    assert f"loaded         libfastvid from {tmp_path}/site/fastvid_ext\n" in printed
    assert "off: fastvid_ext holds no CUDA kernels: it was built with FASTVID_CUDA=OFF" in printed


def test_suite(environment, tmp_path):
    """The tests of the checkout against the installed wheel."""
    run(environment, *PIP, "pytest", "hypothesis")
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # The tokens are few: threads only wait for each other, on a busy machine for minutes.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path, env=one_thread)
    closing = printed.strip().splitlines()[-1]
    print(f"\n{environment.parent.parent.name}: {closing}")
    assert int(re.search(r"(\d+) passed", closing)[1]) > 1000
