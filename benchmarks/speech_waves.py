"""What is made of codes: a voice converted, waveforms, and speech that nobody said: experiments 3 to 5."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speech_codes import SEGMENT, K, classifier
from benchmarks.speech_data import (
    CODE_SAMPLES,
    FRAMES,
    HOP,
    RATE,
    SMALLEST_SCALE,
    Utterances,
    first_code,
    part,
)
from benchmarks.speech_sound import waves_of
from vqfast.models import SpeechVQVAE
from vqfast.models.mu_law import mu_law_encode
from vqfast.models.speech_encoder import LogMel
from vqfast.priors import WaveNet

WAVE_BATCH, WAVE_CODES, WAVE_LR = 8, 2, 4e-3
PRIOR_BATCH, PRIOR_CODES, PRIOR_LR = 32, 64, 3e-3
CHECKS = 12  # how often a prior's held-out figure is looked at: the best weights are kept
MOST_GAIN = 2.5  # of a band
JUDGED = 8  # seconds of waveforms of each speaker that the judge hears
COOLER = 0.8  # a temperature


class Decoder(NamedTuple):
    """What a waveform decoder reaches, in bits a sample of held-out recordings."""

    with_codes: float
    shuffled: float


def judge(train: Utterances, seed: int) -> Callable[[Tensor], Tensor]:
    """Tells who speaks a second: of log-mels ``(N, MELS, SEGMENT * FRAMES)``, not normalised."""

    def shown(mels: Tensor) -> Tensor:
        return torch.cat([mels.mean(2), mels.std(2)], 1)

    pieces, speakers = seconds(train, [train.raw(i) for i in range(len(train.mels))])
    inputs = shown(pieces)
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-3
    told = classifier((inputs - mean) / scale, speakers, len(train.names), seed)
    return lambda mels: told((shown(mels) - mean) / scale)


def seconds(utterances: Utterances, mels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All whole seconds of log-mels, and who speaks them."""
    length = SEGMENT * FRAMES
    pieces = [m[:, i : i + length] for m in mels for i in range(0, m.shape[1] - length + 1, length)]
    counts = torch.tensor([m.shape[1] // length for m in mels])
    return torch.stack(pieces), utterances.speakers.repeat_interleave(counts)


@torch.no_grad()
def converted(
    vqvae: SpeechVQVAE, held_out: Utterances, codes: list[np.ndarray], speaker: int
) -> list[Tensor]:
    """The log-mels of recordings as the fast decoder tells them of another speaker.

    The mean of a recording's bands still tells who spoke, and a mean of all likely spectra varies less than
    each of them. So each band gets the target's mean, and over all recordings the target's spread.
    """
    assert vqvae.mel_decoder is not None
    told = []
    for row in codes:
        quantized = vqvae.vq.decode(torch.from_numpy(row)[None])
        mels = vqvae.mel_decoder(quantized, torch.tensor([speaker]))[0]
        told.append(mels - mels.mean(1, keepdim=True))
    mean, scale = held_out.means[speaker], held_out.scales[speaker]
    gains = (1 / torch.cat(told, 1).std(1, keepdim=True)).clamp(max=MOST_GAIN)
    gains[scale <= SMALLEST_SCALE] = 0  # the target's band is the same in all windows
    return [mels * gains * scale + mean for mels in told]


def conversion(
    vqvae: SpeechVQVAE, train: Utterances, held_out: Utterances, codes: list[np.ndarray], seed: int
) -> dict[str, float]:
    """Shares of held-out seconds that the judge gives their speaker or, converted, the target."""
    told, log_mel = judge(train, seed), LogMel(train.mels[0].shape[0], HOP, RATE)
    real, speakers = seconds(held_out, [held_out.raw(i) for i in range(len(held_out.mels))])
    as_target, as_source, heard = [], [], []
    for target in range(len(train.names)):
        pieces, sources = seconds(held_out, converted(vqvae, held_out, codes, target))
        found = told(pieces[sources != target])
        as_target.append((found == target).double())
        as_source.append((found == sources[sources != target]).double())
        others = pieces[sources != target]
        waves = waves_of(log_mel, others[:: -(-len(others) // JUDGED)], seed=seed)
        heard.append((told(log_mel(waves)) == target).double())
    return {
        "real seconds": (told(real) == speakers).double().mean().item(),
        "converted seconds": torch.cat(as_target).mean().item(),
        "converted seconds, still heard as who spoke": torch.cat(as_source).mean().item(),
        "converted waveforms of these spectrograms": torch.cat(heard).mean().item(),
    }


def drawn_conversion(
    vqvae: SpeechVQVAE, train: Utterances, held_out: Utterances, codes: list[np.ndarray], seed: int
) -> dict[str, float]:
    """The share of seconds, drawn by the WaveNet, that the judge gives the target."""
    told, log_mel = judge(train, seed), LogMel(train.mels[0].shape[0], HOP, RATE)
    found = {}
    for temperature, name in ((1.0, ""), (COOLER, f", temperature {COOLER}")):
        heard = [
            (told(log_mel(drawn(vqvae, held_out, codes, target, temperature))) == target).double()
            for target in range(len(train.names))
        ]
        found[f"converted waveforms, drawn by the WaveNet{name}"] = torch.cat(heard).mean().item()
    return found


def drawn(
    vqvae: SpeechVQVAE, held_out: Utterances, codes: list[np.ndarray], target: int, temperature: float
) -> Tensor:
    """A second of some recordings of the other speakers as the WaveNet draws it in a voice."""
    rows = [
        row[:SEGMENT]
        for row, speaker in zip(codes, held_out.speakers.tolist(), strict=True)
        if speaker != target and len(row) >= SEGMENT
    ]
    return vqvae.decode(
        torch.from_numpy(np.stack(rows[:JUDGED])), labels=target, seed=target, temperature=temperature
    )


def trained_decoder(
    vqvae: SpeechVQVAE, train: Utterances, codes: list[np.ndarray], steps: int, seed: int
) -> SpeechVQVAE:
    """A copy of the model whose WaveNet learned to draw waveforms of these codes; -1 stands for no code."""
    vqvae = copy.deepcopy(vqvae).train()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    parameters = [*vqvae.conditioner.parameters(), *vqvae.wavenet.parameters()]
    optimizer = torch.optim.Adam(parameters, WAVE_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        numbers = rng.integers(len(codes), size=WAVE_BATCH)
        firsts = [first_code(len(codes[number]), WAVE_CODES, rng) for number in numbers]
        places = list(zip(numbers, firsts, strict=True))
        waves = torch.stack([part(train.waves[n], first, WAVE_CODES, CODE_SAMPLES) for n, first in places])
        rows = torch.stack([part(torch.from_numpy(codes[n]), first, WAVE_CODES, 1) for n, first in places])
        values = mu_law_encode(waves, vqvae.num_values)
        condition = vqvae.conditioner(vqvae.vq.decode(rows))
        logits = vqvae.wavenet(values, labels=train.speakers[numbers], condition=condition)
        optimizer.zero_grad()
        F.cross_entropy(logits, values).backward()
        optimizer.step()
        schedule.step()
    return vqvae.eval()


def decoder_bits(
    vqvae: SpeechVQVAE, held_out: Utterances, codes: list[np.ndarray], recordings: int, seed: int
) -> Decoder:
    """Bits a sample of held-out recordings, given their codes, and given the same in another order."""
    rng = np.random.default_rng(seed)
    sums, samples = [0.0, 0.0], 0
    for number in range(0, len(codes), -(-len(codes) // recordings)):
        wave, row = held_out.waves[number], codes[number]
        samples += len(wave)
        for i, shown in enumerate((row, rng.permutation(row))):
            told = int(held_out.speakers[number])
            nats = vqvae.nats(wave[None, None], torch.from_numpy(shown)[None], labels=told)
            sums[i] += nats.item() / math.log(2)
    return Decoder(sums[0] / samples, sums[1] / samples)


def trained_prior(
    train: Utterances,
    held_out: Utterances,
    codes: tuple[list[np.ndarray], list[np.ndarray]],
    steps: int,
    seed: int,
) -> tuple[WaveNet, float]:
    """A prior of sequences of codes, told the speaker, and its bits a code on the held-out recordings."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    prior = WaveNet(K, channels=48, num_layers=8, dilation_cycle=4, num_classes=len(train.names))
    optimizer = torch.optim.Adam(prior.parameters(), PRIOR_LR)
    best, kept = math.inf, copy.deepcopy(prior)
    for step in range(1, steps + 1):
        numbers = rng.integers(len(codes[0]), size=PRIOR_BATCH)
        rows = [torch.from_numpy(codes[0][n]) for n in numbers]
        firsts = [first_code(len(row), PRIOR_CODES, rng) for row in rows]
        grids = torch.stack([part(r, first, PRIOR_CODES, 1) for r, first in zip(rows, firsts, strict=True)])
        optimizer.zero_grad()
        F.cross_entropy(prior(grids, labels=train.speakers[numbers]), grids).backward()
        optimizer.step()
        if step % max(1, steps // CHECKS) == 0:
            bits = prior_bits(prior, held_out, codes[1])
            if bits < best:
                best, kept = bits, copy.deepcopy(prior)
    return kept.eval(), best


@torch.no_grad()
def prior_bits(prior: WaveNet, held_out: Utterances, codes: list[np.ndarray]) -> float:
    """Bits a code."""
    nats, count = 0.0, 0
    for row, speaker in zip(codes, held_out.speakers, strict=True):
        grid = torch.from_numpy(row)[None]
        nats += F.cross_entropy(prior(grid, labels=speaker[None]), grid, reduction="sum").item()
        count += len(row)
    return nats / count / math.log(2)


def counted_bits(codes: tuple[list[np.ndarray], list[np.ndarray]]) -> dict[str, float]:
    """Bits a code of counts: of single codes, and of pairs, which are mixed with the former.

    The share of the pairs is the one that suits the held-out recordings best.
    """
    single, pairs = np.ones(K), np.zeros((K, K))
    for row in codes[0]:
        np.add.at(single, row, 1)
        np.add.at(pairs, (row[:-1], row[1:]), 1)
    unigram = single / single.sum()
    bigram = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    of_single = np.concatenate([unigram[row] for row in codes[1]])
    found = [np.concatenate([[unigram[row[0]]], bigram[row[:-1], row[1:]]]) for row in codes[1]]
    of_pairs = np.concatenate(found)
    mixed = [-np.log2(w * of_pairs + (1 - w) * of_single).mean() for w in np.linspace(0.05, 0.95, 19)]
    return {"single codes, counted": float(-np.log2(of_single).mean()), "pairs, counted": float(min(mixed))}
