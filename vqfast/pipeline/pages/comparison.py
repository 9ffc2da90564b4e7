"""The sections of a page that compares runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from vqfast.pipeline.coding import decoded, encoded
from vqfast.pipeline.pages.contents import FEW, SHOWN, Contents
from vqfast.pipeline.pages.facts import FACTS, FIGURES, attempt
from vqfast.pipeline.pages.html import Markup, joined, table, tag
from vqfast.pipeline.pages.sections import Section, curves, cut, missing, view
from vqfast.pipeline.run import flat

Runs = Mapping[str, Contents]  # by the name that each has on the page


def labelled(contents: list[Contents]) -> dict[str, Contents]:
    """The runs by the names of their folders, with a number behind a name that several have."""
    found: dict[str, Contents] = {}
    for one in contents:
        number, name = 1, one.name
        while name in found:
            number += 1
            name = f"{one.name} ({number})"
        found[name] = one
    return found


def figures(runs: Runs) -> Markup:
    """Facts and figures of all runs in one table, and the reasons for those that are missing."""
    columns, notes = {}, []
    for name, contents in runs.items():
        columns[name] = {fact: attempt(tell, contents) for fact, tell in FACTS.items()}
        for measure in FIGURES:
            try:
                columns[name] |= measure(contents)[0]
            except Exception as error:  # a damaged run raises nearly anything
                notes.append(missing(error, name))
    return joined([_table(columns, "Figures"), *notes])


def _table(columns: Mapping[str, Mapping[str, str]], caption: str) -> Markup:
    lines = dict.fromkeys(line for column in columns.values() for line in column)
    cells = [(line, *(column.get(line, "") for column in columns.values())) for line in lines]
    return table(("", *columns), cells, caption, silent=True)


def settings(runs: Runs) -> Markup:
    """The settings that differ between trainings of the same stage."""
    columns = {
        name: {
            f"{stage}.{setting}": cut(value)
            for stage in contents.trainings
            for setting, value in flat(contents.run.settings(stage) or {}).items()
            if not setting.startswith("codes.")  # digests of what the prior was trained on
        }
        for name, contents in runs.items()
    }
    lines = dict.fromkeys(line for column in columns.values() for line in column)
    stages = Counter(stage for contents in runs.values() for stage in contents.trainings)
    differing = [
        line
        for line in lines
        if stages[line.partition(".")[0]] > 1 and len({column.get(line) for column in columns.values()}) > 1
    ]
    if not differing:
        return tag("p", "The trainings that the runs share have the same settings.", class_="note")
    shown = {name: {line: column.get(line, "") for line in differing} for name, column in columns.items()}
    return _table(shown, "Settings that differ")


def reconstructions(runs: Runs) -> Markup:
    """Items that the first run holds out, as all runs reconstruct them."""
    (first, leader), *_ = runs.items()
    modality, some = leader.modality, leader.some(FEW if leader.is_slow else SHOWN)
    numbers = range(len(some))
    originals = some.batch(numbers)
    outputs, notes = {}, []
    for name, contents in runs.items():
        try:
            codes = encoded(contents.vqvae, some, contents.ranks)
            outputs[name] = torch.cat(list(decoded(contents.vqvae, codes, numbers, contents.ranks)))
        except Exception as error:  # the run is damaged, or its model takes other items
            notes.append(missing(error, name))
    cards = []
    for number, original in enumerate(originals):
        items = {"original": original, **{name: items[number] for name, items in outputs.items()}}
        views = [view(name, modality.media(item), name) for name, item in items.items()]
        cards.append(tag("div", *views, class_="card"))
    note = f"Held-out {modality.item}s of {first}; another run may have trained on them."
    return joined([tag("p", note, class_="note"), *notes, tag("div", *cards, class_="cards")])


COMPARISONS: tuple[Section[Runs], ...] = (
    Section("figures", "Figures", figures),
    Section("differences", "Settings that differ", settings),
    Section("curves", "Curves", curves),
    Section("reconstructions", "Reconstructions", reconstructions),
)
