"""The video experiment of the VQ-VAE paper (section 4.4): the next frames of a game, from actions.

A VQ-VAE makes a grid of codes of each frame, a ``ClipPrior`` learns the codes. In held-out episodes it is
given six frames and the actions, and draws ten more in the space of codes, which are decoded at the end. Real
clips without actions follow: bits a code of the same prior, with and without the frames before.

Each training is kept in ``RUNS`` when it is finished, and made again only if its sources changed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.core import AbsentError
from benchmarks.machine import DEVICE
from benchmarks.record import RESULTS
from benchmarks.video_game import ACTIONS, Game, read_game
from benchmarks.video_runs import RUNS, Size, decoded, encoded, folder_of, trained_model, trained_prior
from benchmarks.video_speed import CASE, DRAWN, GIVEN
from vqfast.data.images.sheet import grid
from vqfast.data.video import gif_bytes, load_video
from vqfast.files import write_file
from vqfast.models import VQVAE
from vqfast.priors import ClipPrior

CASES = [CASE]
AHEAD = (1, 5, 10)  # after how many drawn frames the error is measured
QUICK, FULL = Size(20, 60, 60, 4, 2, 1), Size(200, 1500, 6000, 48, 8, 3)
TEMPERATURE = 0.7
SHOWN = 2  # windows whose frames are pictures


def findings(*, full: bool, folder: Path | None) -> dict[str, dict[str, dict[str, str]]]:
    """Tables of the error of drawn frames, and of bits a code; strips of frames and GIFs become files.

    Args:
        full: trains three times, some minutes each; otherwise once and shortly.
        folder: with ``game.npz``, see ``read_game``, and real clips in its folder ``clips``; either may be
            missing.
    """
    size = FULL if full else QUICK
    found: dict[str, dict[str, dict[str, str]]] = {}
    try:
        game = read_game((folder or RUNS) / "game.npz", size.episodes)
        found |= game_findings(game, size)
    except AbsentError as error:
        print(f"video: {error}", flush=True)
    if folder is not None and (folder / "clips").is_dir():
        found |= clip_findings(folder / "clips", size)
    return found


def game_findings(game: Game, size: Size) -> dict[str, dict[str, dict[str, str]]]:
    """Tables of the error and of the bits, from all seeds; pictures of the first one."""
    first_held_out = len(game.clips) - max(1, len(game.clips) // 10)
    train = as_frames(game.clips[:first_held_out])
    held_out = as_frames(game.clips[first_held_out:])
    actions = torch.from_numpy(game.actions).long()
    known, unseen = actions[:first_held_out], actions[first_held_out:]
    clips, told = windows(held_out, unseen, size.windows)
    errors: dict[str, list[dict[int, float]]] = {}
    bits: dict[str, list[float]] = {}
    for seed in range(size.seeds):
        key = folder_of("game", size, seed, game.actions.tobytes())
        model = trained_model(key, train, size.model_steps, seed)
        prior = trained_prior(key, model.vq.codebook, encoded(model, train), known, size.prior_steps, seed)
        for name, found in psnr(model, prior, clips, told, size.draws).items():
            errors.setdefault(name, []).append(found)
        codes = encoded(model, clips)
        for name, given in (("right", told), ("wrong", wrong(told)), ("not told", torch.full_like(told, -1))):
            bits.setdefault(name, []).append(drawn_bits(prior, codes, given))
        told_of = {name: round(values[-1], 3) for name, values in bits.items()}
        print(f"video: seed {seed}: dB {errors['right action'][-1]}, bits a code {told_of}", flush=True)
        if seed == 0:
            show(model, prior, clips, told)
    about = f"{train.shape[0] * train.shape[1]} frames to learn from, {len(clips)} held-out windows"
    columns = {f"after {n} frame{'s' * (n > 1)}": n for n in AHEAD}
    return {
        f"PSNR in dB, {GIVEN} frames given; {about}": {
            name: {column: over_seeds([one[n] for one in values], 2) for column, n in columns.items()}
            for name, values in errors.items()
        },
        "Bits a code of the frames drawn": {
            f"action {name}": {"bits": over_seeds(values, 3)} for name, values in bits.items()
        },
    }


def clip_findings(folder: Path, size: Size) -> dict[str, dict[str, dict[str, str]]]:
    """A table of bits a code of real clips, of which the last ones of each video are held out."""
    loaded = load_video(folder, frames=GIVEN + DRAWN, size=(48, 64), channels=3)
    ends = {name: max(first for other, first in loaded.places if other == name) for name in loaded.names}
    late = np.array([first > 0.8 * ends[name] for name, first in loaded.places])
    parts = [loaded.batch(np.flatnonzero(chosen)) for chosen in (~late, late)]
    train, held_out = ((255 * x.transpose(1, 2)).round().byte() for x in parts)
    size = size._replace(model_steps=size.model_steps // 2, prior_steps=size.prior_steps // 4)  # few clips
    bits: dict[str, list[float]] = {}
    for seed in range(size.seeds):
        key = folder_of("clips", size, seed, train.numpy().tobytes())
        model = trained_model(key, train, size.model_steps, seed)
        codes = encoded(model, train)
        for name, alone in (("frames before", False), ("each frame alone", True)):
            prior = trained_prior(key, model.vq.codebook, codes, None, size.prior_steps, seed, alone=alone)
            bits.setdefault(name, []).append(drawn_bits(prior, encoded(model, held_out), None, alone=alone))
        print(f"video: real clips, seed {seed}: {bits}", flush=True)
    about = f"{len(train)} clips of {GIVEN + DRAWN} frames to learn from, {len(held_out)} held out"
    return {
        f"Bits a code of real clips; {about}": {
            name: {"bits": over_seeds(values, 3)} for name, values in bits.items()
        }
    }


def over_seeds(values: list[float], digits: int) -> str:
    """The mean, and the range if there are several."""
    mean = f"{np.mean(values):.{digits}f}"
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return mean + spread * (len(values) > 1)


def as_frames(clips: np.ndarray) -> Tensor:
    """uint8 ``(N, T, H, W, 3)`` as ``(N, T, 3, H, W)``."""
    return torch.from_numpy(clips).movedim(-1, 2).contiguous()


def windows(clips: Tensor, actions: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """``num`` windows of given and drawn frames, spread evenly over the clips, and their actions."""
    length = GIVEN + DRAWN
    starts = [(n, t) for n in range(len(clips)) for t in range(1, clips.shape[1] - length + 1, length)]
    chosen = [starts[i] for i in np.linspace(0, len(starts) - 1, min(num, len(starts))).round().astype(int)]
    pairs = [(clips[n, t : t + length], actions[n, t : t + length]) for n, t in chosen]
    return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


def wrong(actions: Tensor) -> Tensor:
    """Other actions for the frames that are drawn."""
    others = actions.clone()
    others[:, GIVEN:] = (others[:, GIVEN:] + 1) % len(ACTIONS)
    return others


def psnr(
    model: VQVAE, prior: ClipPrior, clips: Tensor, actions: Tensor, draws: int
) -> dict[str, dict[int, float]]:
    """The PSNR of predictions in dB, of the mean error of all windows, by name and by frames ahead."""
    true = clips.float() / 255
    codes = encoded(model, clips)
    reconstruction = decoded(model, codes)

    def drawn(given: Tensor) -> list[Tensor]:
        sample = partial(prior.sample, len(codes), tuple(codes.shape[1:]), actions=given)
        known = codes[:, :GIVEN]
        return [
            decoded(model, sample(known=known, temperature=TEMPERATURE, seed=seed)) for seed in range(draws)
        ]

    right, others = drawn(actions), drawn(wrong(actions))
    last = GIVEN - 1
    predictions = {
        "right action": torch.stack(right).mean(0),
        "right action, one draw": right[0],
        "wrong action": torch.stack(others).mean(0),
        "last frame copied": true[:, last : last + 1].expand_as(true),
        "its reconstruction": reconstruction[:, last : last + 1].expand_as(true),
        "reconstruction of the true frame": reconstruction,
    }
    return {
        name: {n: -10 * float(F.mse_loss(frames[:, last + n], true[:, last + n]).log10()) for n in AHEAD}
        for name, frames in predictions.items()
    }


@torch.no_grad()
def drawn_bits(prior: ClipPrior, codes: Tensor, actions: Tensor | None, *, alone: bool = False) -> float:
    """The mean bits of a code in the frames after those given."""
    if alone:
        codes = codes[:, GIVEN:].flatten(0, 1).unsqueeze(1)
    parts: list[Tensor] = []
    for number in range(0, len(codes), 4):
        part = slice(number, number + 4)
        given = {} if actions is None else {"actions": actions[part].to(DEVICE)}
        parts.append(prior.bits_per_frame(codes[part].to(DEVICE), **given)[:, 0 if alone else GIVEN :])
    return float(torch.cat(parts).mean())


def show(model: VQVAE, prior: ClipPrior, clips: Tensor, actions: Tensor) -> None:
    """A GIF for each action that is held for all drawn frames, and a strip of the frames with a line each."""
    contrast = clips[:, GIVEN - 1].float().flatten(1).std(1)  # a bare wall shows nothing
    chosen = contrast.argsort(descending=True)[:SHOWN]
    codes = encoded(model, clips[chosen])
    strips = []
    for number, name in enumerate(ACTIONS):
        held = actions[chosen].clone()
        held[:, GIVEN:] = number
        sample = partial(prior.sample, len(codes), tuple(codes.shape[1:]), actions=held)
        frames = decoded(model, sample(known=codes[:, :GIVEN], temperature=TEMPERATURE))
        beside = (torch.cat(list(frames), 3) * 255).round().byte().movedim(1, -1).numpy()
        write_file(
            RESULTS / f"video-{name.replace(' ', '-')}.gif",
            gif_bytes(beside, 5.0),
        )
        strips.append(frames[0, GIVEN - 1 :])
    captions = [f"{name}: the last frame given, then {DRAWN} drawn" for name in ACTIONS]
    picture = grid(torch.cat(strips), columns=DRAWN + 1, captions=captions)
    write_file(RESULTS / "video-actions.png", picture)
