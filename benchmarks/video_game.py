"""Frames of a first-person game with the actions that led to them, for the suite ``video``.

The game is ViZDoom's scenario "my way home": rooms and corridors with walls of their own, which its package
brings along. A random policy turns left, turns right or goes forward, and does so for two to six frames. It
turns where it can't go on.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.core import AbsentError

ACTIONS = ("turn left", "turn right", "go forward")
HEIGHT, WIDTH, FINER = 48, 64, 5  # a pixel is the mean of FINER by FINER rendered ones
TICS = 2  # of the game's 35 a second, between two frames
TURN = 3.5  # degrees a tic
LENGTH = 100  # frames of an episode
HELD = (2, 7)  # an action is held for a number of frames from this range
STUCK = 2.0  # levels of 255: going forward changes a frame by less where there is a wall


class Game(NamedTuple):
    """Episodes of equal length.

    Attributes:
        clips: uint8 ``(N, LENGTH, 48, 64, 3)``.
        actions: int64 ``(N, LENGTH)``, the action that led to each frame.
    """

    clips: np.ndarray
    actions: np.ndarray


def read_game(file: Path, episodes: int) -> Game:
    """The episodes in ``file``, an array file as ``load_video`` reads them; they are played if it is missing.

    Raises:
        AbsentError: the file is missing, and ViZDoom isn't installed.
    """
    if not file.is_file():
        game = play(episodes)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            np.savez_compressed(out, **game._asdict())
    with np.load(file) as arrays:
        return Game(arrays["clips"], arrays["actions"])


def play(episodes: int) -> Game:
    """Plays episodes, the same ones every time; those in which the game ends early don't count."""
    before = Path.cwd()
    with TemporaryDirectory() as beside:  # the game writes its settings where it is started
        os.chdir(beside)
        try:
            return played_here(episodes)
        finally:
            os.chdir(before)


def played_here(episodes: int) -> Game:
    """As ``play``."""
    try:
        import vizdoom
    except ImportError:
        raise AbsentError("the package vizdoom isn't installed, and there are no frames in a file") from None
    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.scenarios_path, "my_way_home.cfg")))
    game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA, vizdoom.Button.MOVE_FORWARD])
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_render_hud(False)
    game.set_render_weapon(False)
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(LENGTH * TICS + 100)
    game.init()
    played: list[tuple[np.ndarray, np.ndarray]] = []
    number = 0
    while len(played) < episodes:
        game.set_seed(number)
        game.new_episode()
        if (found := episode(game, np.random.default_rng(number))) is not None:
            played.append(found)
        number += 1
    game.close()
    clips, actions = (np.stack(parts) for parts in zip(*played, strict=True))
    return Game(clips, actions)


def episode(game: object, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """One episode of a random policy, or ``None`` if the game ends early."""
    player: object = game
    frames: list[np.ndarray] = []
    actions: list[int] = []
    action, left = 0, 0
    for _ in range(LENGTH):
        if player.is_episode_finished():  # type: ignore[attr-defined]
            return None
        rendered = player.get_state().screen_buffer  # type: ignore[attr-defined]
        finer = rendered.reshape(HEIGHT, FINER, WIDTH, FINER, 3)
        frames.append(np.round(finer.mean((1, 3))).astype(np.uint8))
        actions.append(action)
        forward = action == 2 and len(frames) > 1
        if forward and np.abs(frames[-1].astype(float) - frames[-2]).mean() < STUCK:
            action, left = int(rng.integers(2)), int(rng.integers(*HELD)) + 2
        elif left == 0:
            action, left = int(rng.choice(3, p=[0.25, 0.25, 0.5])), int(rng.integers(*HELD))
        left -= 1
        turn = (-TURN, TURN, 0.0)[action]
        player.make_action([turn, float(action == 2)], TICS)  # type: ignore[attr-defined]
    return np.stack(frames), np.array(actions)
