"""The pages with figures: README and docs. Each table stands between markers and is made from a record.

A marker is ``<!-- kind suite device -->``, or ``<!-- kind suite device: a | b -->`` for only the lines of a
table that begin with ``a`` or ``b``. The part that it marks ends at ``<!-- end -->``.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import tables
from benchmarks.machine import ROOT
from benchmarks.record import RESULTS, Record, path, picture_path, pictures, read

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(
    r"(?P<start><!-- (?P<kind>\w+) (?P<suite>[\w-]+) (?P<device>[\w-]+)(: (?P<lines>.+?))? -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def plot(record: Record, picture: str) -> str:
    """An image by its path under the project; nothing if the record has no such picture."""
    if picture not in dict(pictures(record)):
        return ""
    target = picture_path(path(record["device"]), picture).relative_to(ROOT)
    return f"![{picture.replace('-', ' ')}, {record['device']}]({target.as_posix()})\n"


KINDS = {
    "table": tables.suite,
    "findings": tables.findings,
    "growth": tables.growth,
    "conditions": tables.conditions,
    "networks": tables.networks,
    "demo": tables.demo,
    "plot": plot,
}


def filled(text: str, folder: Path = ROOT) -> str:
    """The ``text`` of a page in ``folder`` with every marked part made anew.

    A part is empty where the record lacks its suite.

    Raises:
        KeyError: a marker names a kind or a device that doesn't exist.
    """
    up = "../" * len(folder.relative_to(ROOT).parts)

    def make(found: re.Match[str]) -> str:
        kind, suite, start, end = found["kind"], found["suite"], found["start"], found["end"]
        record = read(RESULTS / f"{found['device']}.json")
        absent = kind in ("table", "findings", "growth") and suite not in record["suites"]
        made = "" if absent else KINDS[kind](record, suite)
        if found["lines"]:
            made = chosen(made, found["lines"].split(" | "))
        made = made.replace("](", f"]({up}")
        return f"{start}\n{made}\n{end}" if made else f"{start}{end}"

    return MARKED.sub(make, text)


def chosen(table: str, firsts: list[str]) -> str:
    """A table's head and its lines whose first cell is one of ``firsts``."""
    *head, body = table.split("\n", 2)
    lines = [line for line in body.splitlines() if line.split(" | ")[0].removeprefix("| ") in firsts]
    return "\n".join([*head, *lines, ""])


def fill_all() -> None:
    """Makes the tables of all pages anew."""
    for page in PAGES:
        page.write_text(filled(page.read_text(), page.parent))
