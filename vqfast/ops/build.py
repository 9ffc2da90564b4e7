"""Compiles ``csrc/`` to one library, with a C++ compiler and nothing else.

Neither Python's nor torch's headers are needed (``library.py`` says why). ``setup.py`` loads this file alone,
without the package.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

INSTALLED = Path(__file__).parents[1] / "csrc"
SOURCES = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "csrc"  # the latter in a checkout
PREBUILT = SOURCES / "native.so"
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-w"]
# Sources in host/ and those named host*.cpp are compiled once, all others for each of these, worst first. The
# library picks the best one that the CPU has when it runs (csrc/host/library.cpp).
INSTRUCTION_SETS: dict[str, list[str]] = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = [
        f"-m{name}" for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
    ]
    INSTRUCTION_SETS["avx512"].append("-mprefer-vector-width=512")
    INSTRUCTION_SETS["avx512bf16"] = [*INSTRUCTION_SETS["avx512"], "-mavx512bf16", "-mavx512vnni"]
CPU = Path("/proc/cpuinfo")
SECONDS = 600  # a compilation that takes longer is stopped
DIGEST = hashlib.sha256
_LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).vqfast_register"


def find_compiler() -> list[str]:
    """The command that compiles C++: ``$CXX``, a program or a command line, else a compiler that is found.

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


def own_instruction_sets() -> list[str]:
    """The instruction sets that this CPU has, the best one last; empty where the system doesn't say."""
    try:
        found = re.search(r"^flags\s*:(.*)", CPU.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        return []
    here = {f"-m{name.replace('_', '')}" for name in found[1].split()}
    needs = {
        name: {f for f in flags if re.fullmatch("-m[a-z0-9]+", f)} for name, flags in INSTRUCTION_SETS.items()
    }
    return [name for name in INSTRUCTION_SETS if needs[name] <= here]


def build(target: Path, compiler: list[str], own: list[str] | None = None) -> dict[str, str]:
    """Compiles the library to ``target``, which appears whole or not at all.

    Args:
        target: a file, whose folder exists.
        compiler: a command and its first arguments.
        own: instruction sets, of which the last one that can be compiled is enough; ``None`` compiles all.

    Returns:
        The instruction sets on which the compiler fails or crashes, which are left out, and its message.

    Raises:
        RuntimeError: it fails on the host's sources or the portable kernels, or its library can't be loaded.
    """
    rounds = [["host", own[-1]], *([name] for name in own[-2::-1])] if own else [["host", *INSTRUCTION_SETS]]
    left_out: dict[str, str] = {}
    objects: list[str] = []
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        for parts in rounds:
            jobs = [(part, source) for part in parts for source in _units(part)]
            made = [f"{folder}/{source.parent.name}-{source.stem}-{part}.o" for part, source in jobs]
            commands = [
                [*compiler, *FLAGS, f"-I{SOURCES}", *_flags(part), "-c", str(source), "-o", name]
                for (part, source), name in zip(jobs, made, strict=True)
            ]
            failures = dict(zip(jobs, _failures(commands), strict=True))
            failed = {
                part: f"{source.relative_to(SOURCES)}: {said}"
                for (part, source), said in failures.items()
                if said
            }
            if reason := failed.get("host") or failed.get("portable"):
                raise RuntimeError(reason)
            left_out |= failed
            objects += [name for (part, _), name in zip(jobs, made, strict=True) if part not in failed]
            if len(failed) < len(set(parts) - {"host"}):  # an instruction set is compiled
                break
        linked = Path(folder, "linked")
        if failure := _failure([*compiler, "-shared", "-o", str(linked), *objects]):
            raise RuntimeError(failure)
        if reason := refusal(linked):
            raise RuntimeError(f"the library that {shlex.join(compiler)} wrote can't be loaded: {reason}")
        with linked.open("rb+") as file:
            digest = DIGEST(file.read()).digest()
            file.write(digest)  # the loader ignores what follows the sections
        linked.replace(target)
    return left_out


def refusal(library: Path) -> str | None:
    """Why the library can't be loaded, else ``None``. Another process tries, as a damaged one may kill it."""
    return _failure([sys.executable or "python3", "-I", "-S", "-c", _LOAD, str(library)])


def whole(library: Path) -> bool:
    """Whether the library is as ``build`` wrote it."""
    try:
        data = library.read_bytes()
    except FileNotFoundError:
        return False
    return DIGEST(data[:-32]).digest() == data[-32:]


def sources() -> list[Path]:
    """All files that the library is compiled from, headers too."""
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".h", ".def"))


def _units(part: str) -> list[Path]:
    """The files that are compiled for an instruction set; for "host", those that are compiled once."""
    host = [path for path in sources() if path.parent.name == "host" or path.stem.startswith("host")]
    kernels = [path for path in sources() if path not in host]
    return [path for path in (host if part == "host" else kernels) if path.suffix == ".cpp"]


def _flags(part: str) -> list[str]:
    return [] if part == "host" else [*INSTRUCTION_SETS[part], f"-DVQFAST_ISA={part}"]


def _failures(commands: list[list[str]]) -> list[str | None]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(pool.map(_failure, commands))
        except BaseException:  # Ctrl-C
            pool.shutdown(cancel_futures=True)
            raise


def _failure(command: list[str]) -> str | None:
    """The message of a command that fails; ``None`` if it succeeds."""
    program = Path(command[0]).name
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"{program} failed: it took more than {SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"{program} was ended by {signal.Signals(-done.returncode).name}"
    said = " ".join(done.stderr.decode(errors="replace").split())
    return f"{program} failed ({done.returncode}): {said[:500]}"
