"""The sections of a run's page. A damaged part of a run spoils only its own section."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from vqfast.data import Modality
from vqfast.data.code_map import code_map
from vqfast.data.disk import one_line
from vqfast.data.protocol import Media
from vqfast.pipeline.curves import is_loss, smooth
from vqfast.pipeline.pages.charts import Line, line_chart, usage_chart
from vqfast.pipeline.pages.commands import commands_of
from vqfast.pipeline.pages.contents import FEW, Contents
from vqfast.pipeline.pages.facts import FIGURES, figure_name, of_level, tile
from vqfast.pipeline.pages.html import Markup, joined, shown, table, tag
from vqfast.pipeline.pictures import decoded_at_random, decoded_codebook
from vqfast.pipeline.run import flat

CODE_VECTORS = 256  # shown
RANDOM = 12  # items of random codes
SETTINGS, CHARACTERS = 100, 300  # shown of a stage: settings, and characters of each
HELD = "held_out_"

Source = TypeVar("Source")


@dataclass(frozen=True)
class Section(Generic[Source]):
    """A section of a page.

    Args:
        id: of the element, for links.
        title: its heading.
        make: makes the content, or raises where the run lacks it.
    """

    id: str
    title: str
    make: Callable[[Source], Markup]


def missing(error: Exception, name: str = "") -> Markup:
    """What stands in place of content that can't be made: the reason, behind the name of the run."""
    return tag("p", f"{name}: {one_line(error)}" if name else one_line(error), class_="missing")


# figures


def figures(contents: Contents) -> Markup:
    """Numbers that tell how good the models are."""
    tiles, notes = [], []
    for measure in FIGURES:
        try:
            found, note = measure(contents)
            tiles += [tile(name, value) for name, value in found.items()]
            notes.append(tag("p", note, class_="note"))
        except Exception as error:  # a damaged run raises nearly anything
            notes.append(missing(error))
    return joined([tag("dl", *tiles, class_="tiles"), *notes])


# curves


def curves(runs: Mapping[str, Contents]) -> Markup:
    """The curves of each training that was begun, those of several runs over each other.

    Args:
        runs: by the label that each has in the legend.
    """
    parts = []
    titles = {name: title for contents in runs.values() for name, title in contents.trainings.items()}
    for name, title in titles.items():
        histories = {}
        for label, contents in runs.items():
            try:
                if name in contents.trainings:
                    histories[label] = contents.history(name)
            except Exception as error:  # a damaged run raises nearly anything
                parts.append(missing(error, label))
        if histories:
            parts += [tag("h3", title), tag("div", *_charts(histories), class_="charts")]
    return joined(parts)


def _charts(histories: dict[str, dict[str, np.ndarray]]) -> Iterator[Markup]:
    """A chart for each figure; held-out values beside the others."""
    stems = [figure.removeprefix(HELD) for history in histories.values() for figure in history]
    for stem in dict.fromkeys(stems):
        if stem != "step":
            yield _chart(stem, histories)


def _chart(stem: str, histories: dict[str, dict[str, np.ndarray]]) -> Markup:
    found: list[Line] = []
    for colour, (run, history) in enumerate(histories.items()):
        for figure, style in ((stem, ""), (HELD + stem, "held-out")):
            values = history.get(figure, np.array([]))
            finite = np.isfinite(values)
            label = " ".join([run, "held out" if style else "training"]).strip()
            if finite.any():
                found.append(Line(label, history["step"][finite], values[finite], colour, style))
    values = np.concatenate([line.y for line in found]) if found else np.array([1.0])
    log = is_loss(stem) and values.min() > 0 and values.max() > 10 * values.min()
    alone = len(histories) == 1
    lines = [smoothed for line in found for smoothed in _smoothed(line, log, alone)]
    return line_chart(figure_name(stem), lines, log=bool(log))


def _smoothed(line: Line, log: bool, alone: bool) -> list[Line]:
    if len(line.y) <= 60 or line.style:
        return [line]
    raw = [line._replace(style="faint")] if alone else []
    return [*raw, line._replace(y=smooth(line.y, log=log))]


# pictures


def reconstructions(contents: Contents) -> Markup:
    """Held-out items, their reconstructions and the codes between them."""
    originals, levels, outputs = contents.shown
    sizes, modality = contents.vqvae.codebook_sizes, contents.modality
    cards = []
    for number, pair in enumerate(zip(originals, outputs, strict=True)):
        names = (f"original {number}", f"reconstruction {number}")
        views = [
            view(name.split()[0], modality.media(item), name) for name, item in zip(names, pair, strict=True)
        ]
        for level, grids in enumerate(levels):
            caption = f"codes{of_level(level, levels)}"
            picture = code_map(_first_stage(grids[number], contents.vqvae.ndim), sizes[level])
            views.append(view(caption, [Media("image/png", picture)], f"{caption} {number}", "codes"))
        cards.append(tag("div", *views, class_="card"))
    shapes = " and ".join(" x ".join(map(str, grids.shape[1:])) for grids in levels)
    note = f"Held-out {modality.item}s, which training hasn't seen. Each is {shapes} codes, in colours."
    return joined([tag("p", note, class_="note"), tag("div", *cards, class_="cards")])


