"""Lets a torch that was built for GPUs be imported without CUDA's libraries, on a machine that has no GPU."""

from __future__ import annotations

import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice, which every function returns
CUDA = ("libcu", "libnv", "libnccl")  # the beginnings of the libraries' names
FUNCTIONS = ("cu", "nccl", "nv", "__cuda")  # and of their functions' names


def without_cuda(folder: Path) -> list[str]:
    """Writes the libraries that torch's own need and that aren't there; gives their names.

    Each function that torch's libraries take from elsewhere is there, and says that there is no device.

    Args:
        folder: ``torch/lib``.
    """
    needed: set[str] = set()
    wanted: set[str] = set()  # functions, with an @ and a version where they have one
    defined: set[str] = set()
    versions: dict[str, set[str]] = defaultdict(set)  # of a library
    for library in folder.glob("*.so*"):
        for line in _said("readelf", "-d", "-V", "-W", str(library)):
            if "(NEEDED)" in line:
                needed.add(line.split("[")[1].rstrip("]"))
            if "File: " in line:
                file = line.split("File: ")[1].split()[0]
            if "Name: " in line and "Flags: " in line and "Index: " not in line:
                versions[file].add(line.split("Name: ")[1].split()[0])
        for line in _said("nm", "-D", str(library)):
            *_, kind, name = line.split()
            if kind in "Uw":
                wanted.add(name)
            else:
                defined.add(name.partition("@")[0])
    missing = sorted(n for n in needed if n.startswith(CUDA) and not (folder / n).exists())
    functions: dict[str, set[str]] = defaultdict(set)  # of a version
    for name in wanted:
        bare, _, version = name.partition("@")
        if bare not in defined and bare.startswith(FUNCTIONS):
            functions[version].add(bare)
    for place, library in enumerate(missing):
        plain = functions[""] if place == 0 else set()
        _write(folder / library, {version: functions[version] for version in versions[library]}, plain)
    return missing


def _write(library: Path, versions: dict[str, set[str]], plain: set[str]) -> None:
    """Compiles a library of functions that have versions, and of plain ones."""
    names = plain.union(*versions.values())
    code = "".join(f"long {name}(void) {{ return {NO_DEVICE}; }}\n" for name in sorted(names))
    nodes = [f"{v} {{ global: {' '.join(f'{n};' for n in sorted(own))} }};" for v, own in versions.items()]
    with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
        script.write("\n".join(nodes))
        script.flush()
        command = ["cc", "-shared", "-fPIC", "-fno-builtin", "-w", f"-Wl,-soname,{library.name}"]
        command += [f"-Wl,--version-script,{script.name}"] if nodes else []
        subprocess.run([*command, "-x", "c", "-", "-o", str(library)], input=code, text=True, check=True)


def _said(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
