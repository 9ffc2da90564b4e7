"""A run's folder: the settings of its stages, and a lock."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vqfast.files import check_folder, remove_leftovers, take_lock
from vqfast.pipeline.options import in_present_words
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.saving.storage import read_json, write_json

FORMAT = 2  # of run.json and of the files that it describes


class Run:
    """A run's folder. Each stage notes its settings in ``run.json``; only the same settings may go on there.

    Args:
        folder: the path.
        create: whether to make the folder if it isn't there, or is empty.
        lock: whether to keep other processes from working in the folder, as long as the object lives. Reading
            needs no lock.

    Raises:
        FileNotFoundError: there is no run, and ``create`` is false.
        ValueError: the folder holds something else, another process works in it, or its lock is a link or no
            regular file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = Run(folder, create=True)
    ...     run.begin("vqvae", {"steps": 100})
    ...     run.settings("vqvae"), run.settings("prior")
    ({'steps': 100}, None)
    """

    def __init__(self, folder: str | Path, *, create: bool = False, lock: bool = True) -> None:
        self.folder = Path(folder)
        self._marker = self.folder / "run.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; want a run folder")
        if not self._marker.is_file():
            if self.folder.is_dir() and any(path.name[0] != "." for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder} holds something else, not a vqfast run; use another folder")
            if not create:
                raise FileNotFoundError(f"{self.folder} holds no vqfast run: train one first")
            self.folder.mkdir(parents=True, exist_ok=True)
        self.stages()  # refuses the run.json of something else
        if lock:
            file = take_lock(self.folder / ".lock")
            if file is None:
                raise ValueError(f"{self.folder} is in use by another vqfast process")
            weakref.finalize(self, _release, file, self.folder, self._marker)
            remove_leftovers(self.folder)

    @classmethod
    def shared(cls, folder: str | Path, ranks: Ranks, *, create: bool = False, lock: bool = True) -> Run:
        """A run in which several processes work: the first of them creates and locks it."""
        run = cls(folder, create=create, lock=lock) if ranks.first else None
        ranks.barrier()
        return run or cls(folder, create=create, lock=False)

    def begin(
        self,
        stage: str,
        settings: Mapping[str, Any],
        *,
        growing: Collection[str] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        """Notes the settings of a stage. They replace others as long as the stage has no files.

        Args:
            stage: its name, such as ``"vqvae"`` or ``"codes/train"``.
            settings: JSON values by name.
            growing: names of settings that may be raised where there are files, or be left out.
            ranks: the processes that all call this; the first of them writes.

        Raises:
            ValueError: there are files of this stage with other settings, ``run.json`` is damaged, or a
                folder is a link of another user.
        """
        if ranks.first:
            self._begin(stage, settings, growing)
        ranks.barrier()

    def is_raised(self, stage: str, settings: Mapping[str, Any], growing: Collection[str]) -> bool:
        """Whether the settings are those of the stage but for larger numbers at the names ``growing``."""
        before, now = self.settings(stage), json.loads(json.dumps(settings))
        if before is None or before == now:
            return False
        sizes = [(before.pop(name, math.inf), now.pop(name, math.inf)) for name in growing]
        return before == now and all(old <= new for old, new in sizes)

    def _begin(self, stage: str, settings: Mapping[str, Any], growing: Collection[str]) -> None:
        for place in (self.folder / stage, *(self.folder / parent for parent in Path(stage).parents)):
            check_folder(place)
        remove_leftovers(self.folder / stage)
        stages = self.stages()
        settings = json.loads(json.dumps(settings))
        if stages.get(stage) == settings:
            return
        raised = self.is_raised(stage, settings, growing)
        if stage in stages and not raised and self._has_files(stage):
            before, now = flat(stages[stage]), flat(settings)
            changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            changes = ", ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
            raise ValueError(f"{self.folder} has {stage} with other settings: {changes}; use another folder")
        write_json(self._marker, {"format": FORMAT, "stages": {**stages, stage: settings}})

    def _has_files(self, stage: str) -> bool:
        return (self.folder / stage).exists() or any(self.folder.glob(f"{stage}.*"))

    def settings(self, stage: str) -> dict[str, Any] | None:
        """The settings of a stage; None if it wasn't begun."""
        return self.stages().get(stage)

    def stages(self) -> dict[str, dict[str, Any]]:
        """The settings of all stages that were begun, by name."""
        run = read_json(self._marker) if self._marker.is_file() else {"stages": {}}
        stages = run.get("stages") if isinstance(run, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
            raise ValueError(f"{self._marker} is no vqfast run's")
        if stages and run.get("format") != FORMAT:
            wanted = f"want {FORMAT}: train the run anew"
            raise ValueError(f"{self._marker} has format {run.get('format')!r}; {wanted}")
        return {stage: in_present_words(settings) for stage, settings in stages.items()}


def _release(lock: BinaryIO, folder: Path, marker: Path) -> None:
    """Gives a run's folder back, and removes it if no stage was begun."""
    if not marker.is_file():
        (folder / ".lock").unlink(missing_ok=True)
        with suppress(OSError):  # somebody put something there
            folder.rmdir()
    lock.close()


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without nesting: ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = {f".{key}": v for key, v in flat(value).items()} if isinstance(value, dict) else {"": value}
        found |= {f"{name}{key}": v for key, v in inner.items()}
    return found
