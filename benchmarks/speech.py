"""The speech experiments of the VQ-VAE paper (section 4.3), on two folders of recordings.

The encoder of ``mel-speech`` learns with its second, fast decoder, which tells the log-mel spectrogram from
25 codes a second and the speaker. Then: (1) phones are read from the codes of held-out recordings, (2)
speakers are, (3) codes are decoded in another voice, which a classifier judges, (4) a prior learns the
sequences of codes, (5) a WaveNet learns the waveforms. Each figure is kept in ``RUNS`` as soon as it is
there, so that a stopped run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import speech_codes
from benchmarks.core import AbsentError, Case
from benchmarks.machine import ROOT
from benchmarks.record import RESULTS
from benchmarks.speech_codes import (
    MODEL,
    Codes,
    K,
    codes_of,
    phones_beside,
    phones_right,
    speakers_right,
    supervised,
)
from benchmarks.speech_data import (
    CODE_SAMPLES,
    FRAMES,
    RATE,
    Utterances,
    both_parts,
    normalised_alike,
    read_voices,
)
from benchmarks.speech_masked import masked
from benchmarks.speech_paired import paired
from benchmarks.speech_shown import show
from benchmarks.speech_vectors import Vectors, clustered, encoded
from benchmarks.speech_waves import (
    conversion,
    counted_bits,
    decoder_bits,
    drawn_conversion,
    trained_decoder,
    trained_prior,
)
from vqfast.models import SpeechVQVAE

CASES: list[Case] = []  # nothing is timed
RUNS = ROOT / "runs" / "speech"
LEARNING = "data", "codes", "masked", "context", "paired", "vectors"
SOURCES = tuple(f"benchmarks/speech_{name}.py" for name in LEARNING)  # of all figures
BALANCED = ", balanced"
PRIOR = 10.0  # of successors of codes, in counts
Figures = dict[str, float]
Table = dict[str, dict[str, str]]


class Size(NamedTuple):
    """How much is trained: seeds, and steps of each model."""

    seeds: int
    codes: int
    masked: int
    paired: int
    context: int
    waves: int
    prior: int
    recordings: int  # held-out ones whose samples the WaveNet tells


QUICK, FULL = Size(1, 100, 60, 40, 100, 20, 40, 4), Size(3, 400, 500, 500, 2000, 1600, 360, 24)


class Kept:
    """Figures and models by name, each in a file of a folder as soon as it is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def figures(self, name: str, measure: Callable[[], Figures]) -> Figures:
        """What ``measure`` returns, measured if it isn't kept."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            found = measure()
            told = ", ".join(f"{what} {figure:.3f}" for what, figure in found.items())
            print(f"speech: {name}: {told}", flush=True)
            file.write_text(json.dumps(found))
        result: Figures = json.loads(file.read_text())
        return result

    def model(self, name: str, empty: SpeechVQVAE, train: Callable[[], SpeechVQVAE]) -> SpeechVQVAE:
        """The model that ``train`` returns, or its weights that are kept, in ``empty``."""
        file = self.folder / f"{name}.pt"
        if not file.is_file():
            torch.save(train().state_dict(), file)
        empty.load_state_dict(torch.load(file, weights_only=True))
        return empty.eval()


def findings(*, full: bool, voices: Path | None, human: Path | None = None) -> dict[str, Table]:
    """Tables of the five experiments, each figure the mean over the seeds, with its range.

    Args:
        full: three seeds, some half an hour on two cores; otherwise one seed and a minute.
        voices: a folder of speakers, with label files beside the recordings.
        human: another one, whose phones and speakers are read, and whose voices are converted.
    """
    size = FULL if full else QUICK
    tables: dict[str, Table] = {}
    for folder, whose in ((voices, ""), (human, "human voices; ")):
        try:
            recordings = read_voices(folder)
        except AbsentError as error:
            print(f"speech: {error}", flush=True)
            continue
        assert folder is not None
        suite = Experiments(size, recordings.fingerprint, *both_parts(recordings, folder))
        tables |= suite.of_codes(whose) | suite.of_voices(whose)
        if not whose:
            tables |= suite.of_waves()
            if full:
                suite.show()
    return tables


class Experiments:
    """The experiments on one folder of recordings."""

    def __init__(self, size: Size, data: str, train: Utterances, held_out: Utterances) -> None:
        self.size, self.train, self.held_out = size, train, held_out
        self.kept = Kept(RUNS / digest(data, str(size[:5]), str(MODEL), *SOURCES))
        sources = (f"benchmarks/speech_{name}.py" for name in ("waves", "sound"))
        self.waves = Kept(self.kept.folder / digest(str(size), *sources))

    def empty(self, told: bool) -> SpeechVQVAE:
        """A model that hasn't learned."""
        return SpeechVQVAE(**MODEL, num_classes=len(self.train.names) if told else None)

    def learned(self, seed: int, told: bool) -> tuple[SpeechVQVAE, Codes]:
        """A model and its codes of all recordings."""
        make = partial(speech_codes.trained_codes, self.train, self.size.codes, seed, told, MODEL)
        vqvae = self.kept.model(f"codes-{'told' if told else 'alone'}-{seed}", self.empty(told), make)
        return vqvae, (codes_of(vqvae, self.train), codes_of(vqvae, self.held_out))

    def read(self, seed: int, way: Callable[[int], Vectors | Codes]) -> Figures:
        """The shares of phones and of speakers that are read from codes, and from balanced ones."""
        made, parts = way(seed), (self.train, self.held_out)
        kinds = {"": made.codes() if isinstance(made, Vectors) else made}
        if isinstance(made, Vectors):
            kinds[BALANCED] = made.balanced(*parts)
        return {
            f"{name}{kind}": figure
            for kind, codes in kinds.items()
            for name, figure in (
                ("phones", phones_right(codes, *parts)),
                ("neighbours seen", phones_beside(codes, *parts, seed)),
                ("speakers", speakers_right(codes, *parts)),
                ("order seen", speakers_right(codes, *parts, PRIOR)),
            )
        }

    def random_codes(self, seed: int) -> Codes:
        """Codes that tell nothing."""
        rng = np.random.default_rng(seed)
        lengths = [[mels.shape[1] // FRAMES for mels in u.mels] for u in (self.train, self.held_out)]
        found = [[rng.integers(K, size=length) for length in row] for row in lengths]
        return found[0], found[1]

    def told(self, seed: int) -> Vectors:
        """What a model that was told the speaker encodes."""
        return encoded(self.learned(seed, True)[0], self.train, self.held_out)

    def not_told(self, seed: int) -> Codes:
        """Codes of a model that isn't told the speaker, not by normalised spectrograms either."""
        parts = normalised_alike(self.train, self.held_out)
        vqvae = speech_codes.trained_codes(parts[0], self.size.codes, seed, False, MODEL)
        return encoded(vqvae, *parts).codes()

    def ceiling(self, seed: int) -> Figures:
        """The share of phones that a classifier tells."""
        return {"phones": supervised(self.train, self.held_out, seed)}

    def of_codes(self, whose: str) -> dict[str, Table]:
        """Experiments 1 and 2: phones and speakers are read from codes."""
        parts, size = (self.train, self.held_out), self.size
        ways: dict[str, Callable[[int], Vectors | Codes]] = {
            "codes, speaker told": self.told,
            "codes, speaker not told": self.not_told,
            "codes from pairs": lambda seed: paired(*parts, (size.paired, size.context), seed, not whose),
            "codes from masked prediction": lambda seed: masked(*parts, size.masked, seed).codes(),
            "k-means, 40 ms": lambda seed: clustered(*parts, 4, seed),
            "k-means, 80 ms": lambda seed: clustered(*parts, 8, seed),
            "random codes": self.random_codes,
        }
        phones: dict[str, list[Figures]] = {}
        speakers: dict[str, list[Figures]] = {}
        for seed in range(size.seeds):
            for name, way in ways.items():
                kept = f"{name}-{seed}".replace(",", "").replace(" ", "-")
                found = self.kept.figures(kept, partial(self.read, seed, way))
                for kind in ("", BALANCED):
                    chosen = [n for n in found if (BALANCED in n) == bool(kind)]
                    if chosen:
                        own = {n.removesuffix(BALANCED): found[n] for n in chosen}
                        phones.setdefault(name + kind, []).append(own)
                        speakers.setdefault(name + kind, []).append(own)
            found = self.kept.figures(f"classifier-{seed}", partial(self.ceiling, seed))
            phones.setdefault("a classifier that learned from labels, 120 ms", []).append(found)
        counts = Counter(phone for row in self.train.phones for phone in row)
        common = counts.most_common(1)[0][0]
        right = [phone == common for row in self.held_out.phones for phone in row]
        phones["the most common phone"] = [{"phones": float(np.mean(right))}]
        minutes = sum(map(len, self.train.waves)) / RATE / 60
        names = self.train.names
        about = f"{whose}{len(counts)} phones, {len(names)} speakers, {minutes:.0f} minutes to learn from"
        title = f"Phones from {K} codes, {RATE // CODE_SAMPLES} a second, held out"
        return {
            f"{title}; {about}": as_table("phones", phones, "{:.1%}", "neighbours seen"),
            f"Speakers from the codes of a second; {whose}chance {1 / len(names):.0%}": as_table(
                "speakers", speakers, "{:.1%}", "order seen"
            ),
        }

    def of_voices(self, whose: str) -> dict[str, Table]:
        """Experiment 3: voices converted; but for human ones also by the WaveNet."""
        heard: dict[str, list[float]] = {}
        for seed in range(self.size.seeds):
            for measure in (self.judged,) if whose else (self.judged, self.judged_drawn):
                found = self.waves.figures(f"{measure.__name__}-{seed}", partial(measure, seed))
                for name, figure in found.items():
                    heard.setdefault(name, []).append(figure)
        title = f"{whose}seconds that a classifier gives the voice asked for, held out"
        return {title[0].upper() + title[1:]: as_table("right", heard, "{:.1%}")}

    def of_waves(self) -> dict[str, Table]:
        """Experiments 4 and 5: priors, waveforms."""
        prior: dict[str, list[float]] = {}
        samples: dict[str, list[float]] = {}
        titles = {
            "Bits a code, held out": (prior, self.priors),
            "Bits a sample of the WaveNet, held out": (samples, self.samples),
        }
        for seed in range(self.size.seeds):
            for figures, measure in titles.values():
                found = self.waves.figures(f"{measure.__name__}-{seed}", partial(measure, seed))
                for name, figure in found.items():
                    figures.setdefault(name, []).append(figure)
        return {title: as_table("bits", figures, "{:.2f}") for title, (figures, _) in titles.items()}

    def show(self) -> None:
        """Writes the picture and the sounds of the first seed."""
        vqvae, codes = self.decoder(0), self.learned(0, True)[1]
        prior, _ = trained_prior(self.train, self.held_out, codes, self.size.prior, 0)
        show(vqvae, prior, self.held_out, codes[1], RESULTS / "speech")

    def decoder(self, seed: int, alone: bool = False) -> SpeechVQVAE:
        """A model whose WaveNet learned the waveforms, given the codes or, ``alone``, none."""
        vqvae, (codes, _) = self.learned(seed, True)
        shown = no_codes(codes) if alone else codes
        make = partial(trained_decoder, vqvae, self.train, shown, self.size.waves, seed)
        return self.waves.model(f"waves{'-alone' * alone}-{seed}", self.empty(True), make)

    def samples(self, seed: int) -> Figures:
        """Bits a sample."""
        codes = self.learned(seed, True)[1][1]
        count = self.size.recordings
        told = decoder_bits(self.decoder(seed), self.held_out, codes, count, seed)
        alone = decoder_bits(self.decoder(seed, True), self.held_out, no_codes(codes), count, seed)
        return {
            "given the codes": told.with_codes,
            "given the codes in another order": told.shuffled,
            "of a WaveNet that never saw codes": alone.with_codes,
        }

    def judged(self, seed: int) -> Figures:
        """Whom a classifier hears in what the fast decoder tells."""
        vqvae, (_, codes) = self.learned(seed, True)
        return conversion(vqvae, self.train, self.held_out, codes, seed)

    def judged_drawn(self, seed: int) -> Figures:
        """Whom it hears in what the WaveNet draws."""
        codes = self.learned(seed, True)[1][1]
        return drawn_conversion(self.decoder(seed), self.train, self.held_out, codes, seed)

    def priors(self, seed: int) -> Figures:
        """Bits a code."""
        codes = self.learned(seed, True)[1]
        _, bits = trained_prior(self.train, self.held_out, codes, self.size.prior, seed)
        return {"a WaveNet": bits, **counted_bits(codes)}


def no_codes(codes: list[np.ndarray]) -> list[np.ndarray]:
    """As many codes that aren't there."""
    return [np.full_like(row, -1) for row in codes]


def digest(*parts: str) -> str:
    """A digest of texts; those that are files of the project count with what is in them."""
    found = [(ROOT / text).read_text() if text.endswith(".py") else text for text in parts]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def as_table(
    column: str, figures: Mapping[str, Sequence[float | Figures]], style: str, beside: str = ""
) -> Table:
    """The mean of each line over the seeds, and its range; and the mean of a second figure beside it."""
    table: Table = {}
    for name, found in figures.items():
        values = [figure[column] if isinstance(figure, dict) else figure for figure in found]
        others = [figure[beside] for figure in found if isinstance(figure, dict) and beside in figure]
        table[name] = {
            column: style.format(np.mean(values)),
            "range": f"{style.format(min(values))} to {style.format(max(values))}",
            **({beside: style.format(np.mean(others)) if others else ""} if beside else {}),
            "seeds": f"{len(values)}",
        }
    return table
