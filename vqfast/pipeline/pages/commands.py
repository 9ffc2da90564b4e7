"""The commands that make a run again, from its settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vqfast.pipeline.run import Run, flat

ABSENT = {"modality", "num_classes", "weights"}  # settings that no option gives
TRAIN = {"audio": "train-speech", "video": "train-video"}  # the commands of data that isn't images
NEGATED = {"kmeans_init"}  # settings whose option has a twin with --no-, where the default may be true
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
        if data.get("modality") == "audio":
            own["no_speakers"] = own.get("num_classes", 0) is None
        command = TRAIN.get(str(data.get("modality")), "train")
        found.append([command, *_options({**given, **own}), "--out", folder])
    if "codes/train" in stages:
        found.append(["encode", "--run", folder, *_options({"format": stages["codes/train"].get("format")})])
    priors = {name: settings for name, settings in stages.items() if name.partition("-")[0] == "prior"}
    for name, settings in priors.items():
        own = {name: value for name, value in settings.items() if name != "codes"}
        own["no_labels"] = settings.get("num_classes") is None
        own["level"] = (name.partition("-")[2] or "0") if len(priors) > 1 else None
        found.append(["train-prior", "--run", folder, *_options(own)])
    if "classifier" in stages:
        own = {name: value for name, value in stages["classifier"].items() if name != "data"}
        found.append(["train-classifier", "--run", folder, *_options(own)])
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
        option = f"--{name.replace('_', '-')}"
        if name in ABSENT or value is None:
            continue
        if value is True:
            yield option
        elif value is False:
            if name in NEGATED:
                yield f"--no-{option[2:]}"
        elif isinstance(value, list):
            yield from (option, *map(str, value))
        elif str(value).startswith("-"):  # would be taken for an option
            yield f"{option}={value}"
        else:
            yield from (option, str(value))
