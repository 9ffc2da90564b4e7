"""When a run's trainings took place and how long they worked: ``times.json``, the only file that isn't the
same bits when a training is begun again."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from vqfast.saving.storage import read_json, write_json

TIMES = "times.json"  # in a run's folder


class Clock:
    """Notes when a training began, when it was last at work, and for how long in all its sittings.

    Args:
        folder: the run's.
        name: of the training.
        anew: whether it begins now; else it goes on.
    """

    def __init__(self, folder: Path, name: str, *, anew: bool) -> None:
        self._file, self._name = folder / TIMES, name
        before = {} if anew else times_of(folder).get(name, {})
        self._began, self._seconds = before.get("began", _now()), before.get("seconds", 0.0)
        self._start = time.monotonic()

    def note(self) -> None:
        """Writes the times until now."""
        seconds = round(self._seconds + time.monotonic() - self._start, 3)
        noted = {"began": self._began, "ended": _now(), "seconds": seconds}
        write_json(self._file, {**times_of(self._file.parent), self._name: noted})


def times_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The times of each training, by name; none where the file is missing or damaged.

    >>> times_of(Path("nowhere"))
    {}
    """
    try:
        found = read_json(folder / TIMES)
        return {name: {**entry, "seconds": float(entry["seconds"])} for name, entry in found.items()}
    except (AttributeError, LookupError, OSError, TypeError, ValueError):
        return {}


def in_words(noted: dict[str, Any]) -> str:
    """When a training took place, in words.

    >>> in_words({"began": "2026-03-01 09:30 UTC", "ended": "2026-03-01 11:00 UTC", "seconds": 4000.0})
    '1:06:40 of work, 2026-03-01 09:30 UTC to 2026-03-01 11:00 UTC'
    """
    return f"{timedelta(seconds=round(noted['seconds']))} of work, {noted['began']} to {noted['ended']}"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
