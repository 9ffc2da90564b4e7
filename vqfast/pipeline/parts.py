"""The images of a run: those it trains on and those it holds out, the same ones whenever it is opened."""

from __future__ import annotations

from typing import Any

from vqfast.data import Images, Unreadable, load_images
from vqfast.models import VQVAE
from vqfast.pipeline.checkpoint import Run
from vqfast.pipeline.codes import BATCH
from vqfast.pipeline.progress import bar
from vqfast.pipeline.ranks import Ranks

HELD_OUT, TRAIN = "held-out", "train"
NOTED = {"source", "labels", "size", "channels", "holdout", "seed"}  # of them in run.json, under vqvae
FOUND = {"depth", "bad", "stamp", "fingerprints"}  # under data


def open_images(run: Run, note: dict[str, Any], ranks: Ranks) -> tuple[dict[str, Images], dict[str, Any]]:
    """The images that a run is to be trained on by part, and what is found of them.

    Args:
        note: the arguments of ``load_images``, ``holdout`` and its ``seed``. Where the run notes the same, it
            also knows what was found; else the first of the ``ranks`` looks at all.

    Raises:
        Unreadable: images can't be read.
        ValueError: they have changed since they were noted; or as ``load_images``.
    """
    begun = (run.settings("vqvae") or {}).get("images") == note
    return _opened(note, _noted_data(run) if begun and run.settings("data") else None, ranks)


def _opened(
    note: dict[str, Any], found: dict[str, Any] | None, ranks: Ranks | None
) -> tuple[dict[str, Images], dict[str, Any]]:
    how: dict[str, Any] = {
        name: note.get(name) for name in ("labels", "size", "channels", "depth", "skip_bad")
    }
    if found is not None:
        how |= {"depth": found["depth"], "skip_bad": found["bad"]}
    changed = f"{note['source']} has changed since the run was trained on it"
    try:
        images = load_images(note["source"], **how)
    except Unreadable as error:
        if found is None:
            raise
        raise ValueError(f"{changed}: {error}") from error
    parts = dict(zip((TRAIN, HELD_OUT), images.split(note["holdout"], note["seed"]), strict=True))
    if found is None:
        if ranks is None or not ranks.first:
            return parts, {}
        with bar(ranks, "look at images", len(images), unit="img") as progress:
            images.look(BATCH, progress.update)  # a bad one shows now, not after hours of training
        prints = {name: part.fingerprint for name, part in parts.items()}
        found = {**images.found, "stamp": images.stamp, "fingerprints": prints}
    elif found["stamp"] == images.stamp:  # nobody touched them: no need to read all their bytes
        for name, part in parts.items():
            part.fingerprint = found["fingerprints"].get(name)
    elif any(part.fingerprint != found["fingerprints"].get(name) for name, part in parts.items()):
        raise ValueError(changed)
    return parts, found


def reopen_images(run: Run) -> dict[str, Images]:
    """The images that the run was trained on.

    Raises:
        FileNotFoundError: it wasn't.
        ValueError: run.json doesn't say which; or as ``open_images``.
    """
    return _opened(_noted_images(run), _noted_data(run), None)[0]


def _noted_images(run: Run) -> dict[str, Any]:
    settings = run.settings("vqvae")
    if settings is None:
        raise FileNotFoundError(f"{run.folder} holds no trained VQ-VAE: train one first")
    note = settings.get("images")
    if not isinstance(note, dict) or not note.keys() >= NOTED:
        raise ValueError(f"{run.folder / 'run.json'} has no images with {', '.join(sorted(NOTED))} in vqvae")
    return note


def _noted_data(run: Run) -> dict[str, Any]:
    found = run.settings("data") or {}
    if not found.keys() >= FOUND or not all(isinstance(found[key], dict) for key in ("bad", "fingerprints")):
        raise ValueError(f"{run.folder / 'run.json'} has no data with {', '.join(sorted(FOUND))}")
    return found


def like_the_runs(run: Run, vqvae: VQVAE, data: str, **reading: Any) -> Images:
    """Images made as the run's were in size, channels and meaning.

    Args:
        reading: arguments of ``load_images``, in place of the run's.

    Raises: see ``load_images``.
    """
    found = run.settings("data") or {}
    like = {"size": _noted_images(run)["size"], "channels": vqvae.config["in_channels"]}
    like |= {"depth": found.get("depth"), "classes": found.get("classes")}
    return load_images(data, **{**like, **reading})
