"""A compiler's command that keeps objects: ``python keep.py FOLDER COMPILER ARGUMENTS`` compiles none twice.

An object is known by the compiler's version, the flags and the preprocessed source, not by paths. So a wheel
that is built of a copy of the sources has the objects of the checkout. All but ``-c`` is passed on.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path


def keeping(folder: Path, compiler: list[str]) -> list[str]:
    """The command of a compiler that keeps its objects in a folder, which nobody else may write to."""
    folder.mkdir(exist_ok=True)
    return [sys.executable, __file__, str(folder), *compiler]


def main(folder: Path, command: list[str]) -> int:
    if "-c" not in command:
        return subprocess.call(command)
    source, made = (command[command.index(option) + 1] for option in ("-c", "-o"))
    flags = [word for word in command if word not in (source, made) and not word.startswith("-I")]
    key = hashlib.sha256(repr(flags).encode())
    preprocess = [word for word in command if word not in ("-o", made)] + ["-E", "-P"]
    for asked in ([command[0], "--version"], preprocess):
        said = subprocess.run(asked, capture_output=True)
        if said.returncode:
            return subprocess.call(command)  # which says what is wrong
        key.update(said.stdout)
    kept = folder / f"{key.hexdigest()}.o"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            if status := subprocess.call(command):
                return status
            shutil.copy(made, kept.with_suffix(".part")).replace(kept)
    shutil.copy(kept, made)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
