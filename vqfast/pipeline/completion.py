"""Completion: part of an item's codes is kept, the prior draws the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.data import Dataset, Modality, Recordings
from vqfast.models import Autoencoder
from vqfast.pipeline.codes import CodeGrids
from vqfast.pipeline.coding import decoded, encoded
from vqfast.pipeline.levels import AnyPrior
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.sampling import OfSamples, SampleRequest, check_label, classes_of
from vqfast.pipeline.video_actions import encoded_actions

ITEMS, DRAWS = 12, 8  # shown in a picture: items, and completions of each


class Completion:
    """Samples that complete items: sample ``i`` completes item ``i // draws``.

    The kept codes are those of the whole item, so they may tell of the hidden part as far as the encoder
    sees. The part is chosen on the coarsest grid, and is the same part of the finer ones. Of a recording it
    is a part of its own length, and so long becomes the completion.

    Args:
        vqvae: encodes the items.
        dataset: the items.
        modality: their kind, such as ``modality_of(run)``.
        keep: the kept part: see ``Modality.kept_mask``; or that mask itself.
        draws: completions of each item.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range, or the items don't fit the
            model.
    """

    def __init__(
        self,
        vqvae: Autoencoder,
        dataset: Dataset,
        modality: Modality,
        *,
        keep: str | Tensor = "top-half",
        draws: int = 8,
        ranks: Ranks = ALONE,
    ) -> None:
        check_integer("draws", draws, 1, 2**31 - 1)
        self.vqvae, self.dataset, self.modality = vqvae, dataset, modality
        self.keep, self.draws, self.ranks = "mask" if isinstance(keep, Tensor) else keep, draws, ranks
        self.shapes = vqvae.code_shapes(dataset.shape[1:])
        self.kept = keep if isinstance(keep, Tensor) else modality.kept_mask(keep, self.shapes[0])
        self.ends = None
        if isinstance(dataset, Recordings):
            (longest,) = self.shapes[0]
            self.ends = torch.from_numpy(-(-dataset.lengths // vqvae.strides[0]))
            masks = [modality.kept_mask(self.keep, (max(2, end),))[:end] for end in self.ends.tolist()]
            self.kept = torch.stack([F.pad(mask, (0, longest - len(mask))) for mask in masks])

    def request(
        self, priors: Sequence[AnyPrior], *, num: int | None = None, labels: int | None = None
    ) -> SampleRequest:
        """The samples to draw.

        Args:
            num: how many of all completions; by default all.
            labels: one label for all samples, in place of the items' own.

        Raises:
            ValueError: there aren't as many, the prior has no such class, or the labels are missing.
        """
        total = len(self.dataset) * self.draws
        if num is not None and num > total:
            raise ValueError(f"num is {num}; want {total} at most: {self.draws} of each {self.modality.item}")
        check_label(priors, labels)
        given: int | OfSamples | None = labels
        if classes_of(priors) is not None and labels is None:
            own = self.dataset.labels
            if own is None:
                raise ValueError("the prior has classes and the data has no labels; want --label")
            given = self._labels(own)
        note = {"data": self.dataset.fingerprint, "keep": self.keep, "draws": self.draws}
        note["kept"] = hashlib.sha256(self.kept.numpy().tobytes()).hexdigest()[:16]  # a mask file may change
        num = total if num is None else num
        ends = None if self.ends is None else self._ends
        return SampleRequest(
            num, self.shapes, labels=given, known=self._known, ends=ends, actions=self._actions, note=note
        )

    def _labels(self, labels: np.ndarray) -> OfSamples:
        return lambda numbers: torch.from_numpy(labels[np.array(numbers) // self.draws])

    def _ends(self, numbers: range) -> Tensor:
        assert self.ends is not None
        return self.ends[torch.tensor(numbers) // self.draws]

    def _actions(self, numbers: range) -> Tensor:
        """Those of the clips themselves; unknown ones where they have none."""
        read, length = encoded_actions(self.vqvae, self.dataset), self.shapes[0][0]
        items = (read(range(number // self.draws, number // self.draws + 1)) for number in numbers)
        return torch.cat([torch.full((1, length), -1) if own is None else own for own in items])

    def _known(self, numbers: range) -> list[Tensor]:
        item = torch.tensor(numbers) // self.draws
        first, last = int(item[0]), int(item[-1])
        levels, _ = encoded(self.vqvae, self.dataset, self.ranks).read(range(first, last + 1))
        if self.ends is not None:
            return [levels[0].where(self.kept[first : last + 1], -1)[item - first]]
        return [
            indices.where(_resized(self.kept, shape), -1)[item - first]
            for indices, shape in zip(levels, self.shapes, strict=True)
        ]

    def picture(self, samples: CodeGrids) -> bytes:
        """A picture of some originals, of what is kept of them, and of their completions, as a PNG."""
        items = min(ITEMS, -(-samples.num // self.draws))
        draws = min(DRAWS, self.draws, samples.num - (items - 1) * self.draws)
        completions = [
            torch.cat(list(decoded(self.vqvae, samples, range(first, first + draws), self.ranks)))
            for first in range(0, items * self.draws, self.draws)
        ]
        originals = self.dataset.batch(range(items))
        kept = self.kept if self.ends is None else self.kept[:items]
        return self.modality.show_completions(originals, kept, torch.stack(completions, dim=1))


def _resized(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask over a coarser grid as a mask over a finer one of a shape."""
    for axis, size in enumerate(shape):
        mask = mask.index_select(axis, torch.arange(size) * mask.shape[axis] // size)
    return mask
