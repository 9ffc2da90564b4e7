"""One process reads the bytes of the data for all that have the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Three ranks; the third has a copy. Each writes a file of its own, since their lines on one pipe may mix.
# ``reads`` counts the fingerprints that a rank computes itself.
SCRIPT = """
import json
from vqfast.data import load_images
from vqfast.data.images.arrays import ArrayPixels
from vqfast.pipeline import joined
from vqfast.pipeline.parts import share_fingerprint

reads, said = [], {}
contents = ArrayPixels.contents
ArrayPixels.contents = lambda self, numbers: reads.append(len(numbers)) or contents(self, numbers)
with joined("cpu") as ranks:
    for name in ("copy.npy", "other.npy"):
        images = load_images(name if ranks.rank == 2 else "images.npy")
        try:
            share_fingerprint(images, ranks)
            said[name] = len(reads), images.fingerprint
        except ValueError as error:
            said[name] = len(reads), str(error)
    with open(f"{ranks.rank}.json", "w", encoding="utf-8") as file:
        json.dump(said, file)
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
    said = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(3)]
    assert [rank["copy.npy"][0] for rank in said] == [1, 0, 1]
    assert len({rank["copy.npy"][1] for rank in said}) == 1
    assert said[2]["other.npy"][1] == "the data of process 2 isn't that of process 0; want the same items"
