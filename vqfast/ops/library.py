"""The library of native ops: as it was installed, else compiled on first use into the user's cache.

Its ops are ``torch.ops.vqfast_native.*``. It calls torch through C functions that are stable since torch 2.10
and that this module hands to it. So one binary fits every Python and every torch since, and is built without
either.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vqfast.files import take_lock
from vqfast.ops import build
from vqfast.ops.contract import Contract

_SAY_AFTER, _GIVE_UP_AFTER = 5.0, 1800.0  # seconds of waiting for another process that compiles
_LOG = logging.getLogger("vqfast")
_loaded: ctypes.CDLL | None = None
_chosen: str | None = None


@functools.cache
def unavailable() -> str | None:
    """Why the library can't be used; ``None`` once it is loaded. The first call may compile it.

    Raises:
        ValueError: ``VQFAST_ISA`` names no instruction set.
    """
    reasons = []
    asked = build.asked_instruction_set()
    for find in (_installed, _compiled) if build.PREBUILT.exists() else (_compiled,):
        try:
            _register(find(), asked)
        except (OSError, RuntimeError, ValueError, AttributeError) as error:
            reasons.append(" ".join(str(error).split()))
        else:
            if reasons:
                warnings.warn(f"vqfast compiled its native library anew: {reasons[0]}", stacklevel=2)
            return None
    reason = "; ".join(reasons)
    if not os.environ.get("VQFAST_BACKEND"):
        warnings.warn(f"vqfast runs plain PyTorch on CPUs, which is slower: {reason}", stacklevel=2)
    return reason


@functools.cache
def contract() -> Contract:
    """The structs and enums of the library.

    Raises:
        RuntimeError: the library can't be used.
    """
    if (reason := unavailable()) is not None or _loaded is None:
        raise RuntimeError(reason)
    return Contract(_loaded.vqfast_contract().decode())


def multiplies_pairs() -> bool:
    """Whether the CPU multiplies pairs of bfloat16 numbers faster than single float32 numbers."""
    return unavailable() is None and _loaded is not None and bool(_loaded.vqfast_multiplies_pairs())


def instruction_set() -> str | None:
    """The instruction set whose kernels run, such as ``"avx2"``; ``None`` where the library can't be used."""
    return _chosen if unavailable() is None else None


def _register(path: Path, asked: str | None) -> None:
    """Loads a library and hands it the functions of torch that it calls, so that it registers its ops.

    Args:
        asked: the instruction set to run; ``None`` for the best one.

    Raises:
        OSError: it can't be loaded.
        AttributeError: it is another library, or torch is older than 2.10.
        RuntimeError: it has no kernels for this CPU, or torch refuses an op.
    """
    global _loaded, _chosen
    library = ctypes.CDLL(str(path))
    library.vqfast_choose.restype = ctypes.c_char_p
    library.vqfast_torch_functions.restype = ctypes.POINTER(ctypes.c_char_p)
    library.vqfast_register.restype = ctypes.c_bool
    library.vqfast_multiplies_pairs.restype = ctypes.c_bool
    library.vqfast_contract.restype = ctypes.c_char_p
    names = itertools.takewhile(lambda name: name is not None, library.vqfast_torch_functions())
    functions = ctypes.CDLL(torch._C.__file__)  # the libraries that it depends on are searched too
    pointers = [ctypes.cast(functions[name.decode()], ctypes.c_void_p) for name in names]
    chosen = library.vqfast_choose(asked and asked.encode())
    if chosen is None:
        raise RuntimeError(f"{path} has no {asked + ' ' if asked else ''}kernels that this CPU runs")
    if not library.vqfast_register((ctypes.c_void_p * len(pointers))(*pointers)):
        raise RuntimeError(f"torch {torch.__version__} doesn't take the ops of {path}")
    _loaded, _chosen = library, chosen.decode()


def _installed() -> Path:
    """The library that was installed.

    One that isn't as it was built might kill its process. Whoever changes it on purpose removes its digest.

    Raises:
        OSError: it can't be loaded, or its digest is that of other bytes.
    """
    if not build.whole(build.PREBUILT):
        reason = build.refusal(build.PREBUILT)
        if reason is None and build.digest_file(build.PREBUILT).exists():
            reason = f"it isn't as it was built, {build.digest_file(build.PREBUILT).name} says"
        if reason is not None:
            raise OSError(f"the installed library {build.PREBUILT} is damaged: {reason}")
    return build.PREBUILT


def _compiled() -> Path:
    """The library of these sources and this compiler in the user's cache, compiled if it isn't there."""
    compiler, own, asked = build.find_compiler(), build.own_instruction_sets(), build.asked_instruction_set()
    if asked is not None:
        if own and asked not in own:
            raise RuntimeError(f"VQFAST_ISA is {asked!r}, which this CPU lacks; it has {', '.join(own)}")
        own = [asked]
    programs = [Path(found).stat() for word in compiler if (found := shutil.which(word))]
    built_by = (
        compiler,
        [(p.st_size, p.st_mtime_ns) for p in programs],
        build.FLAGS,
        build.LEVELS,
        build.INSTRUCTION_SETS,
        own,
    )
    key = build.DIGEST(str(built_by).encode())
    for source in build.sources():
        key.update(source.relative_to(build.SOURCES).as_posix().encode() + source.read_bytes())
    target = _cache() / f"native-{key.hexdigest()[:16]}.so"
    if not _usable(target):
        with _locked(target.with_suffix(".lock")):
            if not _usable(target):  # another process may have compiled it meanwhile
                _LOG.warning("vqfast compiles its native library, once, which may take a minute")
                for name, reason in build.build(target, compiler, own).items():
                    warnings.warn(f"vqfast's native library is without {name}: {reason}", stacklevel=2)
    return target


def _cache() -> Path:
    """A folder that nobody else can write to, as code in it will run.

    Raises:
        RuntimeError: there is none.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = [user / "vqfast", Path(tempfile.gettempdir(), f"vqfast-{_user()}")]
    for folder in folders:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        folder = folder.resolve()
        if _private(folder) and all(_private(above, sticky=True) for above in folder.parents):
            return folder
    names = " and ".join(map(str, folders))
    raise RuntimeError(
        f"others can write to {names}; want XDG_CACHE_HOME to name a folder that is yours alone"
    )


def _private(path: Path, sticky: bool = False) -> bool:
    """Whether only root and the user can write to ``path``.

    With ``sticky``, a sticky folder counts as private: others can't replace files in it.
    """
    info = path.lstat()
    if os.name != "posix":
        return True
    shared = info.st_mode & 0o022 and not (sticky and info.st_mode & stat.S_ISVTX)
    return info.st_uid in (0, _user()) and not shared and not stat.S_ISLNK(info.st_mode)


def _user() -> int:
    return os.geteuid() if os.name == "posix" else 0


def _usable(target: Path) -> bool:
    return target.exists() and _private(target) and build.whole(target)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock ``path``. Waits for another process that compiles, and says so.

    The system frees the lock of a process that dies.

    Raises:
        RuntimeError: it takes too long.
    """
    began, said = time.monotonic(), False
    while (lock := take_lock(path)) is None:
        waited = time.monotonic() - began
        if waited > _GIVE_UP_AFTER:
            raise RuntimeError(f"another process has held {path} for {waited:.0f} s")
        if waited > _SAY_AFTER and not said:
            _LOG.warning("vqfast waits for another process that compiles its native library (%s)", path)
            said = True
        time.sleep(0.1)
    with lock:
        yield
