"""The library of native ops: built by ``setup.py``, else compiled on first use into the user's cache.

Its ops are ``torch.ops.vqfast_native.*``. The stable ABI makes one binary fit every Python and torch >= 2.10.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

INSTALLED = Path(__file__).parents[1] / "csrc"
SOURCES = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "csrc"  # or in a checkout
PREBUILT = SOURCES / "native.so"
FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-w",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
# The kernels are compiled once for each of these; library*.cpp once, which picks one at run time.
VARIANTS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = [f"-m{name}" for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")]
    VARIANTS["avx512"].append("-mprefer-vector-width=512")
    VARIANTS["avx512bf16"] = [*VARIANTS["avx512"], "-mavx512bf16", "-mavx512vnni"]
DIGEST = hashlib.sha256


@functools.cache
def unavailable() -> str | None:
    """Why the library can't be used, ``None`` once it is loaded. The first call may compile it."""
    try:
        torch.ops.load_library(str(PREBUILT if PREBUILT.exists() else _compiled_once()))
        return None
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
    if not os.environ.get("VQFAST_BACKEND"):
        warnings.warn(f"vqfast runs plain PyTorch on CPUs, which is slower: {reason}", stacklevel=2)
    return reason


def find_compiler() -> Path:
    """The C++ compiler: ``$CXX``, else the first one found.

    Raises:
        RuntimeError: there is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for name in names:
        if found := shutil.which(name):
            return Path(found).resolve()
    raise RuntimeError(f"no C++ compiler ({', '.join(names)}) found")


def build(target: Path, compiler: Path) -> None:
    """Compiles the library to ``target``, which appears whole or not at all.

    Raises:
        RuntimeError: the compiler refuses; an instruction set that it doesn't know is left out.
    """
    include = f"-I{Path(torch.__file__).parent / 'include'}"
    jobs = {}
    for source in sorted(SOURCES.glob("*.cpp")):
        if source.stem.startswith("library"):
            jobs[source.stem] = (source.name, [include])
            continue
        for name, flags in VARIANTS.items():
            jobs[f"{source.stem}-{name}"] = (source.name, [*flags, f"-DVQFAST_ISA={name}"])
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        started = {
            name: subprocess.Popen(
                [compiler, *FLAGS, *flags, "-c", SOURCES / source, "-o", f"{folder}/{name}.o"],
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, (source, flags) in jobs.items()
        }
        errors = {name: process.communicate()[1] for name, process in started.items()}
        objects = []
        for name, process in started.items():
            if process.returncode == 0:
                objects.append(f"{folder}/{name}.o")
            elif name.startswith("library") or name.endswith("portable"):
                raise RuntimeError(f"{compiler} failed: {errors[name][:500]}")
        torch_libraries = Path(torch.__file__).parent / "lib"
        linked = subprocess.run(
            [compiler, "-shared", "-o", f"{folder}/linked", *objects, f"-L{torch_libraries}", "-ltorch_cpu"],
            stderr=subprocess.PIPE,
            text=True,
        )
        if linked.returncode != 0:
            raise RuntimeError(f"{compiler} failed: {linked.stderr[:500]}")
        with Path(folder, "linked").open("rb+") as file:
            digest = DIGEST(file.read()).digest()
            file.write(digest)  # the loader ignores what follows the sections
        Path(folder, "linked").replace(target)


def _compiled_once() -> Path:
    """The compiled library of these sources in the user's cache."""
    compiler = find_compiler()
    stamp = compiler.stat()
    built_by = (torch.__version__, compiler, stamp.st_size, stamp.st_mtime_ns, FLAGS, VARIANTS)
    key = DIGEST(str(built_by).encode())
    for source in sorted(SOURCES.glob("*.[ch]*")):
        key.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqfast"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = cache / f"native-{key.hexdigest()[:16]}.so"
    if not _whole(target):
        with _locked(target.with_suffix(".lock")):
            if not _whole(target):  # another process may have compiled it meanwhile
                build(target, compiler)
    return target


def _whole(target: Path) -> bool:
    if not target.exists():
        return False
    data = target.read_bytes()
    return DIGEST(data[:-32]).digest() == data[-32:]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for other processes; the system frees the lock of one that dies."""
    try:
        import fcntl
    except ImportError:
        raise RuntimeError("compiling on first use needs a POSIX system") from None
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
