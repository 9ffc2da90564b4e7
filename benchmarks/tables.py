"""A record's tables in Markdown."""

from __future__ import annotations

import math
from itertools import pairwise

from benchmarks.record import Record, Row, curves, median, quartiles


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def duration(seconds: float) -> str:
    """Three digits and a unit that fits: ``3.71 ms``."""
    scale, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * scale:.3g} {unit}"


def _memory(found: int | None) -> str:
    if found is None:
        return ""
    return f"; {found / 2**20:.0f} MB" if found >= 2**20 else "; <1 MB"


def _vqfast(row: Row) -> str:
    """vqfast's cell: its median, half the distance of the quartiles, and memory."""
    samples = row["seconds"]["vqfast"]
    took, (lower, upper) = median(row)["vqfast"], quartiles(samples)
    return f"{duration(took)} (±{(upper - lower) / 2 / took:.0%}){_memory(row['memory'].get('vqfast'))}"


def _peer(row: Row, name: str) -> str:
    """A peer's cell: how many times vqfast's time it takes, and its memory.

    The ratio is bold where the peer is faster, and begins with ``~`` where only a part was timed.
    """
    if name not in row["seconds"]:
        return "absent" if name in row["absent"] else "wrong" if name in row["wrong"] else ""
    medians = median(row)
    ratio = medians[name] / medians["vqfast"]
    text = f"{ratio:.3g}x" if ratio < 10 else f"{ratio:.0f}x"
    if row["parts"].get(name, 1) < 1:
        text = f"~{text}"
    if ratio < 1 and not name.startswith("vqfast"):  # "vqfast, bfloat16 weights" is no peer
        text = f"**{text}**"
    return text + _memory(row["memory"].get(name))


def line(row: Row) -> str:
    """What is printed of a case while the suites run."""
    return ", ".join(f"{name} {duration(took)}" for name, took in median(row).items())


def suite(record: Record, name: str) -> str:
    """The table of a suite: all its cases but the points of growth curves."""
    rows = [row for row in record["suites"][name]["rows"] if not row["sweep"]]
    seen = dict.fromkeys(who for row in rows for who in (*row["seconds"], *row["absent"], *row["wrong"]))
    ran = {who for row in rows for who in (*row["seconds"], *row["wrong"])}
    peers = [who for who in seen if who != "vqfast" and who in ran]
    with_floor = any(row["floor"] for row in rows)
    cells = []
    for row in rows:
        cells.append([row["case"], _vqfast(row), *(_peer(row, peer) for peer in peers)])
        if with_floor:
            floor = row["floor"]
            cells[-1].append(f"{floor['seconds'] / median(row)['vqfast']:.1%}" if floor else "")
    head = [name.replace("_", " "), "vqfast", *peers, *["of the floor"] * with_floor]
    return grid(head, cells)


def missing(record: Record, name: str) -> str:
    """The peers and cases of a suite that aren't in its table, and why."""
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
    """How time grows along each axis: the exponent from one size to the next; 1 is linear, 0 constant."""
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


def conditions(record: Record, _: str) -> str:
    """With what the suites were measured: one line for all suites that share it."""
    found: dict[str, list[str]] = {}
    for name, about in record["suites"].items():
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
        form = f"{about['form']} form, {about['rounds']} rounds"
        text = f"commit {about['commit']}, {threads}, {form}; {versions}"
        found.setdefault(text, []).append(name.replace("_", " "))
    lines = "".join(f"- {', '.join(names)}: {text}\n" for text, names in found.items())
    return f"{record['device']}\n\n{lines}"


def networks(record: Record, _: str) -> str:
    """What came out for the networks of public repositories; a repository is named on its first line."""
    cells, before = [], ""
    for row in record["rows"]:
        repository = "" if row["repository"] == before else row["repository"]
        cells.append([repository, row["network"], f"**{row['result']}**; {row['why']}"])
        before = row["repository"]
    return grid(["repository", "network", "what came out"], cells)


def demo(record: Record, _: str) -> str:
    """What the demo reached with each seed, and how long the first one took."""
    cells = []
    for found in record["seeds"]:
        agrees = found["classifier_agrees_with_requested_label"]
        cells.append([str(found["seed"]), f"{agrees:.1%}", f"{found['psnr']:.1f} dB"])
    table = grid(
        ["seed", f"of {record['generated']} new digits, as requested", "held-out digits, decoded"], cells
    )
    right = record["classifier_accuracy_on_held_out_digits"]
    return (
        f"{table}\nSeed 0 took {record['seconds']:.0f} s on {record['device']}. "
        f"The classifier is right on {right:.1%} of held-out real digits.\n"
    )


def printed(record: Record) -> str:
    """All of a record, as the command prints it."""
    parts = [conditions(record, "all")]
    for name in record["suites"]:
        if record["suites"][name]["rows"]:
            parts.append(suite(record, name))
        parts += [made for kind in (missing, findings, growth) if (made := kind(record, name))]
    return "\n".join(parts)
