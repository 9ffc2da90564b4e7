"""What Python fills by name and what the native library declares are the same names."""

from __future__ import annotations

import re

import pytest

from vqfast.ops import build, library
from vqfast.ops.contract import Contract
from vqfast.ops.masked_conv import layout
from vqfast.sampling import activations
from vqfast.sampling.program import Phase

TEXT = "enum Phase row=0 position=1\nstruct Tap dy dx\nenum Source codes=-1\n"


def test_fields_are_ordered_by_name_and_values_found() -> None:
    contract = Contract(TEXT)
    assert contract.record("Tap", dx=3, dy=-1) == [-1, 3]
    assert contract.number("Phase", "position") == 1
    assert contract.number("Source", "codes") == -1


@pytest.mark.parametrize("fields, differ", [({"dx": 1}, "dy"), ({"dx": 1, "dy": 2, "dz": 3}, "dz")])
def test_fields_that_differ_are_named(fields: dict[str, int], differ: str) -> None:
    with pytest.raises(TypeError, match=f"^Tap of the native library .*: {differ}$"):
        Contract(TEXT).record("Tap", **fields)


def test_the_library_declares_the_names_that_python_uses() -> None:
    if (reason := library.unavailable()) is not None:
        pytest.skip(reason)
    enums = library.contract().enums
    assert set(enums["Activation"]) == set(activations.ACTIVATIONS)
    assert set(layout.ACTIVATIONS) <= set(enums["Activation"])
    assert set(enums["Phase"]) == {phase.name.lower() for phase in Phase}
    assert set(enums["Source"]) == {"codes", "condition"}
    assert min(enums["Activation"][name] for name in activations.PAIRED) == enums["Activation"]["gate"]
    assert {"Tap", "Term", "Step", "Attention", "SamplerSizes", "SearchCounts"} == set(
        library.contract().structs
    )


@pytest.mark.skipif(
    not (build.SOURCES / "README.md").exists(), reason="an installed package has no README.md here"
)
def test_the_readme_lists_every_file_in_its_room() -> None:
    listed: dict[str, set[str]] = {}
    for row in re.findall(r"^\| (.+?) \| .+ \|$", (build.SOURCES / "README.md").read_text(), re.MULTILINE):
        if room := re.fullmatch(r"\*\*(\w+)/\*\*", row):
            files = listed.setdefault(room[1], set())
        elif listed:
            files |= set(re.findall(r"`([\w.]+)`", row))
    found: dict[str, set[str]] = {}
    for path in build.sources():
        found.setdefault(path.parent.name, set()).add(path.name)
    assert listed == found
