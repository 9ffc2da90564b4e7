"""Pages that tell what a run has learned, or how several runs differ: one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Iterable

from vqfast.data.disk import one_line
from vqfast.files import write_file
from vqfast.pipeline.pages.comparison import COMPARISONS, labelled
from vqfast.pipeline.pages.contents import Contents
from vqfast.pipeline.pages.facts import summary
from vqfast.pipeline.pages.html import Markup, page, tag
from vqfast.pipeline.pages.sections import SECTIONS, Section, Source
from vqfast.pipeline.progress import warn_of
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run

PAGE = "report.html"  # in a run's folder


def report(*runs: Run, ranks: Ranks = ALONE) -> bytes:
    """A page about a run, or one that compares runs.

    Of a run it shows figures, curves, held-out items beside their reconstructions and codes, samples, the
    codebook, random codes, all settings and the commands; of several runs how they differ. It says what a run
    lacks and what is damaged in the place of it. It is a single file, has no script and loads nothing.

    Args:
        runs: one or more; they may be unfinished.
        ranks: the device to compute on.

    Returns:
        HTML, UTF-8.

    Raises:
        TypeError: there is no run.

    >>> import tempfile
    >>> from vqfast.pipeline import Training, train_vqvae
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = Run(folder, create=True)
    ...     small = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4}
    ...     training = Training(steps=2)
    ...     _ = train_vqvae(run, "digits", model_options=small, training=training)
    ...     report(run)[:15]
    b'<!doctype html>'
    """
    if not runs:
        raise TypeError("runs is empty; want one run or more")
    contents = [Contents(run, ranks) for run in runs]
    if len(contents) == 1:
        return _page("vqfast run", contents[0].name, summary(contents[0]), SECTIONS, contents[0])
    named = labelled(contents)
    places = tag("ul", *(tag("li", str(one.run.folder)) for one in contents))
    return _page("vqfast runs", ", ".join(named), places, COMPARISONS, named)


def _page(kind: str, title: str, head: Markup, sections: Iterable[Section[Source]], source: Source) -> bytes:
    made: dict[str, tuple[str, Markup]] = {}
    reasons: dict[str, list[str]] = {}  # why sections can't be made -> their titles
    for section in sections:
        try:
            made[section.id] = section.title, section.make(source)
        except Exception as error:  # a damaged run raises nearly anything
            reasons.setdefault(one_line(error), []).append(section.title)
    if reasons:
        lines = (tag("p", tag("b", ", ".join(titles)), f": {why}") for why, titles in reasons.items())
        made["missing"] = "Not to be had", tag("div", *lines, class_="missing")
    links = [tag("a", title, href=f"#{name}") for name, (title, _) in made.items()]
    return page(
        f"{title}: {kind}",
        tag("header", tag("p", kind, class_="kind"), tag("h1", title), head),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(_section(name, title, body) for name, (title, body) in made.items())),
    )


def _section(name: str, title: str, body: Markup) -> Markup:
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, body, id=name, aria_labelledby=f"{name}-title")


def write_report(run: Run, ranks: Ranks) -> None:
    """Writes ``report.html`` into a run's folder, in the first process, if the run has newer weights.

    It is for the end of a step, which a page that can't be made doesn't fail: a line says why.
    """
    page = run.folder / PAGE
    if not ranks.first:
        return
    try:
        newest = max(path.stat().st_mtime_ns for path in run.folder.glob("*.safetensors"))
        if not page.is_file() or page.stat().st_mtime_ns < newest:
            write_file(page, report(run, ranks=ranks))
    except Exception as error:
        warn_of(ranks, "report", [f"{page} can't be written: {one_line(error)}"])
