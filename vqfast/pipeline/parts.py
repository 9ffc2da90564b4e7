"""The data of a run: the part it trains on and the part it holds out, the same ones whenever it is opened."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqfast.checks import check_choice, check_integer
from vqfast.data import MODALITIES, Clips, Modality, Recordings, Source, Unreadable
from vqfast.models import Autoencoder
from vqfast.pipeline.progress import bar
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run

HELD_OUT, TRAIN = "held-out", "train"
NOTED = {"modality", "path", "val", "seed"}  # keys of ``data`` in the settings of the stage vqvae
FOUND = {"depth", "bad", "stamp", "fingerprints"}  # keys in the settings of the stage data


def data_note(
    data: str | Path,
    *,
    modality: str,
    val: float | str | Path,
    seed: int,
    reading: Mapping[str, Any],
    group: str | None = None,
) -> dict[str, Any]:
    """The settings that name a run's data.

    Args:
        data: a path, or ``"digits"``.
        modality: a name in ``MODALITIES``.
        val: the share that is held out, or the path of data of its own.
        seed: of the random split.
        group: see ``Source.split``.
        reading: options of ``Modality.load``; those that are None or False are left out.

    Raises:
        ValueError: there is no such modality, or ``group`` is given with a path as ``val``.
    """
    check_choice("modality", modality, MODALITIES)
    given = {name: value for name, value in reading.items() if value is not None and value is not False}
    if "labels" in given:
        given["labels"] = str(Path(given["labels"]).absolute())
    if isinstance(val, (str, Path)):
        val = _named(val)
        if group is not None:
            raise ValueError(f"group is {group!r}; want None where val is a path: nothing is split")
    if group is not None:
        given["group"] = group
    return {"modality": modality, "path": _named(data), **given, "val": val, "seed": seed}


def _named(data: str | Path) -> str:
    """Data as a run notes it, wherever its commands are given."""
    return "digits" if data == "digits" else str(Path(data).absolute())


def open_parts(run: Run, note: dict[str, Any], ranks: Ranks) -> tuple[dict[str, Source], dict[str, Any]]:
    """Opens the data that a run is to be trained on.

    Args:
        note: see ``data_note``. Where the run has the same note, it also has the findings; else the first of
            the ``ranks`` reads all items, so that a bad one shows before hours of training.

    Returns:
        The parts by name, and the findings: settings of the stage ``data``.

    Raises:
        Unreadable: items can't be read.
        ValueError: the data has changed since the note was made; or see ``Modality.load``.
    """
    begun = (run.settings("vqvae") or {}).get("data") == note
    return _opened(note, _noted_findings(run) if begun and run.settings("data") else None, ranks)


def reopen_parts(run: Run, ranks: Ranks = ALONE) -> dict[str, Source]:
    """Opens the data that a run was trained on: its parts ``"train"`` and ``"held-out"``.

    Args:
        ranks: the processes that all call this. Where files were touched, the first of them compares their
            bytes.

    Raises:
        FileNotFoundError: the run wasn't trained.
        ValueError: ``run.json`` doesn't name the data, or see ``open_parts``.
    """
    return _opened(noted_data(run), _noted_findings(run), ranks)[0]


def modality_of(run: Run) -> Modality:
    """The kind of data that a run was trained on.

    Raises:
        FileNotFoundError, ValueError: see ``reopen_parts``.
    """
    return MODALITIES[noted_data(run)["modality"]].found(run.settings("data") or {})


def load_like_run(run: Run, vqvae: Autoencoder, data: str | Path, **reading: Any) -> Source:
    """Opens other data as the run's data was read: images with its size, crop, channels, depth and
    classes, without those that can't be read if it was read so.

    Args:
        vqvae: the run's.
        data: see ``Modality.load``.
        reading: options of ``Modality.load``, in place of the run's.

    Raises:
        FileNotFoundError, TypeError, ValueError: see ``Modality.load``.
    """
    modality = modality_of(run)
    noted = {**noted_data(run), "channels": vqvae.in_channels, **(run.settings("data") or {})}
    names = (*modality.like_run, "skip_bad")
    like_run = {name: noted[name] for name in names if noted.get(name) is not None}
    known = inspect.signature(modality.load).parameters.keys() - ({"crop"} - set(modality.like_run))
    if other := sorted(reading.keys() - known):
        are = "is" if len(other) == 1 else "are"
        raise ValueError(f"{' and '.join(other)} {are} given; want none: {modality.item}s are read without")
    return modality.load(data, **{**like_run, **reading})


def _opened(
    note: dict[str, Any], found: dict[str, Any] | None, ranks: Ranks
) -> tuple[dict[str, Source], dict[str, Any]]:
    changed = f"{note['path']} has changed since the run was trained on it"
    try:
        sources, parts = _loaded(note, found)
    except Unreadable as error:
        if found is None:
            raise
        raise ValueError(f"{changed}: {error}") from error
    stamp = "+".join(source.stamp for source in sources)
    if found is None:
        if not ranks.first:
            return parts, {}
        for source in sources:
            with bar(ranks, "check data", len(source), unit=MODALITIES[note["modality"]].item) as progress:
                source.check(progress.update)
        prints = {name: part.fingerprint for name, part in parts.items()}
        found = {**sources[0].findings, "stamp": stamp, "fingerprints": prints}
        if len(sources) > 1:
            found["val"] = sources[1].findings
    elif not ranks.any(found["stamp"] != stamp):  # nobody touched the files, so their bytes needn't be read
        for name, part in parts.items():
            part.fingerprint = found["fingerprints"].get(name)
    else:
        for name, part in parts.items():
            share_fingerprint(part, ranks)
            if part.fingerprint != found["fingerprints"].get(name):
                raise ValueError(changed)
    return parts, found


def share_fingerprint(source: Source, ranks: Ranks) -> None:
    """Has the first of the ``ranks``, which all call this, read all bytes for those with the same files.

    Raises:
        ValueError: this process has a copy of other bytes.
    """
    stamp, fingerprint = ranks.of_first(lambda: source.stamp), ranks.of_first(lambda: source.fingerprint)
    if source.stamp == stamp:
        source.fingerprint = fingerprint
    elif source.fingerprint != fingerprint:
        raise ValueError(f"the data of process {ranks.rank} isn't that of process 0; want the same items")


def _loaded(note: dict[str, Any], found: dict[str, Any] | None) -> tuple[list[Source], dict[str, Source]]:
    """The sets of items that were named, and the parts that they make up."""
    load = MODALITIES[note["modality"]].load
    reading = {name: value for name, value in note.items() if name not in (*NOTED, "group")}
    if found is not None:
        reading |= {"depth": found["depth"], "skip_bad": found["bad"]}
    source = load(note["path"], **reading)
    if not isinstance(note["val"], str):
        grouping = {name: note[name] for name in ("group",) if name in note}
        split = source.split(note["val"], seed=note["seed"], **grouping)
        return [source], dict(zip((TRAIN, HELD_OUT), split, strict=True))
    own: dict[str, Any] = {name: source.findings[name] for name in ("depth", "classes")}
    if isinstance(source, Recordings):  # of any length
        own["rate"] = source.rate
    elif isinstance(source, Clips):
        own |= {"channels": source.shape[0], "num_actions": source.num_actions}
    else:
        own |= {"labels": None, "channels": source.shape[0]}
    if found is not None:
        own["skip_bad"] = found.get("val", {}).get("bad", False)
    held_out = load(note["val"], **{**reading, **own})
    if held_out.shape != source.shape and not isinstance(source, Recordings):
        raise ValueError(f"val has items of shape {held_out.shape}; want {source.shape}, as the data")
    if source.labels is not None and held_out.labels is None:
        why = "".join(f"; {line}" for line in held_out.describe() if line.startswith("no labels"))
        raise ValueError(
            f"val is {note['val']!r}, which has no labels; want labels, as the data has them{why}"
        )
    if source.num_classes is not None and (held_out.num_classes or 0) > source.num_classes:
        wanted = f"want 0..{source.num_classes - 1}, as the data has them"
        raise ValueError(f"val has the label {(held_out.num_classes or 0) - 1}; {wanted}")
    return [source, held_out], {TRAIN: source, HELD_OUT: held_out}


def noted_data(run: Run) -> dict[str, Any]:
    """The settings that name the data of a run: see ``data_note``.

    Raises:
        FileNotFoundError, ValueError: see ``reopen_parts``.
    """
    settings = run.settings("vqvae")
    if settings is None:
        raise FileNotFoundError(f"{run.folder} holds no trained VQ-VAE: train one first")
    note = settings.get("data")
    if not isinstance(note, dict) or not note.keys() >= NOTED or note["modality"] not in list(MODALITIES):
        raise ValueError(f"{run.folder / 'run.json'} has no data with {', '.join(sorted(NOTED))} in vqvae")
    return note


def noted_num_actions(run: Run) -> int | None:
    """How many actions the frames of a run's clips have; None without actions.

    Raises:
        TypeError, ValueError: ``run.json`` has something else.
    """
    num: Any = (run.settings("data") or {}).get("num_actions")
    check_integer(f"num_actions of data in {run.folder / 'run.json'}", num, optional=True)
    return None if num is None else int(num)


def _noted_findings(run: Run) -> dict[str, Any]:
    found = run.settings("data") or {}
    if not found.keys() >= FOUND or not all(isinstance(found[key], dict) for key in ("bad", "fingerprints")):
        raise ValueError(f"{run.folder / 'run.json'} has no data with {', '.join(sorted(FOUND))}")
    return found
