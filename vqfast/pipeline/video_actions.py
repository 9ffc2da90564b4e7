"""Actions on their way from frames to codes and to samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.data import Clips, Dataset
from vqfast.data.video.actions import read_actions
from vqfast.models import Autoencoder
from vqfast.pipeline.codes import CodeGrids
from vqfast.pipeline.levels import AnyPrior
from vqfast.priors import ClipPrior

MAX_ACTIONS = 2**16  # of a prior, where a grid of codes stands for several frames


def frames_of_grid(vqvae: Autoencoder) -> int:
    """How many frames of a clip a grid of codes stands for."""
    return 1 if vqvae.frame_by_frame else vqvae.stride


def num_actions_of_grids(vqvae: Autoencoder, num_actions: int | None) -> int | None:
    """How many actions the grids of codes have, if frames have ``num_actions``.

    Raises:
        ValueError: they are too many.
    """
    if num_actions is None:
        return None
    total: int = num_actions ** frames_of_grid(vqvae)
    if total > MAX_ACTIONS:
        frames = frames_of_grid(vqvae)
        raise ValueError(
            f"num_actions is {num_actions}, and each grid of codes stands for {frames} frames; want a model "
            f"of a grid a frame, or no actions"
        )
    return total


def actions_of_grids(actions: Tensor, num_actions: int, frames: int) -> Tensor:
    """The action of each grid of codes: those of its frames as the digits of a number.

    Args:
        actions: int64 ``(n, T)`` of frames, in ``-1..num_actions - 1``; -1 stands for an unknown one.
        num_actions: the base of the digits.
        frames: of a grid; T is a multiple of it.

    Returns:
        int64 ``(n, T / frames)``, -1 where an action isn't known.

    >>> actions_of_grids(torch.tensor([[0, 1, 2, 1], [1, 0, -1, 2]]), 3, 2)
    tensor([[ 1,  7],
            [ 3, -1]])
    """
    digits = actions.unflatten(1, (-1, frames))
    powers = num_actions ** torch.arange(frames - 1, -1, -1)
    return torch.where((digits < 0).any(2), -1, (digits * powers).sum(2))


def encoded_actions(vqvae: Autoencoder, dataset: Dataset) -> Callable[[range], Tensor | None]:
    """The actions of the grids of codes of data: numbers of items -> int64 ``(n, T)`` or None."""

    def read(numbers: range) -> Tensor | None:
        if not isinstance(dataset, Clips) or dataset.actions is None or dataset.num_actions is None:
            return None
        own = torch.from_numpy(dataset.actions[numbers.start : numbers.stop])
        return actions_of_grids(own, dataset.num_actions, frames_of_grid(vqvae))

    return read


def wants_actions(priors: Sequence[AnyPrior]) -> bool:
    """Whether a prior knows actions."""
    return any(isinstance(prior, ClipPrior) and prior.num_actions is not None for prior in priors)


def lasting(actions: Tensor, length: int) -> Tensor:
    """Actions ``(n, T)`` for another number of grids: cut off, or with unknown ones behind them.

    >>> lasting(torch.tensor([[2, 0]]), 3)
    tensor([[ 2,  0, -1]])
    """
    longer = torch.full((len(actions), max(0, length - actions.shape[1])), -1)
    return torch.cat([actions[:, :length], longer], 1)


def taking_turns(codes: CodeGrids, length: int) -> Callable[[range], Tensor]:
    """For samples the actions of codes, such as those of held-out clips: sample i has those of clip i.

    After the last clip the first follows; and where a sample is longer than a clip, its actions begin again.
    """

    def read(numbers: range) -> Tensor:
        own = [codes.actions(range(n % codes.num, n % codes.num + 1)) for n in numbers]
        found = torch.cat([one for one in own if one is not None])
        return found[:, torch.arange(length) % found.shape[1]]

    return read


def chosen_actions(actions: str, num: int, frames: int, given: int, num_actions: int) -> Tensor:
    """The actions of the frames of samples, as the user names them: int64 ``(num, frames)``.

    Args:
        actions: an integer, the action of all frames; or the path of a ``.npy`` or ``.csv`` with an integer
            for each frame of a sample, which all samples have, or for each frame of each sample.
        given: of so many first frames the file may lack the actions; they then are -1.

    Raises:
        FileNotFoundError: the file isn't there.
        ValueError: there is no such action, or the file has another number of them.
    """
    if actions.lstrip("-").isdigit():
        check_integer("actions", int(actions), 0, num_actions - 1)
        return torch.full((num, frames), int(actions))
    path = Path(actions)
    if not path.is_file():
        raise FileNotFoundError(f"actions is {actions!r}; want an action's number, or a .npy or .csv file")
    found = read_actions(path)
    if found.max() >= num_actions:
        raise ValueError(f"{path} has the action {found.max()}; want 0..{num_actions - 1}, as the run has")
    for length in dict.fromkeys((frames, frames - given)):
        if len(found) in (length, num * length):
            own = torch.from_numpy(np.broadcast_to(found.reshape(-1, length), (num, length)).copy())
            return torch.cat([torch.full((num, frames - length), -1), own], 1)
    raise ValueError(f"{path} has {len(found)} actions; want {frames}, or {num * frames} for {num} samples")


def given_actions(prior: AnyPrior, actions: Tensor | None) -> dict[str, Any]:
    """What a prior takes of the actions, as keywords of its methods."""
    return {"actions": actions} if wants_actions([prior]) else {}
