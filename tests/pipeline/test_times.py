"""When a run's trainings took place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.trained import train
from vqfast.pipeline import Run, loop, times
from vqfast.pipeline.pages.contents import Contents
from vqfast.pipeline.pages.facts import FACTS
from vqfast.pipeline.times import Clock, times_of


def test_sittings_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(times.time, "monotonic", lambda: now)
    monkeypatch.setattr(times, "_now", lambda: f"at {now:g}")
    for anew, seconds in ((True, 5.0), (False, 7.0)):
        clock = Clock(tmp_path, "prior", anew=anew)
        now += seconds - 2
        clock.note()
        now += 2
        clock.note()
        now += 1000  # nothing runs
    assert times_of(tmp_path) == {"prior": {"began": "at 100", "ended": "at 1112", "seconds": 12.0}}
    Clock(tmp_path, "prior", anew=True).note()
    Clock(tmp_path, "vqvae", anew=False).note()
    assert times_of(tmp_path)["prior"] == {"began": "at 2112", "ended": "at 2112", "seconds": 0.0}
    assert list(times_of(tmp_path)) == ["prior", "vqvae"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"vqvae": 3}', '{"vqvae": {"seconds": "x"}}'])
def test_damaged_times_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "times.json").write_text(text)
    assert times_of(tmp_path) == {}


def test_a_training_notes_its_times(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, create=True)
    train(run, data)
    (noted,) = times_of(tmp_path).values()
    assert noted["seconds"] > 0
    assert FACTS["When"](Contents(run)).startswith("VQ-VAE: 0:00:")
    monkeypatch.setattr(loop, "_take_step", None)  # nothing is trained again
    train(run, data)
    assert times_of(tmp_path) == {"vqvae": noted}
