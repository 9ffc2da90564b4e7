"""A run in a few facts and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vqfast.pipeline.pages.contents import Contents
from vqfast.pipeline.pages.html import Markup, tag
from vqfast.pipeline.parts import HELD_OUT, TRAIN
from vqfast.pipeline.times import in_words, times_of

NAMES = {
    "mse": "Squared error",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "perplexity": "Perplexity of codes",
}


def figure_name(name: str) -> str:
    """What a figure is called on the page; ``perplexity-1`` is that of level 1."""
    stem, _, level = name.partition("-")
    known = NAMES.get(stem, stem.replace("_", " ").capitalize())
    return f"{known}, level {level}" if level else known


def of_level(level: int, levels: Sequence[object]) -> str:
    """Which level something belongs to, where there are several."""
    return f", level {level}" if len(levels) > 1 else ""


def tile(name: str, value: str) -> Markup:
    """A name above its value, within a ``dl``."""
    return tag("div", tag("dt", name), tag("dd", value))


def figures_of(contents: Contents) -> tuple[dict[str, str], str]:
    """Figures of the VQ-VAE by name, and a line that says what they were measured on."""
    found = {
        figure_name(name): f"{value:.4g}"
        for name, value in contents.figures.items()
        if not name.startswith("codes_in_use")
    }
    where, counts = contents.counts
    for level, count in enumerate(counts):
        unused = f"{int((count == 0).sum()):,} of {len(count):,}"
        found[f"Codes never used{of_level(level, counts)}"] = unused
    measured, item = len(contents.measured), contents.modality.item
    note = (
        f"Measured on {measured:,} of {len(contents.held_out):,} held-out {item}s; use of codes in {where}."
    )
    return found, note


def prior_figures_of(contents: Contents) -> tuple[dict[str, str], str]:
    """The same of the priors; nothing where none was begun."""
    if contents.run.settings("prior") is None:
        return {}, ""
    (num, bits), sizes = contents.bits, contents.vqvae.codebook_sizes
    found = {f"Bits per code{of_level(level, sizes)}": f"{value:.3f}" for level, value in bits.items()}
    uniform = " or ".join(dict.fromkeys(f"{math.log2(sizes[level]):.3g}" for level in bits))
    items = f"{num:,} held-out {contents.modality.item}s"
    return found, f"Bits per code of {items}; a uniform prior needs {uniform}."


FIGURES = (figures_of, prior_figures_of)


def summary(contents: Contents) -> Markup:
    """The run in a few facts; those that can't be told are left out."""
    facts = [(name, value) for name, tell in FACTS.items() if (value := attempt(tell, contents))]
    return tag("dl", *(tile(name, value) for name, value in facts), class_="facts")


def attempt(tell: Callable[[Contents], str], contents: Contents) -> str:
    """A fact, empty where the run doesn't tell it."""
    try:
        return tell(contents)
    except Exception:  # the section that needs the part says why it is missing
        return ""


def _data(contents: Contents) -> str:
    parts = contents.parts
    shape = " x ".join(map(str, parts[TRAIN].shape[1:]))
    item = contents.modality.item
    return f"{len(parts[TRAIN]):,} {item}s of {shape}, {len(parts[HELD_OUT]):,} held out"


def _model(contents: Contents) -> str:
    number = sum(p.numel() for p in contents.vqvae.parameters())
    return f"{(contents.run.settings('vqvae') or {}).get('model')}, {number:,} parameters"


def _prior(contents: Contents) -> str:
    numbers = (sum(p.numel() for p in prior.parameters()) for prior in contents.priors)
    kinds = (type(prior).__name__ for prior in contents.priors)
    return "; ".join(f"{kind}, {number:,} parameters" for kind, number in zip(kinds, numbers, strict=True))


def _codes(contents: Contents) -> str:
    model = contents.vqvae
    shapes = model.code_shapes(contents.held_out.shape[1:])
    return "; ".join(
        f"{' x '.join(map(str, shape))} of a codebook of {size}"
        for shape, size in zip(shapes, model.codebook_sizes, strict=True)
    )


def _size(contents: Contents) -> str:
    model, shape = contents.vqvae, contents.held_out.shape
    bits = sum(
        math.prod(grid) * math.log2(size)
        for grid, size in zip(model.code_shapes(shape[1:]), model.codebook_sizes, strict=True)
    )
    return f"{bits / 8:,.0f} bytes, {8 * math.prod(shape) / bits:,.0f} times smaller than 8 bits a value"


def _steps(contents: Contents) -> str:
    done = []
    for name, title in contents.trainings.items():
        last = contents.history(name)["step"][-1] + 1
        planned = (contents.run.settings(name) or {}).get("steps")
        done.append(f"{title}: {last:,.0f} of {planned} steps")
    return "; ".join(done)


def _times(contents: Contents) -> str:
    times = times_of(contents.run.folder)
    return "; ".join(f"{t}: {in_words(times[n])}" for n, t in contents.trainings.items() if n in times)


FACTS: dict[str, Callable[[Contents], str]] = {
    "Data": _data,
    "Model": _model,
    "Codes": _codes,
    "An item as codes": _size,
    "Prior": _prior,
    "Trained": _steps,
    "When": _times,
}
