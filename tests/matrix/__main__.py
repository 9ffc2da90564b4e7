"""Tries ``accelerate`` with several versions of the libraries it knows: ``python -m tests.matrix FOLDER``.

Each version has a virtual environment of its own in FOLDER; packages that it lacks are this interpreter's.
The results are written to ``docs/versions.md``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.matrix.environments import ROOT, TABLE, create, install

VERSIONS = {  # from a year ago to the newest
    "transformers": ("4.57.6", "5.0.0", "5.23.0", "5.24.0"),
    "diffusers": ("0.35.2", "0.42.1"),
    "vector-quantize-pytorch": ("1.25.2", "1.27.0", "1.28.3", "1.30.1", "1.32.0"),
}
HEAD = """# Versions of other libraries

The tables say what `vqfast.accelerate` reports of each quantiser. They are made by
`python -m tests.matrix FOLDER`. Where they say "accelerated", a spy on vqfast's search saw every stage reach
it in evaluation and in training, and results, gradients and state were those of the library's own code. A
dash says that the version has no such quantiser.
"""


def environment(folder: Path, library: str, version: str) -> Path:
    """The interpreter of an environment with that version, made unless it is there."""
    home = folder / f"{library}-{version}"
    python = home / "bin" / "python"
    if not python.exists():
        install(create(home), f"{library}=={version}", alone=False)
    return python


def column(folder: Path, library: str, version: str) -> dict[str, str]:
    """The cells of a version, from the spy in its environment."""
    command = [str(environment(folder, library, version)), "-m", "tests.matrix.spy", library]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=path, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(library: str, columns: dict[str, dict[str, str]]) -> str:
    """Markdown: a row for each quantiser, a column for each version."""
    rows = [[library, *columns], ["---"] * (1 + len(columns))]
    rows += [
        [f"`{name}`", *(cells[name] for cells in columns.values())] for name in next(iter(columns.values()))
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(folder: Path) -> None:
    tables = []
    for library, versions in VERSIONS.items():
        columns = {version: column(folder, library, version) for version in versions}
        tables.append(table(library, columns))
        print(tables[-1])
    _, head, others = TABLE.read_text(encoding="utf-8").partition("## ")  # of other modules here
    TABLE.write_text("\n\n".join([HEAD.strip(), *tables, f"{head}{others}"]).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
