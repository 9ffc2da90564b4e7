"""Records as Markdown. Tables in README and docs come from here, between markers: nobody types a figure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.record import RESULTS, Record, Row, median, path, quartiles, read

MARKED = re.compile(
    r"(?P<start><!-- (?P<kind>\w+) (?P<suite>[\w-]+) (?P<device>[\w-]+)(: (?P<lines>.+?))? -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def duration(seconds: float) -> str:
    """With three digits and a fitting unit."""
    scale, unit = next(
        (s, unit) for s, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")) if seconds * s >= 1 or unit == "us"
    )
    return f"{seconds * scale:.3g} {unit}"


def _size(found: int | None) -> str:
    if found is None:
        return ""
    return f"; {found / 2**20:.0f} MB" if found >= 2**20 else "; <1 MB"


def _peer(row: Row, name: str) -> str:
    """How many times as long as ours, bold if a peer is faster, ``~`` if a part was timed; memory."""
    for why in ("absent", "wrong"):
        if name in row[why]:
            return why
    if name not in row["seconds"]:
        return ""
    medians = median(row)
    ratio = medians[name] / next(iter(medians.values()))
    text = f"{ratio:.3g}x" if ratio < 10 else f"{ratio:.0f}x"
    text = ("~" if row["parts"].get(name, 1) < 1 else "") + text
    lost = ratio < 1 and not name.startswith("vqfast")  # which may be ours with other weights
    return (f"**{text}**" if lost else text) + _size(row["memory"].get(name))


def line(row: Row) -> str:
    """A row while the suites run."""
    medians = median(row)
    return ", ".join(f"{name} {duration(took)}" for name, took in medians.items())


def suite(record: Record, name: str) -> str:
    """The cases of one suite that aren't points of a growth curve."""
    rows = [row for row in record["suites"][name]["rows"] if not row["sweep"]]
    seen = dict.fromkeys(c for row in rows for c in (*row["seconds"], *row["absent"], *row["wrong"]))
    ran = {c for row in rows for c in (*row["seconds"], *row["wrong"])}
    peers = [c for c in seen if c != "vqfast" and c in ran]
    floors = any(row["floor"] for row in rows)
    cells = []
    for row in rows:
        ours, (lower, upper) = median(row)["vqfast"], quartiles(row["seconds"]["vqfast"])
        memory = _size(row["memory"].get("vqfast"))
        cells.append([row["case"], f"{duration(ours)} ({_spread(lower, upper, ours)}){memory}"])
        cells[-1] += [_peer(row, peer) for peer in peers]
        if floors:
            cells[-1].append(f"{row['floor']['seconds'] / ours:.1%}" if row["floor"] else "")
    return grid([name.replace("_", " "), "vqfast", *peers, *(["of the floor"] if floors else [])], cells)


def _spread(lower: float, upper: float, middle: float) -> str:
    return f"±{(upper - lower) / 2 / middle:.0%}"


def missing(record: Record, name: str) -> str:
    """Peers and cases that aren't in the table, and why."""
    about = record["suites"][name]
    found = {**about.get("absent", {}), **about.get("failed", {})}
    for row in about["rows"]:
        found |= row["absent"] | row["wrong"]
    return "".join(f"- {which}: {why}\n" for which, why in found.items())


def findings(record: Record, name: str) -> str:
    """What a suite counted rather than timed."""
    tables = []
    for title, counts in record["suites"][name].get("findings", {}).items():
        columns = list(next(iter(counts.values())))
        rows = [[who, *(str(found[column]) for column in columns)] for who, found in counts.items()]
        tables.append(grid([title, *columns], rows))
    return "\n".join(tables)


