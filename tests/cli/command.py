"""Commands on small models, and what comes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqfast.cli import main

MODEL = "--hidden-channels 8 --num-embeddings 8 --embedding-dim 4"
UNLABELLED = f"train --data images.npy {MODEL} --steps 12 --batch-size 8 --lr 1e-3 --out"
TRAIN = UNLABELLED.replace("--out", "--labels labels.npy --out")
PRIOR = "--channels 8 --num-layers 2 --head-channels 8 --steps 12 --batch-size 8"


def run(command: str) -> int:
    return main(command.split())


def files(folder: Path) -> dict[str, bytes]:
    found = (
        path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "times.json")
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def without_data(err: str) -> str:
    """What was said on standard error but for the lines about the data."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("data: "))


def refused(command: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks that a command ends with status 2 and one line that says what is ``wanted``."""
    capsys.readouterr()
    try:
        status = run(command)
    except SystemExit as left:  # argparse's way
        status = left.code
    out, err = capsys.readouterr()
    err = without_data(err)
    assert status == 2 and out == ""
    assert err.startswith("vqfast") and " error: " in err and err.count("\n") == 1 and err.endswith("\n")
    assert wanted in err, err
