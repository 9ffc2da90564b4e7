"""Phone labels in every format."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqfast.data.audio.phones import Phone, phone_at, read_phones

PHONES = [Phone(0.0, 0.1, ""), Phone(0.1, 0.25, "a"), Phone(0.25, 0.3, 't"')]
TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.3
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.3
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.3
            text = "at"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.3
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.25
            text = "a"
        intervals [3]:
            xmin = 0.25
            xmax = 0.3
            text = "t\"\""
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_textgrids(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.TextGrid"
    path.write_text(TEXTGRID, encoding=encoding)
    assert read_phones(path) == PHONES
    assert read_phones(path, tier="words") == [Phone(0.0, 0.3, "at")]
    with pytest.raises(ValueError, match="tier is 'sounds'; want 'words' or 'phones'"):
        read_phones(path, tier="sounds")


@pytest.mark.parametrize(
    "text",
    [
        "0 1000000 #\n1000000 2500000 a -12.5\n\n2500000 3000000 t\n",
        "0.0 0.1 #\n0.1 0.25 a\n0.25 0.3 t",
        "signal x\nnfields 1\n#\n0.1000 100 #\n0.2500 100 a\n0.3000 100 t\n",
    ],
)
def test_label_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.lab").write_text(text)
    assert read_phones(tmp_path / "x.lab") == [
        Phone(0.0, 0.1, "#"),
        Phone(0.1, 0.25, "a"),
        Phone(0.25, 0.3, "t"),
    ]


@pytest.mark.parametrize("text", ["a b c", "0 1", 'File type = "ooTextFile"\nshort', "#\nx 100 a"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.lab").write_text(text)
    with pytest.raises(ValueError, match=r"x\.lab: cannot read phones: "):
        read_phones(tmp_path / "x.lab")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_phones(tmp_path / "y.lab")


def test_the_phone_at_a_time() -> None:
    assert [phone_at(PHONES, t) for t in (0.0, 0.1, 0.2, 0.29, 0.3)] == ["", "a", "a", 't"', None]
