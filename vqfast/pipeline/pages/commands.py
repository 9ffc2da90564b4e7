"""The commands that make a run again, from its settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vqfast.pipeline.run import Run, flat

ABSENT = {"modality", "num_classes", "weights"}  # settings that no option gives
COLUMNS = 70  # after which a line ends


def commands_of(run: Run) -> list[str]:
    """The commands that make a run again, in order, as far as its steps went."""
    folder, stages = str(run.folder), run.stages()
    found = []
    vqvae = stages.get("vqvae", {})
    data = vqvae.get("data")
    data = data if isinstance(data, dict) else {}
    if "first" in vqvae:  # the digest of a model whose folder isn't noted
        own = {name: value for name, value in vqvae.items() if name not in ("data", "first")}
        found.append(["train-second-stage", "--run", "FIRST", *_options(own), "--out", folder])
    elif vqvae:
        given = {"data" if name == "path" else name: v for name, v in data.items()}
        own = {name: value for name, value in vqvae.items() if name != "data"}
        found.append(["train", *_options({**given, **own}), "--out", folder])
    if "codes/train" in stages:
        found.append(["encode", "--run", folder])
    priors = {name: settings for name, settings in stages.items() if name.partition("-")[0] == "prior"}
    labelled = data.get("labels") is not None or stages.get("data", {}).get("classes") is not None
    for name, settings in priors.items():
        own = {name: value for name, value in settings.items() if name != "codes"}
        own["no_labels"] = labelled and settings.get("num_classes") is None
        own["level"] = (name.partition("-")[2] or "0") if len(priors) > 1 else None
        found.append(["train-prior", "--run", folder, *_options(own)])
    return [_wrapped(["vqfast", *words]) for words in found]


def _wrapped(words: Sequence[str]) -> str:
    """A command in lines for a shell, broken before options."""
    lines = [""]
    for word in map(shlex.quote, words):
        if word.startswith("--") and len(lines[-1]) > COLUMNS:
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines).strip()


def _options(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in flat(settings).items():
        if name in ABSENT or value is None or value is False:
            continue
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield str(value)
