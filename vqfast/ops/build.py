"""Compiles ``csrc/`` to one library, with a C++ compiler and nothing else.

Neither Python's nor torch's headers are needed (``library.py`` says why). ``setup.py`` loads this file alone,
without the package.
"""

from __future__ import annotations

import ctypes
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
# By folder, where -O3 takes half as long again for code that is as fast.
LEVELS = {"sampler": ["-O2"], "host": ["-Os"]}
# Without symbols. Weak kernels that aren't compiled are null: macOS wants to be told that they may be.
LINKING = ["-Wl,-undefined,dynamic_lookup", "-Wl,-x"] if sys.platform == "darwin" else ["-s"]


def instruction_sets(machine: str) -> dict[str, list[str]]:
    """The instruction sets of a machine (``platform.machine()``), worst first, with the compiler's flags.

    Sources in host/ and those named host*.cpp are compiled once, all others for each of these. The library
    picks the best one that the CPU has when it runs (csrc/host/library.cpp).
    """
    sets: dict[str, list[str]] = {"portable": []}
    if machine in ("x86_64", "AMD64"):
        sets["avx2"] = ["-mavx2", "-mfma"]
        sets["avx512"] = [f"-m{name}" for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")]
        sets["avx512"].append("-mprefer-vector-width=512")
        sets["avx512bf16"] = [*sets["avx512"], "-mavx512bf16", "-mavx512vnni"]
        sets["amx"] = [*sets["avx512bf16"], "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
    elif machine in ("aarch64", "arm64"):
        sets["neon"] = ["-DVQFAST_NEON"]  # every such CPU has its instructions
    return sets


INSTRUCTION_SETS = instruction_sets(platform.machine())
CPU = Path("/proc/cpuinfo")
SECONDS = 600  # a compilation that takes longer is stopped
DIGEST = hashlib.sha256
_LOAD = """
import ctypes, sys
try:
    ctypes.CDLL(sys.argv[1]).vqfast_register
except (OSError, AttributeError) as error:
    sys.exit(str(error))
"""


def find_compiler() -> list[str]:
    """The command that compiles C++: ``$CXX``, a program or a command line, else a compiler that is found.

    Raises:
        RuntimeError: there is none, or the native library doesn't run on this system.
    """
    if os.name == "nt":
        raise RuntimeError("there is no native library for Windows yet")
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
        found = re.search(r"^(?:flags|Features)\s*:(.*)", CPU.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        return []
    here = {f"-m{name.replace('_', '')}" for name in found[1].split()}
    needs = {
        name: {f"-m{f[2:].replace('-', '')}" for f in flags if re.fullmatch("-m[a-z0-9-]+", f)}
        for name, flags in INSTRUCTION_SETS.items()
    }
    return [name for name in INSTRUCTION_SETS if needs[name] <= here and (name != "amx" or _may_use_tiles())]


def _may_use_tiles() -> bool:
    """Whether Linux lets this process use the CPU's tiles (AMX), which a sandbox may forbid."""
    arch_prctl, allow, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, allow, tile_data) == 0)


def asked_instruction_set() -> str | None:
    """The instruction set that ``VQFAST_ISA`` asks for, if any.

    Raises:
        ValueError: it names none of this machine's.
    """
    name = os.environ.get("VQFAST_ISA") or None
    if name is not None and name not in INSTRUCTION_SETS:
        raise ValueError(f"VQFAST_ISA is {name!r}; want one of {', '.join(INSTRUCTION_SETS)}")
    return name


def build(
    target: Path, compiler: list[str], own: list[str] | None = None, *, foreign: bool = False
) -> dict[str, str]:
    """Compiles the library to ``target``, with its digest beside it. Both appear whole or not at all.

    Args:
        target: a file, whose folder exists.
        compiler: a command and its first arguments.
        own: instruction sets, of which the last one that can be compiled is enough; ``None`` compiles all.
        foreign: the compiler's library is for another machine, so that it isn't tried here.

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
            # the longest first, so that no core is left without one while it goes on
            jobs.sort(key=lambda job: _size(job[1]), reverse=True)
            made = [f"{folder}/{source.parent.name}-{source.stem}-{part}.o" for part, source in jobs]
            commands = [
                [*compiler, *FLAGS, f"-I{SOURCES}", *_flags(part, source), "-c", str(source), "-o", name]
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
        if failure := _failure([*compiler, "-shared", *LINKING, "-o", str(linked), *objects]):
            raise RuntimeError(failure)
        if not foreign and (reason := refusal(linked)):
            raise RuntimeError(f"the library that {shlex.join(compiler)} wrote can't be loaded: {reason}")
        digest = Path(folder, "digest")
        digest.write_text(f"{DIGEST(linked.read_bytes()).hexdigest()}  {target.name}\n")
        digest.replace(digest_file(target))  # one that is there without its library fits no other library
        linked.replace(target)
    return left_out


def digest_file(library: Path) -> Path:
    """The file beside a library by which ``whole`` knows it, as ``sha256sum`` writes it.

    It isn't a part of the library, which may be signed.
    """
    return library.with_suffix(".sha256")


def refusal(library: Path) -> str | None:
    """The loader's reason not to load the library, else ``None``.

    Another process tries, as a damaged library may kill it.
    """
    reason = _failure([sys.executable or "python3", "-I", "-S", "-c", _LOAD, str(library)])
    return reason and reason.rpartition("failed (1): ")[2]


def whole(library: Path) -> bool:
    """Whether the library is as ``build`` wrote it."""
    try:
        said = digest_file(library).read_bytes().split()
        return said[:1] == [DIGEST(library.read_bytes()).hexdigest().encode()]
    except OSError:
        return False


def symbol_versions(library: Path) -> dict[str, tuple[int, ...]]:
    """The newest version of each of the system's libraries that a library for Linux asks for.

    A text in the library that looks like a version counts as one.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, numbers in re.findall(
        rb"\0(GLIBC|GLIBCXX|CXXABI|GCC)_(\d+(?:\.\d+)*)(?=\0)", library.read_bytes()
    ):
        version = tuple(map(int, numbers.split(b".")))
        found[name.decode()] = max(found.get(name.decode(), ()), version)
    return found


def sources() -> list[Path]:
    """All files that the library is compiled from, headers too."""
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".h", ".def"))


def _units(part: str) -> list[Path]:
    """The files that are compiled for an instruction set; for "host", the one that is compiled once."""
    if part == "host":
        return [SOURCES / "host" / "host.cpp"]  # it includes those of the folders
    return [path for path in sources() if path.suffix == ".cpp" and not _is_host(path)]


def _is_host(source: Path) -> bool:
    return source.parent.name == "host" or source.stem.startswith("host")


def _flags(part: str, source: Path) -> list[str]:
    level = LEVELS.get(source.parent.name, [])
    return level if part == "host" else [*level, *INSTRUCTION_SETS[part], f"-DVQFAST_ISA={part}"]


def _size(source: Path) -> int:
    """About how long a file is compiled: the bytes of what it includes, host sides or a folder's kernels."""
    host = _is_host(source)
    included = (path for path in sources() if _is_host(path) == host)
    return sum(path.stat().st_size for path in included if host or path.parent == source.parent)


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
