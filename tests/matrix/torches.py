"""Tests vqfast with several versions of torch, numpy and triton: ``python -m tests.matrix.torches FOLDER``.

Each version of torch has a virtual environment of its own in FOLDER: torch, the triton that it asks for, and
one numpy after the other; other packages are this interpreter's. A wheel of torch for GPUs needs gigabytes of
CUDA's libraries to be imported, which a CPU never calls: ``tests.matrix.without_cuda`` puts empty ones in
their places. A row is written into ``docs/versions.md`` as soon as it is known; the environment is removed
after its last row. More arguments are the versions of torch to try; by default all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from tests.matrix.__main__ import ROOT, TABLE
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
Triton's interpreter. The table is made by `python -m tests.matrix.torches FOLDER`, which has more versions
than have been run yet. The interpreter of Triton 3.6 asks an array for its only number in a way that NumPy
2.4 refuses; kernels on a GPU don't pass through it.
"""
VERSIONED = ["torch", "NumPy", "Triton"]
TITLES = [*VERSIONED, "ops", "compile", "export", "kernels interpreted"]


def environment(folder: Path, torch: str) -> Path:
    """The interpreter of an environment with that torch and its triton, made unless it is there."""
    home = folder / f"torch-{torch}"
    python = home / "bin" / "python"
    if (home / "ready").exists():
        return python
    venv.create(home, with_pip=False, symlinks=True)
    behind = [path for path in sys.path if path.endswith("-packages")]
    (packages,) = home.glob("lib/*/site-packages")
    (packages / "behind.pth").write_text("\n".join(behind), encoding="utf-8")
    install(python, f"torch=={torch}")
    code = "from importlib.metadata import requires; print(*requires('torch'), sep='\\n')"
    asked = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"^triton==([\w.]+)", asked, re.M)
    if found:
        install(python, f"triton=={found[1]}")
    without_cuda(packages / "torch" / "lib")
    (home / "ready").touch()
    return python


def install(python: Path, package: str) -> None:
    """Installs a version of a package, if possible of a wheel in the folder, and nothing that it needs."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--find-links", str(python.parents[2]), package], check=True)


def passed(python: Path, chosen: dict[str, str], interpret: bool) -> dict[str, str]:
    """How many of the chosen tests of each column passed, such as ``"12"`` or ``"11 of 12"``."""
    total: dict[str, int] = defaultdict(int)
    bad: dict[str, int] = defaultdict(int)
    for case in _cases(python, chosen, interpret):
        name = f"{case.get('classname')}.{case.get('name')}"
        column = next(column for column, part in COLUMNS.items() if part in name)
        if case.find("skipped") is None:
            total[column] += 1
            bad[column] += any(case.find(kind) is not None for kind in ("failure", "error"))
    counts = {column: f"{num - bad[column]} of {num}" for column, num in total.items()}
    return {column: str(total[column]) if not bad[column] else counts[column] for column in total}


def _cases(python: Path, chosen: dict[str, str], interpret: bool) -> list[ElementTree.Element]:
    report = python.parents[1] / "report.xml"
    stems = {Path(file).stem: expression for file, expression in chosen.items()}
    expression = " or ".join(f"({stem} and ({part}))" for stem, part in stems.items())
    command = [str(python), "-m", "pytest", *chosen, "-k", expression, f"--junitxml={report}", "--tb=short"]
    path = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1" if interpret else "0"}
    path["TORCHINDUCTOR_CACHE_DIR"] = str(python.parents[1] / "inductor")
    subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, env=path)
    return list(ElementTree.parse(report).iter("testcase"))


def row(folder: Path, torch: str, numpy: str) -> list[str]:
    """The cells of an environment."""
    python = environment(folder, torch)
    install(python, f"numpy=={numpy}")
    code = "import numpy, torch, triton; print(torch.__version__, numpy.__version__, triton.__version__)"
    done = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    versions = done.stdout.split()
    assert versions[0].partition("+")[0] == torch and versions[1] == numpy, versions
    cells = passed(python, NATIVE, False)
    cells["kernels interpreted"] = passed(python, INTERPRETED, True)["ops"]
    return [*versions, *(cells.get(title, "0") for title in TITLES[len(VERSIONED) :])]


def write(cells: list[str]) -> None:
    """Puts a row into the table, in place of one of the same versions."""
    page = TABLE.read_text(encoding="utf-8")
    before, _, section = page.partition(HEAD)
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    rows = sorted([each for each in rows if each[:2] != cells[:2]] + [cells])
    lines = [f"| {' | '.join(each)} |" for each in [TITLES, ["---"] * len(TITLES), *rows]]
    section = "\n".join([HEAD, TEXT, *lines])
    TABLE.write_text(f"{before.rstrip()}\n\n{section}\n", encoding="utf-8")


def main(folder: Path, torches: list[str]) -> None:
    for torch, numpys in VERSIONS.items():
        for numpy in numpys if not torches or torch in torches else ():
            cells = row(folder, torch, numpy)
            print(cells, flush=True)
            write(cells)
        shutil.rmtree(folder / f"torch-{torch}", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
