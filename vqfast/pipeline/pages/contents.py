"""What a page tells of a run, read when it is needed. Any part may be missing or damaged, and then raises."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from functools import cached_property
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from vqfast.data import Modality, Recordings, Source
from vqfast.files import read_file
from vqfast.models import Autoencoder, SpeechVQVAE
from vqfast.pipeline.checkpoint import load_model
from vqfast.pipeline.codes import CodeGrids, stage_codes
from vqfast.pipeline.coding import decoded, encoded
from vqfast.pipeline.items import cut_to_codes
from vqfast.pipeline.levels import Prior, level_name, level_of
from vqfast.pipeline.measures import bits_per_code, measure_reconstruction
from vqfast.pipeline.parts import HELD_OUT, TRAIN, modality_of, reopen_parts
from vqfast.pipeline.priors import load_prior, load_priors
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.sampling import SampleRequest, classes_of, sample
from vqfast.pipeline.shards import SHARD
from vqfast.pipeline.speech_measures import measure_speech

TRAININGS = {"vqvae": "VQ-VAE", "prior": "Prior", "classifier": "Classifier"}
SHOWN = 12  # items whose reconstructions are shown
ITEMS, VALUES = 512, 2**20  # bounds of what is measured: items, and values in them
SHARDS = 16  # whose codes are counted, or whose samples are looked through
POSITIONS = 2**16  # codes that are drawn from the prior, or judged by it
PER_CLASS, CLASSES = 8, 20  # samples shown
FEW, SECONDS = 4, 4  # items and samples of recordings, whose decoder is slow, and how much of each
CSV_BYTES = 32 << 20


def spread(total: int, num: int) -> np.ndarray:
    """Of ``total`` numbers ``num`` evenly spread ones, or all: the first ones may all be of one class."""
    return np.linspace(0, total - 1, min(num, total)).round().astype(np.int64)


class Contents:
    """What a page tells of a run.

    Args:
        run: the run, which may be anybody's.
        ranks: the device to compute on.
    """

    def __init__(self, run: Run, ranks: Ranks = ALONE) -> None:
        self.run, self.ranks = run, Ranks(device=ranks.device)
        self.name = run.folder.absolute().name or str(run.folder)

    @cached_property
    def vqvae(self) -> Autoencoder:
        return load_model(self.run.folder, "vqvae", device=self.ranks.device)

    @cached_property
    def priors(self) -> list[Prior]:
        """The priors that were begun, from the coarsest level."""
        levels = range(len(self.vqvae.codebook_sizes))
        begun = [level for level in levels if self.run.settings(level_name("prior", level)) is not None]
        return [load_prior(self.run, level, device=self.ranks.device) for level in begun]

    @property
    def trainings(self) -> dict[str, str]:
        """The trainings that were begun, and what each is called."""
        begun = [name for name in self.run.stages() if name.partition("-")[0] in TRAININGS]
        titles = (TRAININGS[name.partition("-")[0]] for name in begun)
        return {
            name: f"{title}, level {name.partition('-')[2]}" if "-" in name else title
            for name, title in zip(begun, titles, strict=True)
        }

    @cached_property
    def modality(self) -> Modality:
        return modality_of(self.run)

    @cached_property
    def parts(self) -> dict[str, Source]:
        return reopen_parts(self.run)

    @property
    def held_out(self) -> Source:
        return self.parts[HELD_OUT]

    def some(self, num: int) -> Source:
        """Some held-out items, evenly spread."""
        return self.held_out.subset(spread(len(self.held_out), num))

    @cached_property
    def measured(self) -> Source:
        """The held-out items that are measured."""
        most = VALUES // math.prod(self.held_out.shape)
        return self.some(min(ITEMS, max(FEW if self.is_slow else SHOWN, most)))

    @cached_property
    def figures(self) -> dict[str, float]:
        """Figures of ``measured``."""
        if isinstance(self.vqvae, SpeechVQVAE) and isinstance(self.measured, Recordings):
            return measure_speech(self.vqvae, self.measured, ranks=self.ranks)
        return measure_reconstruction(self.vqvae, self.measured, ranks=self.ranks)

    @property
    def is_slow(self) -> bool:
        """Whether the decoder draws value by value, so that less is shown."""
        return isinstance(self.vqvae, SpeechVQVAE)

    @property
    def longest(self) -> int:
        """How many codes of a recording are shown."""
        rate = self.held_out.rate if isinstance(self.held_out, Recordings) else 1
        return max(1, SECONDS * rate // self.vqvae.strides[0])

    @cached_property
    def shown(self) -> tuple[Sequence[Tensor], list[Tensor], Sequence[Tensor]]:
        """Some held-out items, their codes by level, and their reconstructions.

        Of recordings it is the first seconds of each, in its own length.
        """
        some = self.some(FEW if self.is_slow else SHOWN)
        if isinstance(some, Recordings):
            codes = self._shortened(encoded(self.vqvae, some, self.ranks))
            grids, _ = codes.all()
            originals = [some.recording(number)[0] for number in range(len(some))]
            own = self._own_lengths(codes)
            return [x[:, : y.shape[1]] for x, y in zip(originals, own, strict=True)], grids, own
        codes = encoded(self.vqvae, some, self.ranks)
        numbers = range(len(some))
        outputs = torch.cat(list(decoded(self.vqvae, codes, numbers, self.ranks)))
        return some.batch(numbers).unbind(), codes.read(numbers)[0], outputs.unbind()

    @property
    def spatial(self) -> tuple[int, ...]:
        """The sizes of an item, of a recording as much as is shown."""
        sizes = self.held_out.shape[1:]
        return (min(sizes[0], self.longest * self.vqvae.strides[0]),) if self.is_slow else sizes

    @cached_property
    def counts(self) -> tuple[str, list[Tensor]]:
        """Which grids were counted, and how often each code of each level stands in them, ``(K,)``."""
        if self.run.settings(f"codes/{TRAIN}") is not None:
            part, codes = "training", stage_codes(self.run, f"codes/{TRAIN}")
        else:
            part, codes = "held-out", encoded(self.vqvae, self.measured, self.ranks)
        counts = [torch.zeros(size, dtype=torch.int64) for size in self.vqvae.codebook_sizes]
        num = 0
        for shard in spread(-(-codes.num // SHARD), SHARDS).tolist():
            levels, _ = codes.read(range(shard * SHARD, min((shard + 1) * SHARD, codes.num)))
            num += len(levels[0])
            for level, grids in zip(counts, levels, strict=True):
                codes_in = grids[grids >= 0]  # -1 stands where a recording has ended
                if grids.min() < -1 or grids.max() >= len(level):
                    raise ValueError(f"the codes of {part} items aren't all in 0..{len(level) - 1}")
                level += codes_in.bincount(minlength=len(level))
        return f"{num:,} {part} items", counts

    @cached_property
    def bits(self) -> tuple[int, dict[int, float]]:
        """Of how many held-out items, and how many bits the prior of each level needs for a code."""
        positions = sum(grids[0].numel() for grids in self.shown[1])
        few = self.some(min(len(self.measured), max(1, POSITIONS // positions)))
        codes = encoded(self.vqvae, few, self.ranks)
        bits = bits_per_code(self.priors, codes, ranks=self.ranks).mean(0).tolist()
        return len(few), dict(zip(map(level_of, self.priors), bits, strict=True))

    @cached_property
    def samples(self) -> tuple[str, Sequence[Tensor], list[int] | None]:
        """Where samples come from, the samples decoded, and their classes or None."""
        if self.run.settings("samples") is not None:
            return f"of the run's {stage_codes(self.run, 'samples').num:,}", *self._chosen(self.run)
        priors = load_priors(self.run, self.vqvae, device=self.ranks.device)
        classes, shapes = classes_of(priors), self.vqvae.code_shapes(self.spatial)
        taken = min(classes or 3, CLASSES)
        most = FEW if self.is_slow else taken * PER_CLASS
        num = max(1, min(most, POSITIONS // sum(map(math.prod, shapes))))
        labels = None if classes is None else lambda numbers: torch.tensor(numbers) % taken
        request = SampleRequest(num, shapes, labels=labels)
        with TemporaryDirectory() as folder:
            out = Run(folder, create=True)
            sample(self.run, priors, request, out=out, ranks=self.ranks)
            return "drawn for this page, seed 0", *self._chosen(out)

    def _chosen(self, run: Run) -> tuple[Sequence[Tensor], list[int] | None]:
        """Some samples of a run, decoded, and their classes: as many of each."""
        codes = stage_codes(run, "samples")
        levels, labels = codes.read(range(min(codes.num, SHARDS * SHARD)))
        if labels is None:
            chosen = torch.arange(min(codes.num, 3 * PER_CLASS))
        else:
            classes = labels.unique()[:CLASSES]
            chosen = torch.cat([(labels == label).nonzero()[:PER_CLASS, 0] for label in classes])
        most = FEW if self.is_slow else POSITIONS // sum(grids[0].numel() for grids in levels)
        chosen = chosen[: max(1, most)]

        def read(numbers: range) -> tuple[list[Tensor], Tensor | None]:
            places = chosen[numbers.start : numbers.stop]
            return [grids[places] for grids in levels], None if labels is None else labels[places]

        grids = CodeGrids(len(chosen), codes.fingerprint, read)
        items = self._own_lengths(self._shortened(grids))
        return items, None if labels is None else labels[chosen].tolist()

    def _shortened(self, codes: CodeGrids) -> CodeGrids:
        """Codes of recordings, cut to the seconds that are shown."""
        if not self.is_slow:
            return codes

        def read(numbers: range) -> tuple[list[Tensor], Tensor | None]:
            levels, labels = codes.read(numbers)
            return [indices[:, : self.longest] for indices in levels], labels

        return CodeGrids(codes.num, codes.fingerprint, read)

    def _own_lengths(self, codes: CodeGrids) -> list[Tensor]:
        """Decoded items ``(C, *spatial)``, recordings in their own lengths."""
        items = torch.cat(list(decoded(self.vqvae, codes, range(codes.num), self.ranks)))
        return cut_to_codes(self.vqvae, items, codes.all()[0])

    def history(self, name: str) -> dict[str, np.ndarray]:
        """The curves of a training, ``step`` and the figures, NaN where one wasn't measured."""
        path = self.run.folder / f"{name}.csv"
        try:
            lines = list(csv.reader(io.StringIO(read_file(path, CSV_BYTES).decode())))
            names, values = (
                lines[0],
                np.array([[float(v) if v else math.nan for v in line] for line in lines[1:]]),
            )
            columns = dict(zip(names, values.T.reshape(len(names), -1), strict=True))
            if not np.isfinite(columns["step"]).all():
                raise ValueError("a step is missing")
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: the {name} wasn't trained yet") from None
        except (LookupError, ValueError, csv.Error) as error:
            raise ValueError(f"{path} has no curves of a training: {error}") from error
        return columns
