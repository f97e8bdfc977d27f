"""That the checks of release/audit.py pass what `make wheels` built, and find what they look for."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import audit
import pytest


def changed(wheel: Path, folder: Path, contents: dict[str, bytes], name: str | None = None) -> Path:
    """A copy of a wheel with other files in it."""
    copy = folder / (name or wheel.name)
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            if member not in contents:
                new.writestr(member, old.read(member))
        for member, content in contents.items():
            new.writestr(member, content)
    return copy


def test_what_was_built(pytestconfig):
    wheels = sorted(pytestconfig.getoption("dist").glob("*.whl"))
    assert wheels
    assert {wheel.name: audit.problems(wheel) for wheel in wheels} == {wheel.name: [] for wheel in wheels}


def test_platform_older_than_the_libraries(cpu_wheel, tmp_path):
    name = re.sub(r"manylinux_2_\d+", "manylinux_2_17", cpu_wheel.name)
    (problem,) = audit.problems(shutil.copy2(cpu_wheel, tmp_path / name))
    assert problem.startswith("platform manylinux_2_17_x86_64, but auditwheel says manylinux_2_")


def test_tagged_for_one_python(cpu_wheel, tmp_path):
    name = cpu_wheel.name.replace("py3-none", "cp311-cp311")
    assert audit.problems(shutil.copy2(cpu_wheel, tmp_path / name)) == ["tagged cp311-cp311, want py3-none"]


def test_library_that_binds_to_one_torch_and_python(cpu_wheel, tmp_path):
    code = (
        "void _ZN2at6TensorC1Ev(void); void Py_Initialize(void); void f(void) { _ZN2at6TensorC1Ev(); Py_Initialize(); }"
    )
    library = tmp_path / "libfastvid.so"
    command = ["cc", "-shared", "-fPIC", "-Wl,-rpath,/opt/torch/lib", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=code, text=True, check=True)
    found = audit.problems(changed(cpu_wheel, tmp_path, {"fastvid_ext/libfastvid.so": library.read_bytes()}))
    for problem in (
        "libfastvid.so imports ['Py_Initialize', '_ZN2at6TensorC1Ev']: from torch, only aoti_torch_* and torch_* are "
        "stable",
        "libfastvid.so refers to CPython: ['Py_Initialize']",
        "libfastvid.so does not name ['libc10.so', 'libtorch.so', 'libtorch_cpu.so'] as needed, "
        "where torch's symbols may lie",
        "libfastvid.so searches ['/opt/torch/lib']",
    ):
        assert problem in found


def test_build_info_of_another_build(cuda_wheel, tmp_path):
    member = "fastvid_ext/build_info.json"
    with zipfile.ZipFile(cuda_wheel) as archive:
        info = json.loads(archive.read(member))
    architectures = [name.removesuffix("a") for name in info["architectures"]]  # the fatbin's names
    info["architectures"] = ["sm_70"]
    (problem,) = audit.problems(changed(cuda_wheel, tmp_path, {member: json.dumps(info).encode()}))
    assert problem == f"GPU code for {sorted(architectures)}, but build_info.json says ['sm_70']"


def test_library_that_does_not_belong(cpu_wheel, tmp_path):
    """Such as one that auditwheel grafted."""
    with zipfile.ZipFile(cpu_wheel) as archive:
        library = archive.read("fastvid_ext/libfastvid.so")
    found = audit.problems(changed(cpu_wheel, tmp_path, {"fastvid_ext.libs/libgomp.so.1": library}))
    assert "libraries ['libfastvid.so', 'libgomp.so.1'], want ['libfastvid.so']" in found
    assert "top-level folders ['fastvid_ext.libs']" in found


def test_too_large(cpu_wheel, monkeypatch):
    monkeypatch.setattr(audit, "MOST_BYTES", 10**4)
    assert audit.problems(cpu_wheel) == [f"{cpu_wheel.stat().st_size} bytes, want fewer than 10000"]


@pytest.mark.parametrize(("flags", "compressed"), [(0x11, False), (0x2011, True), (0x8011, True)])
def test_gpu_code(flags, compressed):
    """Two entries of a fatbin, and another fatbin after a gap."""
    body = b"\1" * 16

    def entry(kind: int, architecture: int) -> bytes:
        header = struct.pack("<HHIQIIIIQQ", kind, 0x101, 64, len(body), 0, 0, 0, architecture, 0, flags)
        return header.ljust(64, b"\0") + body

    def fatbin(*entries: bytes) -> bytes:
        return struct.pack("<IHHQ", audit.FATBIN_MAGIC, 1, 16, len(b"".join(entries))) + b"".join(entries)

    section = fatbin(entry(2, 90), entry(1, 120)) + b"\0" * 8 + fatbin(entry(2, 80))
    assert list(audit.gpu_code(section)) == [("sm_90", compressed), ("compute_120", compressed), ("sm_80", compressed)]