def growth(record: Record, name: str) -> str:
    """Of each axis, the exponent between neighbouring sizes: 1 is linear, 0 is for nothing."""
    tables = []
    for axis, rows in curves(record, name).items():
        sizes = [row["shape"][axis] for row in rows]
        times = [median(row) for row in rows]
        cells = []
        for who in times[0]:
            steps = zip(pairwise(sizes), pairwise(found[who] for found in times), strict=True)
            slopes = [f"{math.log(b / a) / math.log(n / m):.2f}" for (m, n), (a, b) in steps]
            cells.append([who, *slopes])
        head = [f"exponent of {axis}", *(f"{m} to {n}" for m, n in pairwise(sizes))]
        tables.append(grid(head, cells))
    return "\n".join(tables)


def curves(record: Record, name: str) -> dict[str, list[Row]]:
    """The points of each growth curve of a suite, by axis."""
    found: dict[str, list[Row]] = {}
    for row in record["suites"][name]["rows"]:
        if row["sweep"]:
            found.setdefault(row["sweep"], []).append(row)
    return found


def conditions(record: Record, _: str) -> str:
    """When and with what the suites were measured: a line for those that share it."""
    found: dict[str, list[str]] = {}
    for name, about in record["suites"].items():
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
        line = (
            f"commit {about['commit']}, {threads}, {about['form']} form, {about['rounds']} rounds; {versions}"
        )
        found.setdefault(line, []).append(name.replace("_", " "))
    lines = "".join(f"- {', '.join(names)}: {line}\n" for line, names in found.items())
    return f"{record['device']}\n\n{lines}"


def pictures(record: Record) -> Iterator[tuple[str, list[str]]]:
    """The names of a record's pictures, and of the suites that each shows."""
    timed = [name for name in record["suites"] if name not in ("first_result", "degenerate")]
    if timed:
        yield "ratios", timed
    for name in record["suites"]:
        if curves(record, name):
            yield f"growth-{name}", [name]
    if "first_result" in record["suites"]:
        yield "first-result", ["first_result"]


def picture_path(where: Path, picture: str) -> Path:
    """Of a picture of the record at ``where``."""
    return where.with_name(f"{where.stem}-{picture}.png")


def plot(record: Record, picture: str) -> str:
    """An image, if the record has it, by its path under the project."""
    if picture not in dict(pictures(record)):
        return ""
    target = picture_path(path(record["device"]), picture).relative_to(ROOT)
    return f"![{picture.replace('-', ' ')}, {record['device']}]({target.as_posix()})\n"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {"table": suite, "findings": findings, "growth": growth, "conditions": conditions, "plot": plot}


def filled(text: str, folder: Path = ROOT) -> str:
    """``text`` of a page in ``folder`` with every part between a marker and ``<!-- end -->`` made anew.

    A marker is ``<!-- kind suite device -->``, or ``<!-- kind suite device: a | b -->`` for only those lines
    of a table that begin with ``a`` or ``b``. A suite that the record lacks leaves nothing there.

    Raises:
        KeyError: there is no such kind or device.
    """

    up = "../" * len(folder.relative_to(ROOT).parts)

    def make(found: re.Match) -> str:
        record = read(RESULTS / f"{found['device']}.json")
        absent = found["kind"] not in ("plot", "conditions") and found["suite"] not in record["suites"]
        made = "" if absent else KINDS[found["kind"]](record, found["suite"])
        if found["lines"]:
            made = chosen(made, found["lines"].split(" | "))
        made = made.replace("](", f"]({up}")
        return f"{found['start']}\n{made}\n{found['end']}" if made else f"{found['start']}{found['end']}"

    return MARKED.sub(make, text)


def chosen(table: str, firsts: list[str]) -> str:
    """A table's head and its lines whose first cell is one of ``firsts``."""
    *head, body = table.split("\n", 2)
    lines = [line for line in body.splitlines() if line.split(" | ")[0].removeprefix("| ") in firsts]
    return "\n".join([*head, *lines, ""])


def printed(record: Record) -> str:
    """All of a record."""
    parts = [conditions(record, "all")]
    for name in record["suites"]:
        parts.append(suite(record, name))
        parts += [made for kind in (missing, findings, growth) if (made := kind(record, name))]
    return "\n".join(parts)
