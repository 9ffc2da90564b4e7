"""Records, tables and plots; the committed pages and pictures agree with the committed records."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import core, machine, nearest, pages, plots, record, tables

ROOT = Path(__file__).parents[2]
PEERS = {name: nearest.PEERS[name] for name in ("vqfast", "eager")}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a suite of four tiny cases, one of which fails."""
    folder = tmp_path_factory.mktemp("results")
    cases = [nearest.search(40, k, 3, PEERS, "K") for k in (4, 8)] + [nearest.search(40, 9, 3, PEERS)]
    broken = nearest.search(40, 9, 3, {"vqfast": lambda: lambda data: data[0].argmin()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "peak", lambda: machine.Peak(1e9, 1e8, "made up"))
        patch.setattr(nearest, "CASES", [*cases, broken])
        patch.setattr(nearest, "findings", lambda **_: {"wrong codes": {"vqfast": {"shifted by 0": 0}}})
        patch.setattr(record, "RESULTS", folder)
        assert command.main(["nearest", "--rounds", "2"]) == 1  # a case failed
        return record.path(machine.name())


def test_record_holds_every_sample_and_how_it_was_made(recorded: Path) -> None:
    suite = record.read(recorded)["suites"]["nearest"]
    assert [row["shape"]["K"] for row in suite["rows"]] == [4, 8, 9]
    assert all(len(row["seconds"][who]) == 2 for row in suite["rows"] for who in PEERS)
    assert list(suite["failed"]) == ["N 40, K 9, D 3"]
    assert suite["versions"].keys() >= {"python", "torch", "vqfast"}
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", suite["commit"])
    assert suite["rounds"] == 2


def test_other_suites_of_a_record_stay(recorded: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copy(recorded, tmp_path))
    before = record.read(copied)["suites"]["nearest"]
    record.add(copied, machine.name(), {"other": {"rows": []}})
    assert record.read(copied)["suites"] == {"nearest": before, "other": {"rows": []}}


def test_plots_show_the_record_and_say_which(recorded: Path) -> None:
    drawn = {path.name.removeprefix(f"{recorded.stem}-"): path for path in plots.draw(recorded)}
    assert drawn.keys() == {"ratios.png", "growth-nearest.png"}
    for path in drawn.values():
        with Image.open(path) as picture:
            assert picture.text[plots.KEY] == plots.digest(record.read(recorded), ["nearest"])
            assert len(picture.convert("L").getcolors(256)) > 20


ROW = {
    "case": "N 8",
    "shape": {"N": 8},
    "sweep": None,
    "seconds": {"vqfast": [2e-3, 4e-3, 3e-3], "fast": [1e-3, 1.5e-3, 2e-3], "slow": [0.09, 0.09, 0.1]},
    "memory": {"vqfast": 3 << 20, "slow": 70 << 20},
    "parts": {"slow": 0.5},
    "absent": {"gone": "not installed"},
    "wrong": {},
    "floor": {"flop": 1, "bytes": 1, "seconds": 1.5e-3},
}


def record_of(*rows: dict, **more) -> dict:
    return {"device": "a machine", "suites": {"nearest": {"rows": list(rows), **more}}}


def test_table_shows_medians_ratios_losses_parts_memory_and_the_floor() -> None:
    table = tables.suite(record_of(ROW), "nearest")
    assert table.splitlines()[0] == "| nearest | vqfast | fast | slow | of the floor |"
    assert table.splitlines()[2] == "| N 8 | 3 ms (±17%); 3 MB | **0.5x** | ~30x; 70 MB | 50.0% |"


def test_absent_peer_of_one_case_is_named_in_its_row() -> None:
    other = ROW | {"seconds": ROW["seconds"] | {"gone": [0.3]}, "absent": {}}
    wrong = ROW | {"absent": {}, "wrong": {"gone": "finds wrong codes"}}
    lines = tables.suite(record_of(other, ROW, wrong), "nearest").splitlines()
    assert "| 100x |" in lines[2]
    assert "| absent |" in lines[3]
    assert "| wrong |" in lines[4]


def test_peers_and_cases_that_are_missing_from_the_table_are_printed_with_the_reason() -> None:
    wrong = ROW | {"wrong": {"bad": "finds wrong codes"}}
    found = record_of(ROW, wrong, failed={"N 9": "RuntimeError: no memory"})
    assert tables.missing(found, "nearest").splitlines() == [
        "- N 9: RuntimeError: no memory",
        "- gone: not installed",
        "- bad: finds wrong codes",
    ]


def test_suites_that_share_conditions_share_a_line() -> None:
    about = {"commit": "abc", "threads": 2, "form": "quick", "rounds": 3, "versions": {"torch": "2.13"}}
    suites = {"nearest": about, "residual_vq": about, "layer": about | {"threads": 1}}
    lines = tables.conditions({"device": "a machine", "suites": suites}, "all").splitlines()
    assert lines[0] == "a machine"
    assert lines[2:] == [
        "- nearest, residual vq: commit abc, 2 threads, quick form, 3 rounds; torch 2.13",
        "- layer: commit abc, 1 thread, quick form, 3 rounds; torch 2.13",
    ]


def test_growth_is_the_exponent_between_sizes() -> None:
    rows = [
        ROW | {"shape": {"N": n, "K": 5}, "sweep": "N", "seconds": {"vqfast": [n**2], "peer": [n]}}
        for n in (1, 2, 8)
    ]
    lines = tables.growth(record_of(*rows), "nearest").splitlines()
    assert lines[0] == "| exponent of N | 1 to 2 | 2 to 8 |"
    assert lines[2:] == ["| vqfast | 2.00 | 2.00 |", "| peer | 1.00 | 1.00 |"]


def test_marked_parts_are_made_anew_and_the_rest_stays(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    (tmp_path / "a-machine.json").write_text(json.dumps(record_of(ROW)))
    text = "before\n<!-- table nearest a-machine -->\nold | figures\n<!-- end -->\nafter"
    new = pages.filled(text)
    assert "old" not in new
    assert new.startswith("before\n<!-- table nearest a-machine -->\n\n| nearest | vqfast |")
    assert new.endswith("|\n\n<!-- end -->\nafter")
    assert pages.filled(new) == new
    empty = pages.filled(text.replace("nearest", "layer"))
    assert empty == "before\n<!-- table layer a-machine -->\n<!-- end -->\nafter"
    with pytest.raises(KeyError):
        pages.filled(text.replace("table", "chart"))


def test_a_marker_can_choose_lines(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    rows = [ROW | {"case": case} for case in ("a", "b", "c")]
    (tmp_path / "a-machine.json").write_text(json.dumps(record_of(*rows)))
    new = pages.filled("<!-- table nearest a-machine: a | c -->\n<!-- end -->")
    assert [line[:4] for line in new.splitlines() if line.startswith("|")] == ["| ne", "| --", "| a ", "| c "]
    assert pages.filled(new) == new


def test_unknown_suite_and_no_rounds_are_errors(capsys) -> None:
    for arguments, message in ((["speed"], "no suite speed"), (["--rounds", "0"], "--rounds is 0")):
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_every_suite_has_a_table_on_a_page() -> None:
    text = "".join(page.read_text() for page in pages.PAGES)
    marked = {(kind, name) for _, kind, name, *_ in pages.MARKED.findall(text)}
    untimed = dict.fromkeys(("training", "mnist", "hierarchy", "speech"), "findings")
    assert {(untimed.get(name, "table"), name) for name in command.SUITES} <= marked


def test_pages_are_what_the_records_say() -> None:
    for page in pages.PAGES:
        assert pages.filled(page.read_text(), page.parent) == page.read_text(), (
            "python -m benchmarks --pages makes it anew"
        )


def test_the_pictures_are_what_the_records_say() -> None:
    assert record.paths()
    for where in record.paths():
        found = record.read(where)
        for picture, suites in record.pictures(found):
            with Image.open(record.picture_path(where, picture)) as image:
                assert image.text[plots.KEY] == plots.digest(found, suites), "python -m benchmarks --pages"