def _first_stage(grid: Tensor, ndim: int) -> Tensor:
    """A grid of one code a position: the first one of stages or heads; a sequence without its masked end."""
    grid = grid.flatten(ndim)[..., 0] if grid.ndim > ndim else grid
    return grid[grid >= 0] if grid.ndim == 1 else grid


def view(caption: str, media: Sequence[Media], label: str, kind: str | None = None) -> Markup:
    """An item with a caption; see ``shown``."""
    return tag("figure", *(shown(one, label) for one in media), tag("figcaption", caption), class_=kind)


def codebook(contents: Contents) -> Markup:
    """How often each code is used, and what each code vector looks like."""
    where, counts = contents.counts
    parts = []
    coarser: list[int] = []
    for level, count in enumerate(counts):
        used = int((count > 0).sum())
        shares = count.double() / count.sum()
        perplexity = torch.special.entr(shares).sum().exp().item()
        ordered = count.argsort(descending=True, stable=True)
        half = int((shares[ordered].cumsum(0) < 0.5).sum()) + 1
        title = f"Use of codes{of_level(level, counts)}"
        told = f"In {where}, {used:,} of {len(count):,} codes are used, {1 - used / len(count):.1%} never. "
        told += f"Perplexity {perplexity:.1f}; {half:,} of them take half of the positions."
        parts.append(tag("div", usage_chart(title, count), tag("p", told), class_="usage"))
        if contents.vqvae.ndim == 2:
            vectors = ordered[: min(CODE_VECTORS, max(1, used))]
            items = decoded_codebook(contents.vqvae, vectors, level=level, coarser=coarser)
            note = (
                f"{len(vectors):,} code vectors, the most used one first, each decoded as a grid of it alone."
            )
            parts += [tag("p", note, class_="note"), _gallery(contents.modality, items, note, "small")]
        coarser.append(int(ordered[0]))
    return joined(parts)


def random_codes(contents: Contents) -> Markup:
    """Random codes, decoded."""
    num = FEW if contents.is_slow else RANDOM
    items = decoded_at_random(contents.vqvae, contents.spatial, num)
    note = "Every code is drawn uniformly: what the decoder shows when no prior says which codes go together."
    pictures = _gallery(contents.modality, items, f"{len(items)} decoded grids of random codes")
    return joined([tag("p", note, class_="note"), pictures])


def samples(contents: Contents) -> Markup:
    """Samples of the prior, by class where it has classes."""
    source, items, labels = contents.samples
    parts = [tag("p", f"Samples {source}.", class_="note")]
    if labels is None:
        return joined([*parts, _gallery(contents.modality, items, f"{len(items)} samples")])
    for label in dict.fromkeys(labels):
        chosen, name = (
            [item for item, own in zip(items, labels, strict=True) if own == label],
            f"class {_class_name(contents, label)}",
        )
        gallery = _gallery(contents.modality, chosen, f"{len(chosen)} samples of {name}", "line")
        parts.append(tag("div", tag("h3", name), gallery))
    return joined([parts[0], tag("div", *parts[1:], class_="classes")])


def _class_name(contents: Contents, label: int) -> str:
    names = (contents.run.settings("data") or {}).get("classes")
    return f"{label}, {names[label]}" if isinstance(names, list) and label < len(names) else str(label)


def _gallery(modality: Modality, items: Sequence[Tensor] | Tensor, label: str, kind: str = "") -> Markup:
    """Items one after the other; a screen reader tells what they are once."""
    views = (tag("div", *(shown(media, "") for media in modality.media(item))) for item in items)
    return tag("div", *views, class_=f"gallery {kind}".strip(), role="group", aria_label=label)


# settings


def settings(contents: Contents) -> Markup:
    """All settings of all stages."""
    stages = contents.run.stages()
    tables = (_settings_table(stage, flat(values)) for stage, values in stages.items())
    return tag("div", *tables, class_="settings")


def _settings_table(stage: str, values: dict[str, Any]) -> Markup:
    lines = [(name, cut(value)) for name, value in list(values.items())[:SETTINGS]]
    if len(values) > SETTINGS:
        lines.append(("...", f"and {len(values) - SETTINGS} more"))
    return table(("setting", "value"), lines, stage)


def cut(value: object) -> str:
    """A setting in words, not endlessly long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}..."


def commands(contents: Contents) -> Markup:
    """Commands that make the run again."""
    note = (
        "From the settings. A step that was taken in Python may have settings for which there is no option."
    )
    lines = tag("pre", tag("code", "\n".join(commands_of(contents.run))), tabindex=0)
    return joined([tag("p", note, class_="note"), lines])


SECTIONS: tuple[Section[Contents], ...] = (
    Section("figures", "Figures", figures),
    Section("curves", "Curves", lambda contents: curves({"": contents})),
    Section("reconstructions", "Reconstructions and codes", reconstructions),
    Section("samples", "Samples", samples),
    Section("codebook", "Codebook", codebook),
    Section("random", "Random codes", random_codes),
    Section("settings", "Settings", settings),
    Section("commands", "Commands that make it again", commands),
)
