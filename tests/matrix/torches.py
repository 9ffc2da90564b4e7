"""Tests vqfast with several versions of torch, numpy and triton: ``python -m tests.matrix.torches FOLDER``.

Each version of torch has a virtual environment of its own in FOLDER: torch, the triton that it asks for, and
one numpy after the other; other packages are this interpreter's. A wheel of torch for GPUs needs gigabytes of
CUDA's libraries to be imported, which a CPU never calls: ``tests.matrix.without_cuda`` puts empty ones in
their places. A row is written into ``docs/versions.md`` as soon as it is known; the environment is removed
after its last row. More arguments are the versions of torch to try; by default all.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from tests.matrix.environments import cases, create, install, passed, versions, write
from tests.matrix.without_cuda import without_cuda

VERSIONS = {  # of torch: of numpy
    "2.10.0": ("2.4.6", "1.26.4"),
    "2.11.0": ("2.4.6", "1.26.4"),
    "2.12.1": ("2.4.6",),
    "2.13.0": ("2.4.6", "1.26.4"),
    "2.15.0": ("2.4.6", "1.26.4"),
}
# the columns: what is in the names of a column's tests, in order; the last takes all others
COLUMNS = {"compile": "graph", "export": "export", "ops": ""}
NATIVE = {
    "tests/ops/test_nearest.py": "native and (any_strides or duplicate or graph)",
    "tests/ops/test_residual.py": "native and odd_sizes",
    "tests/ops/test_masked_conv.py": "native and (odd_sizes or vertical-A and graph)",
    "tests/sampling/executors/test_native.py": "channels_that",
    "tests/nn/test_vq_compile.py": "residual and (one_graph_for or exported)",
    "tests/transforms/test_captured_models.py": "export and (vqvae or wavenet)",
    "tests/matrix/test_graphs.py": "graph",
}
INTERPRETED = {"tests/ops/test_nearest.py": "triton and any_strides and dtype0"}
HEAD = "## PyTorch, NumPy and Triton"
TEXT = """
Each row is an environment with those versions. Each cell says how many of a choice of this package's own
tests passed there, on a CPU: the ops on the C++ backend; `torch.compile(fullgraph=True)` of ops, of layers in
training and, once, by the default compiler; `torch.export` of layers and models; and Triton kernels in
Triton's interpreter. The table is made by `python -m tests.matrix.torches FOLDER`, which has more pairs of
versions than have been run yet. The interpreter of Triton 3.6 asks an array for its only number in a way that
NumPy 2.4 refuses; kernels on a GPU don't pass through it.
"""
VERSIONED = ["torch", "NumPy", "Triton"]
TITLES = [*VERSIONED, "ops", "compile", "export", "kernels interpreted"]


def environment(folder: Path, torch: str) -> Path:
    """The interpreter of an environment with that torch and its triton, made unless it is there."""
    home = folder / f"torch-{torch}"
    python = create(home)
    if (home / "ready").exists():
        return python
    install(python, f"torch=={torch}")
    code = "from importlib.metadata import requires; print(*requires('torch'), sep='\\n')"
    asked = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"^triton==([\w.]+)", asked, re.M)
    if found:
        install(python, f"triton=={found[1]}")
    (packages,) = home.glob("lib/*/site-packages")
    without_cuda(packages / "torch" / "lib")
    (home / "ready").touch()
    return python


def by_column(python: Path, chosen: dict[str, str], interpret: bool) -> dict[str, str]:
    """How many of the chosen tests of each column passed."""
    stems = {Path(file).stem: expression for file, expression in chosen.items()}
    expression = " or ".join(f"({stem} and ({part}))" for stem, part in stems.items())
    variables = {"TRITON_INTERPRET": f"{interpret:d}"}
    variables["TORCHINDUCTOR_CACHE_DIR"] = str(python.parents[1] / "inductor")
    found: dict[str, list[ElementTree.Element]] = defaultdict(list)
    for case in cases(python, chosen, expression, variables):
        name = f"{case.get('classname')}.{case.get('name')}"
        found[next(column for column, part in COLUMNS.items() if part in name)].append(case)
    return {column: passed(of_column) for column, of_column in found.items()}


def row(folder: Path, torch: str, numpy: str) -> list[str]:
    """The cells of an environment."""
    python = environment(folder, torch)
    install(python, f"numpy=={numpy}")
    found = versions(python, "torch", "numpy", "triton")
    assert found[0].partition("+")[0] == torch and found[1] == numpy, found
    cells = by_column(python, NATIVE, False)
    cells["kernels interpreted"] = by_column(python, INTERPRETED, True)["ops"]
    return [*found, *(cells.get(title, "0") for title in TITLES[len(VERSIONED) :])]


def main(folder: Path, torches: list[str]) -> None:
    for torch, numpys in VERSIONS.items():
        for numpy in numpys if not torches or torch in torches else ():
            cells = row(folder, torch, numpy)
            print(cells, flush=True)
            write(HEAD, TEXT, TITLES, cells, same=2)
        shutil.rmtree(folder / f"torch-{torch}", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
