"""What several commands do: options become arguments, data is opened, lines are printed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from vqfast.data import Source
from vqfast.models import Autoencoder
from vqfast.pipeline import Ranks, Run, Training, reopen_parts
from vqfast.pipeline.parts import HELD_OUT, load_like_run, noted_data, share_fingerprint
from vqfast.pipeline.progress import warn_of


def tell(ranks: Ranks, line: str) -> None:
    """Prints a line, in the first process."""
    if ranks.first:
        print(line)


def training_of(kind: type[Training], options: dict[str, Any]) -> Training:
    """Takes the options of a training out of a command's."""
    return kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})


def given_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the command line gives."""
    return {name: value for name, value in options.items() if value is not None}


def without_skip_bad(run: Run) -> dict[str, Any]:
    """How a command without ``--skip-bad`` reads other data: as the run's; an empty mapping, so that an error
    doesn't propose the option.
    """
    return {} if noted_data(run).get("skip_bad") else {"skip_bad": {}}


def opened(run: Run, vqvae: Autoencoder, data: str | None, ranks: Ranks, reading: dict[str, Any]) -> Source:
    """The named data, read as the run's where no option says otherwise; or the run's held-out part.

    Raises:
        ValueError: images don't fit the model; or see ``load_like_run``.
    """
    if data is None:
        return reopen_parts(run, ranks)[HELD_OUT]
    given = {name: value for name, value in reading.items() if value is not None and value is not False}
    source = load_like_run(run, vqvae, data, **given)
    warn_of(ranks, "data", source.describe())
    if len(source.shape) == 3:
        try:
            vqvae.code_shapes(source.shape[1:])
        except ValueError as error:
            how = "--size resizes images" if "size" in reading else "crop or resize the images"
            raise ValueError(f"{data} doesn't fit the run's model: {error}; {how}") from None
    share_fingerprint(source, ranks)
    return source


def check_reading(data: str | None, reading: dict[str, Any]) -> None:
    """Raises ValueError where options about reading stand without data to read."""
    given = [f"--{name.replace('_', '-')}" for name, value in reading.items() if value]
    if data is None and given:
        raise ValueError(f"{', '.join(given)} goes with --data: the run's own data is read as for training")


def check_new(out: str, overwrite: bool, *suffixes: str) -> None:
    """Raises ValueError where a file is there that isn't to be replaced, or has none of the suffixes."""
    if Path(out).exists() and not overwrite:
        raise ValueError(f"{out} exists; use --overwrite or another name")
    if Path(out).suffix.lower() not in suffixes:
        raise ValueError(f"out is {out}; want a name that ends in {' or '.join(suffixes)}")
