"""Compiles ``csrc/`` to one library with a C++ compiler alone; ``setup.py`` loads this file by itself.

The library needs nothing of the Python and the torch that run it, see ``library.py``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

INSTALLED = Path(__file__).parents[1] / "csrc"
SOURCES = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "csrc"  # or in a checkout
PREBUILT = SOURCES / "native.so"
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-w"]
# The kernels are compiled once for each of these; library*.cpp once, which picks one at run time.
VARIANTS: dict[str, list[str]] = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = [f"-m{name}" for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")]
    VARIANTS["avx512"].append("-mprefer-vector-width=512")
    VARIANTS["avx512bf16"] = [*VARIANTS["avx512"], "-mavx512bf16", "-mavx512vnni"]
SECONDS = 600  # that one compilation may take
DIGEST = hashlib.sha256
_LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).vqfast_register"


def find_compiler() -> list[str]:
    """The command that compiles C++: ``$CXX``, a program or a command line, else the first compiler found.

    Raises:
        RuntimeError: there is none.
    """
    asked = os.environ.get("CXX", "").strip()
    try:
        commands = [[asked], shlex.split(asked)] if asked else [["g++"], ["clang++"], ["c++"]]
    except ValueError as error:
        raise RuntimeError(f"CXX is {asked!r}; want a command line ({error})") from None
    for name, *arguments in commands:
        if found := shutil.which(name):
            return [found, *arguments]
    raise RuntimeError(f"no C++ compiler ({asked or 'g++, clang++, c++'}) found")


def build(target: Path, compiler: list[str]) -> dict[str, str]:
    """Compiles the library to ``target``, which appears whole or not at all.

    Returns:
        The variants that the compiler refuses or crashes on, which are left out, and what it said.

    Raises:
        RuntimeError: it refuses more than that, or what it wrote can't be loaded.
    """
    jobs = {}  # one for each object: its variant, if any, its source and its flags
    for source in sorted(SOURCES.glob("*.cpp")):
        if source.stem.startswith("library"):
            jobs[f"{source.stem}.o"] = (None, source, [])
            continue
        for name, flags in VARIANTS.items():
            jobs[f"{source.stem}-{name}.o"] = (name, source, [*flags, f"-DVQFAST_ISA={name}"])
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        commands = [
            [*compiler, *FLAGS, *flags, "-c", str(source), "-o", f"{folder}/{name}"]
            for name, (_, source, flags) in jobs.items()
        ]
        left_out = {}
        for (variant, _, _), failure in zip(jobs.values(), _failures(commands), strict=True):
            if failure and variant in (None, "portable"):
                raise RuntimeError(failure)
            if failure:
                left_out.setdefault(variant, failure)
        objects = [f"{folder}/{name}" for name, (variant, _, _) in jobs.items() if variant not in left_out]
        linked = Path(folder, "linked")
        if failure := _failure([*compiler, "-shared", "-o", str(linked), *objects]):
            raise RuntimeError(failure)
        if reason := refusal(linked):
            raise RuntimeError(f"what {shlex.join(compiler)} wrote can't be loaded: {reason}")
        with linked.open("rb+") as file:
            digest = DIGEST(file.read()).digest()
            file.write(digest)  # the loader ignores what follows the sections
        linked.replace(target)
    return left_out


def refusal(library: Path) -> str | None:
    """Why another process can't load the library; ``None`` when it can. A damaged one kills its process."""
    return _failure([sys.executable, "-I", "-S", "-c", _LOAD, str(library)])


def whole(library: Path) -> bool:
    """Whether the library is as ``build`` made it."""
    try:
        data = library.read_bytes()
    except FileNotFoundError:
        return False
    return DIGEST(data[:-32]).digest() == data[-32:]


def _failures(commands: list[list[str]]) -> list[str | None]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(pool.map(_failure, commands))
        except BaseException:  # Ctrl-C
            pool.shutdown(cancel_futures=True)
            raise


def _failure(command: list[str]) -> str | None:
    """What a command says that fails, the end of it."""
    program = Path(command[0]).name
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"{program} failed: it took more than {SECONDS} s"
    if done.returncode == 0:
        return None
    said = " ".join(done.stderr.decode(errors="replace").split())
    return f"{program} failed ({done.returncode}): {said[:500]}"
