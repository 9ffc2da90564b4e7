"""Clips that go on from their first frames, in the space of codes, led by actions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.data import Clips, Modality
from vqfast.models import Autoencoder
from vqfast.pipeline.coding import encoded
from vqfast.pipeline.completion import Completion
from vqfast.pipeline.levels import AnyPrior
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.sampling import SampleRequest
from vqfast.pipeline.video_actions import (
    actions_of_grids,
    chosen_actions,
    frames_of_grid,
    lasting,
    wants_actions,
)


class Continuation(Completion):
    """Samples that go on from the first frames of clips: sample ``i`` from those of clip ``i // draws``.

    No frame is decoded before the last one is drawn.

    Args:
        vqvae: encodes the clips.
        dataset: the clips.
        modality: their kind, such as ``modality_of(run)``.
        given: so many first frames are given.
        frames: of a sample, those that are given among them; by default as many as the clips have.
        actions: of the frames that are drawn: see ``chosen_actions``. By default the clips' own.
        draws: samples of each clip.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range, or the clips don't fit the
            model.
    """

    def __init__(
        self,
        vqvae: Autoencoder,
        dataset: Clips,
        modality: Modality,
        *,
        given: int,
        frames: int | None = None,
        actions: str | None = None,
        draws: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        self.clips = dataset
        self.frames, self.actions = dataset.shape[1] if frames is None else frames, actions
        check_integer("frames", self.frames, 2)
        check_integer("given", given, 1, min(self.frames - 1, dataset.shape[1]))
        for name, value in (("given", given), ("frames", self.frames)):
            if value % frames_of_grid(vqvae):
                raise ValueError(
                    f"{name} is {value}; want a multiple of {frames_of_grid(vqvae)}, the model's"
                )
        self.given = given
        grids, *sizes = vqvae.code_shapes(dataset.shape[1:])[0]
        kept = torch.arange(grids) < given // frames_of_grid(vqvae)
        mask = kept.view(-1, 1, 1).expand(grids, *sizes)
        super().__init__(vqvae, dataset, modality, keep=mask, draws=draws, ranks=ranks)
        self.shapes = [(self.frames // frames_of_grid(vqvae), *sizes)]
        self._chosen: Tensor | None = None

    def request(
        self, priors: Sequence[AnyPrior], *, num: int | None = None, labels: int | None = None
    ) -> SampleRequest:
        """See ``Completion``.

        Raises:
            ValueError: see there; or actions are given and the prior has none, or they are missing.
        """
        request = super().request(priors, num=num, labels=labels)
        if not wants_actions(priors):
            if self.actions is not None:
                raise ValueError(f"actions is {self.actions!r}; want none: the prior was trained without")
            return request
        if self.actions is not None:
            if self.clips.num_actions is None:
                raise ValueError("the clips have no actions; want clips with actions beside them")
            self._chosen = chosen_actions(
                self.actions, request.num, self.frames, self.given, self.clips.num_actions
            )
        elif self.clips.actions is None or self.frames > self.clips.shape[1]:
            raise ValueError("the clips don't have the actions of all frames; want --actions")
        digest = None if self._chosen is None else hashlib.sha256(self._chosen.numpy().tobytes()).hexdigest()
        return replace(request, note={**request.note, "given": self.given, "actions": digest})

    def _known(self, numbers: range) -> list[Tensor]:
        item = torch.tensor(numbers) // self.draws
        first, last = int(item[0]), int(item[-1])
        (indices,), _ = encoded(self.vqvae, self.dataset, self.ranks).read(range(first, last + 1))
        return [indices[item - first, : self.given // frames_of_grid(self.vqvae)]]

    def _actions(self, numbers: range) -> Tensor:
        assert self.clips.actions is not None and self.clips.num_actions is not None
        own = torch.from_numpy(self.clips.actions)[torch.tensor(numbers) // self.draws]
        own = lasting(own, self.frames)
        if self._chosen is not None:
            own = torch.cat(
                [own[:, : self.given], self._chosen[numbers.start : numbers.stop, self.given :]], 1
            )
        return actions_of_grids(own, self.clips.num_actions, frames_of_grid(self.vqvae))


def acted(vqvae: Autoencoder, request: SampleRequest, actions: str, num_actions: int | None) -> SampleRequest:
    """A request for clips with the actions that the user names.

    Args:
        actions: see ``chosen_actions``.
        num_actions: of a frame; None where the run has none.

    Raises:
        FileNotFoundError, ValueError: see ``chosen_actions``, or the run has no actions.
    """
    if num_actions is None:
        raise ValueError(f"actions is {actions!r}; want none: the run's clips have no actions")
    frames = request.shapes[0][0] * frames_of_grid(vqvae)
    chosen = chosen_actions(actions, request.num, frames, 0, num_actions)
    grids = actions_of_grids(chosen, num_actions, frames_of_grid(vqvae))
    note = {**request.note, "actions": hashlib.sha256(grids.numpy().tobytes()).hexdigest()}
    return replace(request, actions=lambda numbers: grids[numbers.start : numbers.stop], note=note)
