"""The tables of docs/migration.md name every argument of the installed vector-quantize-pytorch."""

import inspect
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


@pytest.mark.parametrize("name", ["VectorQuantize", "ResidualVQ"])
def test_every_argument_has_a_line(name):
    library = pytest.importorskip(
        "vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed"
    )
    section = PAGE.read_text(encoding="utf-8").partition(f"### `{name}`")[2].partition("\n### ")[0]
    named = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| "))
    cls = getattr(library, name)
    arguments = {*inspect.signature(cls).parameters, *inspect.signature(cls.forward).parameters}
    assert not {
        argument for argument in arguments - {"self"} if f"`{argument}" not in named.replace("**", "")
    }
