"""The commands that make pages and pictures of runs."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from vqfast.checks import check_choice, check_integer
from vqfast.cli.arguments import check_new
from vqfast.data import Recordings
from vqfast.files import write_file
from vqfast.pipeline import Run, joined, load_model, modality_of, reopen_parts, report
from vqfast.pipeline.pages import PAGE
from vqfast.pipeline.parts import HELD_OUT
from vqfast.pipeline.pictures import decoded_at_random, decoded_codebook

KINDS = ("codebook", "random-codes")


def make_report(run: list[str], out: str | None, overwrite: bool, device: str) -> None:
    """Make a page about a run, or one that compares runs."""
    if out is None and len(run) > 1:
        raise ValueError("--out is missing: a page about several runs goes to a file of its own")
    if out is not None:
        check_new(out, overwrite, ".html", ".htm")
    with joined(device) as ranks:
        runs = [Run(folder, lock=False) for folder in run]
        if ranks.first:
            file = runs[0].folder / PAGE if out is None else Path(out)
            write_file(file, report(*runs, ranks=ranks))
            print(f"report in {file}")


def picture(run: str, of: str, num: int | None, seed: int, out: str, overwrite: bool, device: str) -> None:
    """Show what a model has learned: its codebook, or random codes."""
    check_choice("of", of, KINDS)
    check_integer("num", num, optional=True)
    check_new(out, overwrite, ".png")
    with joined(device) as ranks:
        source = Run(run, lock=False)
        vqvae = load_model(source.folder, "vqvae", device=ranks.device)
        if of == "codebook":
            shown = [torch.arange(min(size, num or size)) for size in vqvae.codebook_sizes]
            items = torch.cat([decoded_codebook(vqvae, some, level=i) for i, some in enumerate(shown)])
        else:
            held_out = reopen_parts(source)[HELD_OUT]
            spatial = held_out.shape[1:]
            if isinstance(held_out, Recordings):
                spatial = (min(held_out.rate, *spatial),)  # a second
            items = decoded_at_random(vqvae, spatial, num or 64, seed=seed)
        if ranks.first:
            columns = math.ceil(math.sqrt(len(items)))
            write_file(Path(out), modality_of(source).show_items(items, columns=columns))
            print(f"{of} in {out}")
