"""One process reads the bytes of the data for all that have the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Three ranks; the third has a copy. ``read`` counts the fingerprints that a rank computes itself.
SCRIPT = """
import os, sys
from vqfast.data import load_images
from vqfast.data.images.arrays import ArrayPixels
from vqfast.pipeline import joined
from vqfast.pipeline.parts import share_fingerprint

reads = []
contents = ArrayPixels.contents
ArrayPixels.contents = lambda self, numbers: reads.append(len(numbers)) or contents(self, numbers)
with joined("cpu") as ranks:
    for name in ("copy.npy", "other.npy"):
        images = load_images(name if ranks.rank == 2 else "images.npy")
        try:
            share_fingerprint(images, ranks)
            print(ranks.rank, name, len(reads), images.fingerprint, flush=True)
        except ValueError as error:
            print(ranks.rank, name, len(reads), error, flush=True)
"""


@pytest.mark.slow
def test_only_ranks_with_files_of_their_own_read_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    for name, values in (("images", pixels), ("copy", pixels), ("other", pixels + 1)):
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run([*command, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    said = dict(
        ((r, name), rest) for r, name, *rest in (line.split(" ", 3) for line in done.stdout.splitlines())
    )
    reads = {rank: int(rest[0]) for (rank, name), rest in said.items() if name == "copy.npy"}
    assert reads == {"0": 1, "1": 0, "2": 1}
    assert len({rest[1] for (_, name), rest in said.items() if name == "copy.npy"}) == 1
    assert said["2", "other.npy"][1] == "the data of process 2 isn't that of process 0; want the same items"
