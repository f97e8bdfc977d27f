"""Builds from the sdist on odd machines. This Python needs torch, setuptools, ninja and pip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import audit
import pytest
import toolkit

ROOT = Path(__file__).resolve().parent.parent
INSTALL = ("-m", "pip", "install", "--verbose", "--disable-pip-version-check", "--no-build-isolation")
STEERING = ("CUDA_HOME", "CUDA_PATH", "CUDACXX", "MAX_JOBS", "CXX")


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def succeeds(*command, **options) -> str:
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def source(unpack, tmp_path) -> Path:
    return unpack(tmp_path / "a folder with spaces")


@pytest.fixture(scope="session")
def path_without_nvcc(tmp_path_factory) -> str:
    """Every tool of this machine but nvcc, which may share its folder with tools that a build needs."""
    folder = tmp_path_factory.mktemp("tools")
    for directory in os.environ["PATH"].split(os.pathsep):
        for tool in Path(directory).glob("*"):
            if tool.name != "nvcc" and not (folder / tool.name).is_symlink():
                (folder / tool.name).symlink_to(tool)
    return str(folder)


@pytest.fixture
def environment(path_without_nvcc) -> dict[str, str]:
    """Of a machine without nvcc, with nothing set that steers the build."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("FASTVID_") and name not in STEERING
    }
    return {**kept, "PATH": path_without_nvcc}


def virtual_environment(folder: Path, site_packages: Path) -> Path:
    """The Python of a new virtual environment that sees these packages too."""
    succeeds(sys.executable, "-m", "venv", "--without-pip", folder)
    own = Path(succeeds(folder / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "more.pth").write_text(f"{site_packages}\n")
    return folder / "bin/python"


@pytest.fixture
def python(tmp_path) -> Path:
    """The Python of a new virtual environment with torch and all that a build needs."""
    return virtual_environment(tmp_path / "environment", Path(sysconfig.get_path("purelib")))


def built(python: Path) -> tuple[Path, dict]:
    """Folder of the installed package, and what it says of its build."""
    code = "import importlib.util; print(importlib.util.find_spec('fastvid_ext').submodule_search_locations[0])"
    folder = Path(succeeds(python, "-c", code, cwd="/").strip())
    return folder, json.loads((folder / "build_info.json").read_text())


def build_steps(source: Path) -> list[tuple[int, int, str]]:
    """(begin, end, output) of every step that ninja ran, in milliseconds; the latest run of each output."""
    lines = (source / "build/cmake/.ninja_log").read_text().splitlines()[1:]
    steps = {fields[3]: (int(fields[0]), int(fields[1]), fields[3]) for fields in map(str.split, lines)}
    return sorted(steps.values())


def most_at_once(steps: list[tuple[int, int, str]]) -> int:
    return max(sum(begin <= start < end for begin, end, _ in steps) for start, _, _ in steps)


PRUNE = (
    "import torch, fastvid_ext\n"
    "tokens = torch.randn(8, 20, 16)\n"
    "print(tuple(torch.ops.fastvid.prune(tokens, tokens[..., 0])[0].shape))"
)


def test_no_nvcc(source, environment, python):
    """The schemas and the CPU path, and both the build and the package say that this is all."""
    printed = succeeds(python, *INSTALL, source, env=environment)
    reason = "no CUDA compiler was found when it was built (nvcc on PATH, CUDA_HOME or CUDACXX)"
    assert f"fastvid: CPU-ONLY BUILD: {reason}" in " ".join(printed.split())
    folder, info = built(python)
    assert (info["cuda"], info["cuda_off"], info["architectures"]) == (None, reason, [])
    assert not (folder / "libfastvid_cuda.so").exists()
    assert succeeds(python, "-c", PRUNE, cwd="/") == "(16, 16)\n"
    assert f"off: fastvid_ext holds no CUDA kernels: {reason}" in succeeds(python, "-m", "fastvid_ext", "info", cwd="/")


def test_cuda_asked_for_without_nvcc(source, environment, python):
    done = run(python, *INSTALL, source, env={**environment, "FASTVID_CUDA": "ON"})
    assert done.returncode != 0
    assert "FASTVID_CUDA=ON, but no CUDA compiler was found: put nvcc on PATH, or set CUDA_HOME or CUDACXX" in " ".join(
        done.stdout.split()
    )


def test_editable_with_a_toolkit_elsewhere_for_one_architecture(source, environment, python):
    """And then only what changed is compiled."""
    nvcc = toolkit.fetched("13.0", ROOT / "build" / "toolkits")
    environment = {**environment, "CUDA_HOME": str(nvcc.parent.parent), "FASTVID_CUDA_ARCHITECTURES": "90"}
    succeeds(python, *INSTALL, "--editable", source, env=environment)
    folder, info = built(python)
    assert folder == source / "fastvid_ext"
    assert info["cuda"].startswith("13.0.")
    assert info["architectures"] == ["sm_90a", "compute_90"]
    library = audit.Library((folder / "libfastvid_cuda.so").read_bytes())
    assert {architecture for architecture, _ in library.gpu_code} == {"sm_90", "compute_90"}
    assert succeeds(python, "-c", PRUNE, cwd="/") == "(16, 16)\n"

    before = build_steps(source)
    begin = time.monotonic()
    succeeds(python, *INSTALL, "--editable", source, env=environment)
    seconds = time.monotonic() - begin
    print(f"\nsecond editable install: {seconds:.1f} s")
    assert build_steps(source) == before
    assert seconds < 10

    with (source / "csrc/cuda/plan.cu").open("a") as file:
        file.write("// changed\n")
    succeeds(python, *INSTALL, "--editable", source, env=environment)
    changed = {Path(output).name for _, _, output in set(build_steps(source)) - set(before)}
    assert changed == {"plan.cu.o", "libfastvid_cuda.so"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_max_jobs(jobs, source, environment, python):
    if jobs > len(os.sched_getaffinity(0)):
        pytest.skip("one core")
    succeeds(python, *INSTALL, source, env={**environment, "MAX_JOBS": str(jobs)})
    assert most_at_once(build_steps(source)) == jobs


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_JOBS", "all", "fastvid_ext: MAX_JOBS: got 'all', want a whole number, at least 1"),
        ("FASTVID_CUDA", "maybe", "FASTVID_CUDA: got MAYBE, want AUTO, ON or OFF"),
        (
            "FASTVID_LOCAL_VERSION",
            "CU-130",
            "fastvid_ext: FASTVID_LOCAL_VERSION: got 'CU-130', want lower-case letters and digits, such as cu130",
        ),
    ],
)
def test_wrong_setting(name, value, message, source, environment, python):
    done = run(python, *INSTALL, source, env={**environment, name: value})
    assert done.returncode != 0
    assert message in done.stdout


