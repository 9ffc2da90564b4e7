"""Priors of public repositories, each sampled by its own loop and by ``vqfast.program_of``.

``python -m benchmarks.foreign_priors FOLDER`` writes the record ``results/foreign-priors.json`` and its
table in the docs. In FOLDER each repository is checked out as ``owner+name``; no code of them is part of
vqfast. Each network is built by its own class, with small sizes and random weights. It draws four samples by
the loop of its users, a whole pass for each position, with the same noise as vqfast's. Packages that a
repository imports and its network doesn't need may be absent.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import vqfast
from benchmarks import pages
from benchmarks.foreign_networks import TRIALS, Trial
from benchmarks.record import RESULTS, Row
from vqfast.priors.calls import modules_of
from vqfast.sampling.draw import gumbel

RECORD = RESULTS / "foreign-priors.json"
SAMPLES = 4
HOLLOW = (
    "torchvision",
    "torch.utils.tensorboard",
    "tensorboardX",
    "IPython",
    "matplotlib",
    "pandas",
    "tqdm",
    "h5py",
    "datasets",
)


class _Hollow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds hollow modules in place of packages that a repository imports, and its network doesn't need."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """A hollow module for the packages in ``HOLLOW``."""
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_hollow(name) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module that has every attribute."""
        return mock.MagicMock(__spec__=spec, __path__=[])

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def is_hollow(name: str) -> bool:
    """Whether a module, or a package that it is in, is in ``HOLLOW``."""
    return any(f"{name}.".startswith(f"{package}.") for package in HOLLOW)


@contextmanager
def imported_from(folder: Path) -> Iterator[None]:
    """Imports find the modules of a repository first; they are forgotten afterwards."""
    before, here, finder = set(sys.modules), Path.cwd(), _Hollow()
    sys.path.insert(0, str(folder))
    sys.meta_path.insert(0, finder)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        sys.meta_path.remove(finder)
        sys.path.remove(str(folder))
        theirs = {path.name for path in folder.iterdir()}
        for name in set(sys.modules) - before:
            first = name.split(".")[0]
            if is_hollow(name) or first in theirs or f"{first}.py" in theirs:
                del sys.modules[name]


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Doubles a network's weights, so that codes matter, and draws the statistics of batch normalisation."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.mul_(2)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    module.eval()


@torch.no_grad()
def own_loop(made: Trial, given: dict[str, Tensor]) -> Tensor:
    """The loop that the network's users write, with vqfast's noise of seed 0."""
    shape, behind = codes_shape(made), int(made.get("predicts") == "next")
    codes = torch.zeros(SAMPLES, *shape, dtype=torch.int64)
    flat = codes.view(SAMPLES, -1)
    mixtures, several = made.get("num_mixtures"), made.get("num_quantizers") or 1
    for number in range(behind * several, flat.shape[1]):
        logits = made["call"](codes, *given.values()).flatten(2)[:, :, number - behind * several]
        if mixtures:
            flat[:, number] = nearest_code(logits, number, number - number % several, made)
            continue
        noise = gumbel(0, torch.arange(SAMPLES), torch.tensor([number]), made["num_embeddings"])[:, 0]
        flat[:, number] = (logits.log_softmax(1) + noise).argmax(1)
    return codes


def nearest_code(parameters: Tensor, number: int, first: int, made: Trial) -> Tensor:
    """The draw of a value from mixtures, rounded: the component by Gumbel noise, then the value."""
    samples, mixtures = torch.arange(SAMPLES), made["num_mixtures"]
    noise = gumbel(0, samples, torch.tensor([first, number]), mixtures + 1)
    weights, means, log_scales = parameters.double().chunk(3, dim=1)
    component = (weights + noise[:, 0, :mixtures]).argmax(1)
    u = (-(-noise[:, 1, mixtures]).exp()).exp()
    logistic = u.log() - (1 - u).log()
    value = means[samples, component] + log_scales[samples, component].exp() * logistic
    return (value.clamp(-1, 1) * 0.5 + 0.5).mul(made["num_embeddings"] - 1).round().long()


def codes_shape(made: Trial) -> tuple[int, ...]:
    """The shape of a sample: a grid of codes, each position with several if it has them."""
    several = made.get("num_quantizers")
    return (*made["shape"], several) if several else tuple(made["shape"])


def outcome(made: Trial) -> dict[str, str]:
    """What came out of ``program_of``: the result, and its figures or reasons."""
    given: dict[str, Any] = {}
    if "num_classes" in made:
        given["labels"] = torch.arange(SAMPLES) % made["num_classes"]
    if "condition" in made:
        example = made["condition"]
        given["condition"] = torch.cat([example.roll(i, -1) for i in range(SAMPLES)])
    try:
        prior = vqfast.program_of(**made)
    except (TypeError, ValueError) as error:
        first, *others = str(error).splitlines()
        if first.startswith("the network isn't causal"):
            return {"result": "refused: not causal", "why": first.split(": ", 1)[1]}
        return {"result": "refused", "why": "; ".join(line.strip() for line in others) or first}
    known = torch.full((SAMPLES, *codes_shape(made)), -1)
    if made.get("predicts") == "next":
        known[..., 0] = 0
    expected = own_loop(made, given)
    drawn = prior.sample(SAMPLES, made["shape"], known=known, **given)
    equal = int((drawn == expected).sum())
    steps = len(prior.lower()[0].steps)
    why = f"{equal} of {expected.numel()} codes are equal; steps of the program: {steps}"
    return {"result": "sampled" if equal == expected.numel() else "wrong codes", "why": why}


def tried(repository: str, network: str, folders: Path) -> Row:
    """A line of the record: what came out for a network of a repository."""
    folder = (folders / repository.replace("/", "+")).resolve()
    row = {"repository": repository, "network": network}
    if not folder.is_dir():
        return row | {"result": "absent", "why": "it isn't in the folder"}
    torch.manual_seed(0)
    with imported_from(folder):
        try:
            made = TRIALS[repository, network]()
        except SyntaxError as error:
            file, text = Path(str(error.filename)).name, str(error.text).strip()
            return row | {"result": "fails", "why": f"{file} is no Python 3: {text}"}
        for module in modules_of(made["call"]):
            randomise(module)
        found = outcome(made)
    return row | {"result": found["result"], "why": found["why"].replace(f"{folder}/", "")}


def main() -> None:
    """Tries all networks and writes the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foreign_priors", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the repositories are checked out")
    folders = parser.parse_args().folder
    rows = []
    for repository, network in TRIALS:
        rows.append(tried(repository, network, folders))
        print(*rows[-1].values(), sep=": ")
    versions = {"torch": torch.__version__, "vqfast": vqfast.__version__}
    RECORD.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    pages.fill_all()


if __name__ == "__main__":
    main()
