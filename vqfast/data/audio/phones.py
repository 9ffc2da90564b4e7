"""Phone labels beside recordings: Praat's TextGrid, HTK's label files, and the xwaves files of festival."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vqfast.data import disk
from vqfast.files import read_file

SUFFIXES = (".TextGrid", ".textgrid", ".lab", ".rec", ".phn", ".segs")
TICKS = 10_000_000  # of HTK, a second
MAX_BYTES = 64 << 20
STRING = r'"((?:[^"]|"")*)"'
INTERVAL = re.compile(rf"xmin\s*=\s*([\d.eE+-]+)\s*xmax\s*=\s*([\d.eE+-]+)\s*text\s*=\s*{STRING}")
TIER = re.compile(rf'class\s*=\s*"IntervalTier"\s*name\s*=\s*{STRING}')
PHONE_TIERS = ("phones", "phone", "phonemes", "segments", "MAU", "ORT-MAU")


class Phone(NamedTuple):
    """A phone and its times in seconds.

    >>> Phone(0.1, 0.25, "a").end
    0.25
    """

    start: float
    end: float
    name: str


def read_phones(path: str | Path, *, tier: str | None = None) -> list[Phone]:
    """The phones of a recording, in order.

    The content decides on the format:

    - Praat's TextGrid in its long form, of which one tier is read.
    - HTK: lines ``start end name``, integers of 100 ns; with decimal points they are seconds.
    - xwaves, as festival's ``utt.save.segs`` and many corpora have them: a header that ends with a line
      ``#``, then lines ``end colour name`` in seconds.

    Args:
        path: the file.
        tier: the name of the tier of a TextGrid; by default one called phones or alike, else the last.

    Raises:
        FileNotFoundError: it isn't there.
        ValueError: it has none of these formats, or no such tier.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "x.lab").write_text("0 1500000 a\\n1500000 2000000 t\\n")
    ...     read_phones(f"{folder}/x.lab")
    [Phone(start=0.0, end=0.15, name='a'), Phone(start=0.15, end=0.2, name='t')]
    """
    file = disk.existing_path("path", path)
    raw = read_file(file, MAX_BYTES)
    encoding = "utf-16" if raw[:2] in (b"\xfe\xff", b"\xff\xfe") else "utf-8-sig"
    text = raw.decode(encoding, errors="replace")
    try:
        if "ooTextFile" in text[:100]:
            return _of_textgrid(text, tier)
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if ["#"] in lines:
            return _of_xwaves(lines[lines.index(["#"]) + 1 :])
        return [_of_htk(line) for line in lines]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{file}: cannot read phones: {disk.one_line(error)}") from error


def _of_textgrid(text: str, tier: str | None) -> list[Phone]:
    tiers = list(TIER.finditer(text))
    names = [match[1] for match in tiers]
    if not tiers:
        raise ValueError("it has no tier of intervals in Praat's long form")
    if tier is not None and tier not in names:
        raise ValueError(f"tier is {tier!r}; want {' or '.join(map(repr, names))}")
    known = [name for name in names if name in PHONE_TIERS]
    place = names.index(tier if tier is not None else (known or names[-1:])[0])
    end = tiers[place + 1].start() if place + 1 < len(tiers) else len(text)
    found = INTERVAL.finditer(text, tiers[place].end(), end)
    return [Phone(float(m[1]), float(m[2]), m[3].replace('""', '"')) for m in found]


def _of_xwaves(lines: list[list[str]]) -> list[Phone]:
    ends = [float(line[0]) for line in lines]
    names = [line[2] if len(line) > 2 else "" for line in lines]
    return [Phone(*times) for times in zip([0.0, *ends[:-1]], ends, names, strict=True)]


def _of_htk(line: list[str]) -> Phone:
    if len(line) < 3:
        raise ValueError(f"it has the line {' '.join(line)!r}; want start, end and name")
    seconds = any("." in number for number in line[:2])
    start, end = (float(number) / (1 if seconds else TICKS) for number in line[:2])
    return Phone(start, end, line[2])


def phone_at(phones: list[Phone], seconds: float) -> str | None:
    """The name of the phone at a time, or None where there is none.

    >>> phone_at([Phone(0.0, 0.1, "a"), Phone(0.1, 0.2, "t")], 0.1)
    't'
    """
    return next((phone.name for phone in phones if phone.start <= seconds < phone.end), None)
