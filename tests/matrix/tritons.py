"""Compiles and interprets the Triton kernels with several versions of Triton.

``python -m tests.matrix.tritons FOLDER`` makes a virtual environment for each version in FOLDER: Triton, and
a NumPy that its interpreter accepts; other packages are this interpreter's. Each cell is written into
``docs/versions.md`` as soon as it is known. More arguments are the versions to try; by default all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.matrix.environments import cases, create, install, passed, versions, write

VERSIONS = {"3.6.0": "2.3.5", "3.9.0": "2.4.6"}  # of Triton: of NumPy
COLUMNS = {  # the title of each, its files, and what pytest chooses in them
    "compiled ahead of time": (["tests/ops/test_triton_compiles.py"], ""),
    "ops interpreted": (["tests/ops/test_triton_interpreted.py"], ""),
    "sampler interpreted": (["tests/sampling/executors/test_triton.py"], "in_the_interpreter"),
    "blocks in threads": (
        ["tests/ops/test_triton_blocks.py", "tests/sampling/executors/test_triton_blocks.py"],
        "in_the_interpreter",
    ),
}
HEAD = "## Triton alone"
TEXT = """
Each row is an environment with those versions, and the PyTorch of the machine. Each cell says how many tests
of the Triton kernels passed: every kernel and tuning compiled ahead of time for one of sm_80, sm_90 and
sm_100, and for gfx942, with bounds on memory, registers and instructions; and in Triton's interpreter the
matrices of the ops, that of the sampler, and blocks that share memory, each in a thread. Of these each test
runs a whole file, or several, in a process. The table is made by `python -m tests.matrix.tritons FOLDER`.
"""
TITLES = ["Triton", "NumPy", *COLUMNS]


def rows(folder: Path, triton: str, numpy: str) -> Iterator[list[str]]:
    """The cells of an environment, after each that is new."""
    python = create(folder / f"triton-{triton}")
    for package in (f"triton=={triton}", f"numpy=={numpy}"):
        install(python, package)
    found = versions(python, "triton", "numpy")
    assert found == [triton, numpy], found
    cache = {"TRITON_CACHE_DIR": str(folder / f"triton-{triton}" / "cache")}
    counts = dict.fromkeys(COLUMNS, "not run")
    for title, (files, chosen) in COLUMNS.items():
        counts[title] = passed(cases(python, files, chosen, cache))
        yield found + list(counts.values())


def main(folder: Path, tritons: list[str]) -> None:
    for triton, numpy in VERSIONS.items():
        for cells in rows(folder, triton, numpy) if not tritons or triton in tritons else ():
            print(cells, flush=True)
            write(HEAD, TEXT, TITLES, cells, same=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
