"""Ranks that die or stop: said with their numbers; torchrun begins again, and the bits are the same."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

# The parts that both scripts begin with. Several commands run in one and the same group, to save time.
START = """
import os, signal, sys
import torch.distributed
from vqfast.cli import main
from vqfast.pipeline import coding, loop, shards, watch

attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
leave = torch.distributed.destroy_process_group
torch.distributed.destroy_process_group = lambda: None
loop.SAVE_SECONDS, shards.SHARD = -1, 8
batch_numbers, encode_items = loop.batch_numbers, coding.encode_items
model = "--hidden-channels 8 --num-embeddings 8 --embedding-dim 4 --batch-size 4 --val 0.25"
"""
DYING = """
def batch(num, batch_size, step, seed):
    if (attempt, rank, step) == (0, 1, 13):
        os.kill(os.getpid(), signal.SIGKILL)
    return batch_numbers(num, batch_size, step, seed)

loop.batch_numbers = batch
for out in ("killed", "undisturbed"):
    assert main(f"train --data images --out {out} --steps 20 {model}".split()) == 0
leave()
"""
# Rank 1 stops while it encodes its second shard.
STOPPING = """
def encoded(vqvae, dataset, numbers, device):
    if (attempt, rank, numbers.start) == (0, 1, 24):
        sys.stdout.write(f"stops {os.getpid()}\\n")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.stdout.write(f"encoded {len(dataset)} {numbers.start}\\n")
    return encode_items(vqvae, dataset, numbers, device)

watch.BEAT_SECONDS, coding.encode_items = 0.1, encoded
assert main(f"train --data images --out stopped --steps 2 {model}".split()) == 0
assert main("encode --run stopped".split()) == 0
leave()
"""


def launch(folder: Path, script: str) -> subprocess.Popen[str]:
    """torchrun with two processes of a script, twice if need be, in a folder of 48 images in tar files."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    (folder / "images").mkdir()
    for shard in range(3):
        with tarfile.open(folder / "images" / f"{shard}.tar", "w") as tar:
            for number in range(shard * 16, (shard + 1) * 16):
                data = io.BytesIO()
                Image.fromarray(pixels[number]).save(data, "png")
                member = tarfile.TarInfo(f"{number:05d}.png")
                member.size = data.tell()
                data.seek(0)
                tar.addfile(member, data)
    (folder / "script.py").write_text(START + script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1"]
    return subprocess.Popen(
        [*command, "script.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_rank_is_named_and_a_restart_ends_with_the_same_bits(tmp_path: Path) -> None:
    process = launch(tmp_path, DYING)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert re.search(r"exitcode: -9\) local_rank: 1 ", err), err
    assert "vqfast: rank 0 was asked to end; if another rank failed" in err
    killed, undisturbed = (
        (tmp_path / name / "vqvae.safetensors").read_bytes() for name in ("killed", "undisturbed")
    )
    assert killed == undisturbed


def test_a_stopped_rank_is_named_and_a_restart_encodes_each_item_once(tmp_path: Path) -> None:
    process = launch(tmp_path, STOPPING)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("stops"):
            break
    said = []
    for line in process.stderr:
        said.append(line)
        if "goes on from what is saved" in line:
            break
    os.kill(int(lines[-1].split()[1]), signal.SIGCONT)  # torchrun asks it to end; else after 30 s it kills it
    out, rest = process.communicate(timeout=900)
    assert process.returncode == 0, rest
    assert "rank 1 gave no sign of life for 4.5 s: stopped, or out of reach" in said[-1], said
    codes = tmp_path / "stopped" / "codes" / "train"
    sizes = [len(np.load(path)["indices"]) for path in sorted(codes.iterdir())]
    assert sizes == [8, 8, 8, 8, 4]
    lines += out.splitlines(keepends=True)
    assert all(lines.count(f"encoded 36 {first}\n") == 1 for first in range(0, 36, 8)), lines
