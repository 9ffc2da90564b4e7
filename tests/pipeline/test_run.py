"""Run folders: settings, locks, and folders of something else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vqfast.pipeline import Run
from vqfast.pipeline.ranks import ALONE
from vqfast.saving.storage import read_json


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_run_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with pytest.raises(FileNotFoundError, match="holds no vqfast run: train one first"):
        Run(folder)
    assert not folder.exists()
    run = Run(folder, create=True)
    assert run.settings("vqvae") is None
    run.begin("vqvae", {"steps": 3, "pair": (1, 2)})
    assert run.settings("vqvae") == {"steps": 3, "pair": [1, 2]}
    del run
    again = Run(str(folder))
    again.begin("vqvae", {"steps": 3, "pair": (1, 2)})
    again.begin("prior", {"steps": 3})
    assert list(read_json(folder / "run.json")["stages"]) == ["vqvae", "prior"]


def test_a_folder_with_hidden_files_only_is_free(tmp_path: Path) -> None:
    (tmp_path / ".vqfast-0.tmp").write_bytes(b"{")  # of a process that was killed
    Run(tmp_path, create=True).begin("vqvae", {})


@pytest.mark.parametrize("create", [False, True])
def test_folders_that_belong_to_something_else(tmp_path: Path, create: bool) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for folder, message in ((tmp_path, "holds something else"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(ValueError, match=message):
            Run(folder, create=create)
    assert files(tmp_path) == {"thesis.tex": b"x"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "1", "null", "{}", '{"stages": []}', '{"stages": {"vqvae": 1}}']
)
def test_run_json_of_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    for create in (False, True):
        with pytest.raises(ValueError, match=r"run\.json is no (vqfast run's|JSON file)"):
            Run(tmp_path, create=create)
    assert files(tmp_path) == {"run.json": content.encode()}


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, create=True).begin("vqvae", {"a": 1})
    note = json.loads((tmp_path / "run.json").read_text())
    for format in (1, None, "2"):
        (tmp_path / "run.json").write_text(json.dumps({**note, "format": format}))
        with pytest.raises(ValueError, match=rf"run\.json has format {format!r}; want 2: train the run anew"):
            Run(tmp_path)


def test_other_settings_are_refused_once_there_is_output(tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    run.begin("vqvae", {"lr": float("nan"), "images": {"size": 8}})
    run.begin("vqvae", {"lr": 0.1, "images": {"size": 8}})  # nothing came of the first
    run.begin("codes/train", {"num": 3})
    (tmp_path / "vqvae.state.safetensors").write_bytes(b"")
    (tmp_path / "codes" / "train").mkdir(parents=True)
    before = files(tmp_path)
    run.begin("vqvae", {"lr": 0.1, "images": {"size": 8}})
    for now, message in (
        (
            {"lr": 0.2, "images": {"size": 8}},
            "has vqvae with other settings: lr was 0.1, now 0.2; use another",
        ),
        ({"lr": 0.1, "images": {"size": 16}}, "settings: images.size was 8, now 16; use"),
        ({"images": {"size": 8}, "beta": 2}, "settings: beta was None, now 2, lr was 0.1, now None; use"),
    ):
        with pytest.raises(ValueError, match=message):
            run.begin("vqvae", now)
    with pytest.raises(ValueError, match="codes/train with other settings: num was 3, now 4"):
        run.begin("codes/train", {"num": 4})
    assert files(tmp_path) == before


def test_links_to_folders_of_others_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", create=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "codes").symlink_to(tmp_path / "elsewhere")
    run.begin("codes/train", {"num": 3})  # one's own links stay in use
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ValueError, match=r"codes is a link of another user's; want a folder"):
        run.begin("codes/held-out", {"num": 3})
    assert run.settings("codes/held-out") is None


def test_an_unchanged_note_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, create=True)
    run.begin("vqvae", {"a": 1})
    monkeypatch.setattr("vqfast.pipeline.run.write_json", None)
    run.begin("vqvae", {"a": 1})


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run.shared(tmp_path, ALONE, create=True)
    with pytest.raises(ValueError, match="in use by another vqfast process"):
        Run(tmp_path, create=True)
    run.begin("vqvae", {"a": 1})
    assert Run(tmp_path, lock=False).settings("vqvae") == {"a": 1}  # reading is free
    del run
    assert json.loads((tmp_path / "run.json").read_text())["format"] == 2
    Run(tmp_path)


def test_a_stage_is_not_held_by_the_files_of_one_whose_name_begins_like_it(tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    run.begin("prior", {"lr": 1.0})
    (tmp_path / "prior-1.safetensors").write_bytes(b"")
    run.begin("prior", {"lr": 0.1})
    assert run.settings("prior") == {"lr": 0.1}
