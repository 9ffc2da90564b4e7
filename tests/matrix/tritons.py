"""Compiles and interprets the Triton kernels with several versions of Triton.

``python -m tests.matrix.tritons FOLDER`` makes a virtual environment for each version in FOLDER: Triton, and
a NumPy that its interpreter accepts; other packages are this interpreter's. Each row is written into
``docs/versions.md`` as soon as it is known. More arguments are the versions to try; by default all.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.matrix.environments import ROOT, cases, create, install, passed, versions, write
from tests.ops import test_triton_interpreted as ops
from tests.sampling.executors import test_triton as sampler

VERSIONS = {"3.6.0": "2.3.5", "3.9.0": "2.4.6"}  # of Triton: of NumPy
COLUMNS = {  # the title of each, its files, what pytest chooses in them, and whether kernels are interpreted
    "compiled ahead of time": ([ROOT / "tests/ops/test_triton_compiles.py"], "", False),
    "ops interpreted": (ops.FILES, ops.CHOSEN, True),
    "sampler interpreted": (sampler.FILES, sampler.CHOSEN, True),
    "blocks in threads": (
        [ROOT / "tests/ops/test_triton_blocks.py", ROOT / "tests/sampling/executors/test_triton_blocks.py"],
        "",
        True,
    ),
}
HEAD = "## Triton alone"
TEXT = """
Each row is an environment with those versions, and the PyTorch of the machine. Each cell says how many tests
of the Triton kernels passed: every kernel and tuning compiled ahead of time for sm_80, sm_90, sm_100 and
gfx942, with bounds on memory, registers and instructions; the test matrix of the ops, and that of the
sampler, in Triton's interpreter; and blocks that share memory, each in a thread. The table is made by
`python -m tests.matrix.tritons FOLDER`.
"""
TITLES = ["Triton", "NumPy", *COLUMNS]


def row(folder: Path, triton: str, numpy: str) -> list[str]:
    """The cells of an environment."""
    python = create(folder / f"triton-{triton}")
    for package in (f"triton=={triton}", f"numpy=={numpy}"):
        install(python, package)
    found = versions(python, "triton", "numpy")
    assert found == [triton, numpy], found
    cache = {"TRITON_CACHE_DIR": str(folder / f"triton-{triton}" / "cache")}
    return found + [
        passed(cases(python, files, chosen, {"TRITON_INTERPRET": f"{interpreted:d}", **cache}))
        for files, chosen, interpreted in COLUMNS.values()
    ]


def main(folder: Path, tritons: list[str]) -> None:
    for triton, numpy in VERSIONS.items():
        if not tritons or triton in tritons:
            cells = row(folder, triton, numpy)
            print(cells, flush=True)
            write(HEAD, TEXT, TITLES, cells, same=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
