"""Options that are written down: a recipe's, a TOML file's, and those that a run was trained with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vqfast.checks import check_choice
from vqfast.cli.recipes import RECIPES, Options
from vqfast.files import read_file, write_file
from vqfast.pipeline import Ranks, Run, Training
from vqfast.pipeline.options import in_present_words

LENGTH = ("steps", "epochs")  # of which one replaces the other
CONFIG_BYTES = 1 << 20
FILE_NAMES = "surrogateescape"  # a file's name may be any bytes, though TOML wants UTF-8
PATHS = ("data", "labels", "val", "tensorboard")  # options that may be paths


def words_before(command: str, words: Sequence[str], known: Mapping[str, argparse.Action]) -> list[str]:
    """The words of a command line that stand for its --recipe and its --config; those after them win.

    Args:
        command: such as ``"train"``.
        words: the rest of the command line.
        known: the command's options, with their dashes.

    Raises:
        ValueError: there is no such recipe, or the file isn't TOML, has other keys than options, or false for
            an option that takes a value.
        OSError: the file can't be read.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in ("config", "recipe", *LENGTH):
        early.add_argument(f"--{name}", nargs="?")
    given = vars(early.parse_known_args(words)[0])
    written = _read(Path(given["config"]), known) if given.get("config") else {}
    recipe = given.get("recipe") or written.pop("recipe", None)
    options: Options = {}
    if recipe is not None and command in RECIPES:
        check_choice("recipe", recipe, RECIPES[command])
        options |= RECIPES[command][recipe]
    for stronger in (written, {name: given[name] for name in LENGTH if name in given}):
        if stronger.keys() & set(LENGTH):
            options = {name: value for name, value in options.items() if name not in LENGTH}
        options |= stronger
    options = {name: value for name, value in options.items() if name not in given}
    return [word for name, value in options.items() for word in _words(name, value, known)]


def _words(name: str, value: Any, known: Mapping[str, argparse.Action]) -> list[str]:
    if value is True:
        return [f"--{name}"]
    if value is False:
        if known[f"--{name}"].nargs != 0:
            raise ValueError(f"{name} is false; want a value, or nothing for the default")
        return [f"--no-{name}"] if f"--no-{name}" in known else []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def _read(path: Path, known: Collection[str]) -> Options:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        options: Options = tomllib.loads(read_file(path, CONFIG_BYTES).decode(errors=FILE_NAMES))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    unknown = [name for name in options if f"--{name}" not in known or name == "config"]
    if unknown:
        raise ValueError(f"{path} has {', '.join(unknown)}; want the command's options alone, as in --help")
    return in_present_words(options)


def as_toml(options: Mapping[str, Any], training: Training) -> str:
    """Options as a TOML file; those that are None are left out, paths are absolute.

    Args:
        options: of a command, by their names in Python.
        training: has the others.
    """
    lines = []
    for name, value in {**options, **asdict(training)}.items():
        if name in PATHS and isinstance(value, (str, Path)) and value != "digits":
            value = str(Path(value).absolute())
        if value is not None:  # JSON's strings, numbers, lists and truth values are TOML's too, but for DEL
            written = json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")
            lines.append(f"{name.replace('_', '-')} = {written}\n")
    return "".join(lines)


@contextmanager
def written_down(run: Run, stage: str, name: str, text: str, ranks: Ranks) -> Iterator[None]:
    """Writes the options of a training into its run: when it is done, or when it is interrupted at first."""
    file = run.folder / name

    data = text.encode(errors=FILE_NAMES)

    def write() -> None:
        if ranks.first and not (file.is_file() and file.read_bytes() == data):
            write_file(file, data)

    try:
        yield
    except KeyboardInterrupt:
        if run.settings(stage) is not None and not file.exists():
            write()
        raise
    write()