def test_no_network(source, environment, python):
    offline = ("unshare", "--map-root-user", "--net")
    if run(*offline, "true").returncode:
        pytest.skip("this user may not make a network namespace")
    reach = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    assert "Network is unreachable" in run(*offline, python, "-c", reach).stdout
    succeeds(*offline, python, *INSTALL, source, env=environment)
    assert succeeds(python, "-c", PRUNE, cwd="/") == "(16, 16)\n"


@pytest.fixture
def python_without_torch(tmp_path) -> Path:
    packages = tmp_path / "packages"
    packages.mkdir()
    for pattern in ("pip*", "setuptools*", "_distutils_hack", "pkg_resources"):
        for found in Path(sysconfig.get_path("purelib")).glob(pattern):
            (packages / found.name).symlink_to(found)
    return virtual_environment(tmp_path / "environment", packages)


def test_no_torch(source, environment, python_without_torch):
    """One line says what is missing and what to do."""
    install = [argument for argument in INSTALL if argument != "--verbose"]
    done = run(python_without_torch, *install, source, env=environment)
    assert done.returncode != 0
    (line,) = (line for line in done.stdout.splitlines() if "fastvid_ext: " in line)
    assert line.strip() == (
        "fastvid_ext: building needs torch >= 2.10 in this Python: `pip install torch`, "
        "then `pip install --no-build-isolation` this package"
    )
    assert "Traceback" not in done.stdout


def test_no_torch_for_cmake(source, environment, python_without_torch):
    configure = ("cmake", "-S", source, "-B", source / "build", f"-DPython3_EXECUTABLE={python_without_torch}")
    done = run(*configure, env=environment)
    assert done.returncode != 0
    assert f"{python_without_torch} has no torch: install torch >= 2.10 there" in " ".join(done.stdout.split())
