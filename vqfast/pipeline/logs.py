"""The history of a training for other programs: CSV, and TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from vqfast.files import write_file
from vqfast.pipeline.validation import History


def csv_of(history: History) -> bytes:
    """A line of names, then one for each recorded step; empty where a figure wasn't measured.

    >>> csv_of({"step": [0, 5], "loss": [2.0, 1.5], "held_out_psnr": [None, 20.0]})
    b'step,loss,held_out_psnr\\n0,2.0,\\n5,1.5,20.0\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(history)
    writer.writerows(zip(*history.values(), strict=True))
    return text.getvalue().encode()


def log_to(folder: Path, name: str, tensorboard: str | Path | None) -> Callable[[History], None]:
    """Makes the function that writes a history to ``name.csv`` in a folder.

    Args:
        tensorboard: a folder in which TensorBoard finds the run under ``name``; None writes nothing for it.

    Raises:
        ModuleNotFoundError: TensorBoard isn't installed.
    """
    written = 0
    board = None
    if tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(Path(tensorboard, name), purge_step=0)  # replaces what a killed process wrote

    def log(history: History) -> None:
        nonlocal written
        write_file(folder / f"{name}.csv", csv_of(history))
        if board is None:
            return
        steps = history["step"]
        for figure in history.keys() - {"step"}:
            for step, value in zip(steps[written:], history[figure][written:], strict=True):
                if value is not None:
                    board.add_scalar(figure, value, step)
        written = len(steps)
        board.flush()

    return log
