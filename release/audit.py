"""Checks of a wheel: ``python release/audit.py dist/*.whl``.

A wheel has to run under every Python and torch that it claims, and on every Linux that its platform tag claims. So its
libraries may import from torch nothing but the stable C interface, nothing from CPython, and no newer glibc than the
tag says; and nothing of the build machine may be in them.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

ROOT = str(Path(__file__).resolve().parent.parent)
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libc10.so")
STABLE_C_INTERFACE = re.compile(r"(aoti_)?torch_\w+")
PYTHON_SYMBOL = re.compile(r"_?Py[A-Z_]\w*")
MOST_BYTES = 10 * 10**6

FATBIN_MAGIC = 0xBA55ED50
FATBIN_PTX = 1
FATBIN_COMPRESSED = 0x2000 | 0x8000  # LZ4 or zstd


class Library:
    """What a shared library asks for and offers, and the GPU code in it."""

    def __init__(self, content: bytes) -> None:
        elf = ELFFile(io.BytesIO(content))
        dynamic = elf.get_section_by_name(".dynamic")
        symbols = elf.get_section_by_name(".dynsym")
        versions = elf.get_section_by_name(".gnu.version")
        self.needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
        self.search_paths = [tag.runpath for tag in dynamic.iter_tags("DT_RUNPATH")]
        self.search_paths += [tag.rpath for tag in dynamic.iter_tags("DT_RPATH")]
        self.defined: set[str] = set()
        self.imported: set[str] = set()  # without a version: not from glibc, libstdc++ or libgcc
        for index, symbol in enumerate(symbols.iter_symbols()):
            version = versions.get_symbol(index)["ndx"] if versions else "VER_NDX_GLOBAL"
            if symbol["st_shndx"] != "SHN_UNDEF":
                self.defined.add(symbol.name)
            elif symbol["st_info"]["bind"] != "STB_WEAK" and version in ("VER_NDX_GLOBAL", "VER_NDX_LOCAL"):
                self.imported.add(symbol.name)
        self.imported.discard("")
        fatbin = elf.get_section_by_name(".nv_fatbin")
        self.gpu_code = list(gpu_code(fatbin.data())) if fatbin else []


def gpu_code(fatbin: bytes):
    """Yields (architecture such as "sm_90" or "compute_120", whether it is compressed) for each entry of a fatbin."""
    position = 0
    while position < len(fatbin):
        magic, _, header, size = struct.unpack_from("<IHHQ", fatbin, position)
        if magic != FATBIN_MAGIC:
            raise ValueError(f"no fatbin at byte {position}: 0x{magic:08x}")
        position += header
        end = position + size
        while position < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", fatbin, position)
            (architecture,) = struct.unpack_from("<I", fatbin, position + 28)
            (flags,) = struct.unpack_from("<Q", fatbin, position + 40)
            prefix = "compute" if kind == FATBIN_PTX else "sm"
            yield f"{prefix}_{architecture}", bool(flags & FATBIN_COMPRESSED)
            position += header + size
        while position < len(fatbin) and fatbin[position] == 0:  # between the fatbins of two sources
            position += 1


def lowest_platform(wheel: Path) -> str:
    """The oldest manylinux on which auditwheel says that this wheel runs, torch's own libraries left aside."""
    show = [sys.executable, "-m", "auditwheel", "show", wheel]
    printed = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    by_symbols = re.search(r'constrains\s+the\s+platform\s+tag\s+to\s+"(\w+)"', printed)
    return (by_symbols or re.search(r'following\s+platform\s+tag:\s+"(\w+)"', printed))[1]


def problems(wheel: Path) -> list[str]:
    """Everything that is wrong with a wheel, a line each."""
    found = []

    def require(holds: bool, message: str) -> None:
        if not holds:
            found.append(message)

    _, version, python, abi, platform = wheel.stem.split("-")
    require((python, abi) == ("py3", "none"), f"tagged {python}-{abi}, want py3-none")
    require(bool(re.fullmatch(r"manylinux_2_\d+_x86_64", platform)), f"platform {platform}, want one manylinux_2_NN")
    require(platform == (lowest := lowest_platform(wheel)), f"platform {platform}, but auditwheel says {lowest}")
    require(wheel.stat().st_size < MOST_BYTES, f"{wheel.stat().st_size} bytes, want fewer than {MOST_BYTES}")

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = json.loads(archive.read("fastvid_ext/build_info.json"))
        contents = {Path(name).name: archive.read(name) for name in names if ".so" in Path(name).name}
    libraries = {name: Library(content) for name, content in contents.items()}
    on_cuda = info["cuda"] is not None
    wanted = {"libfastvid.so", "libfastvid_cuda.so"} if on_cuda else {"libfastvid.so"}
    require(set(libraries) == wanted, f"libraries {sorted(libraries)}, want {sorted(wanted)}")
    label = "cu" + "".join(info["cuda"].split(".")[:2]) if on_cuda else "cpu"
    require(version == f"{info['version']}+{label}", f"version {version}, want {info['version']}+{label}")
    require("fastvid_ext/py.typed" in names, "no py.typed")
    strangers = sorted({name.split("/")[0] for name in names} - {"fastvid_ext", f"fastvid_ext-{version}.dist-info"})
    require(not strangers, f"top-level folders {strangers}")

    offered = set().union(*(library.defined for library in libraries.values()))
    for name, library in libraries.items():
        foreign = {symbol for symbol in library.imported - offered if not STABLE_C_INTERFACE.fullmatch(symbol)}
        require(not foreign, f"{name} imports {sorted(foreign)}: from torch, only aoti_torch_* and torch_* are stable")
        python_symbols = {s for s in library.imported | library.defined if PYTHON_SYMBOL.fullmatch(s)}
        require(not python_symbols, f"{name} refers to CPython: {sorted(python_symbols)}")
        missing = set(TORCH_LIBRARIES) - library.needed
        require(not missing, f"{name} does not name {sorted(missing)} as needed, where torch's symbols may lie")
        require(set(library.search_paths) <= {"$ORIGIN"}, f"{name} searches {library.search_paths}")
        require(ROOT.encode() not in contents[name], f"{name} names the folder {ROOT} of this machine")

    if on_cuda and "libfastvid_cuda.so" in libraries:
        code = libraries["libfastvid_cuda.so"].gpu_code
        architectures = {architecture for architecture, _ in code}
        # The entries do not tell an architecture's own features (sm_90a) from its common ones.
        require(
            architectures == {name.removesuffix("a") for name in info["architectures"]},
            f"GPU code for {sorted(architectures)}, but build_info.json says {info['architectures']}",
        )
        loose = {architecture for architecture, compressed in code if not compressed}
        require(not loose, f"GPU code for {sorted(loose)} is not compressed")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    failed = False
    for wheel in parser.parse_args().wheels:
        found = problems(wheel)
        failed |= bool(found)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {'; '.join(found) or 'all checks passed'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
