"""Codes of recordings, and how well phones and speakers are read from them: experiments 1 and 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speech_data import FRAMES, HOP, MELS, RATE, Utterances, first_code, part
from vqfast.models import SpeechVQVAE

K = 128
MODEL: dict[str, Any] = {
    "encoder_strides": (HOP, 2, 2),
    "num_mels": MELS,
    "mel_weight": 10.0,
    "hidden_channels": 128,
    "num_residual_blocks": 1,
    "num_embeddings": K,
    "decay": 0.95,
    "wavenet_channels": 24,
    "wavenet_layers": 10,
    "rate": RATE,
}
BATCH, CODES, LR = 16, 32, 1e-3
SEGMENT = 25  # codes from which a speaker is read: a second
BESIDE = 3  # codes on either side from which a phone is read
CONTEXT = 12  # windows round the middle of a code that the supervised classifier sees
EPOCHS = 10

Codes = tuple[list[np.ndarray], list[np.ndarray]]  # of the training recordings, of the others


def trained_codes(train: Utterances, steps: int, seed: int, told: bool, model: dict[str, Any]) -> SpeechVQVAE:
    """A model whose encoder learned with the second decoder, which was told the speaker or wasn't."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vqvae = SpeechVQVAE(**model, num_classes=len(train.names) if told else None)
    encoder, decoder = vqvae.encoder[1:], vqvae.mel_decoder
    assert decoder is not None
    parameters = [*encoder.parameters(), *vqvae.vq.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        numbers = rng.integers(len(train.mels), size=BATCH)
        parts = []
        for mels in (train.mels[number] for number in numbers):
            parts.append(part(mels, first_code(mels.shape[1] // FRAMES, CODES, rng), CODES, FRAMES))
        quantized, _, loss = vqvae.vq(encoder(torch.stack(parts)))
        speakers = train.speakers[numbers] if told else None
        error = decoder.error(quantized, speakers, torch.stack(parts), None)
        optimizer.zero_grad()
        (model["mel_weight"] * error + loss).backward()
        optimizer.step()
        schedule.step()
    return vqvae.eval()


@torch.no_grad()
def codes_of(vqvae: SpeechVQVAE, utterances: Utterances) -> list[np.ndarray]:
    """The codes of each recording."""
    encoder = vqvae.encoder[1:]
    return [vqvae.vq.encode(encoder(mels[None]))[0].numpy() for mels in utterances.mels]


def around(mels: Tensor, windows: int) -> Tensor:
    """So many windows round the middle of each code: ``(T / FRAMES, MELS * windows)``."""
    beyond = windows // 2
    padded = F.pad(mels[None], (beyond, beyond), mode="replicate")[0]
    first = FRAMES // 2
    return padded[:, first:].unfold(1, windows, FRAMES).transpose(0, 1).flatten(1)


def labelled(utterances: Utterances, of_codes: list[Any]) -> tuple[Any, list[str]]:
    """What belongs to the codes with phones, joined, and their phones."""
    chosen = [x for x, phones in zip(of_codes, utterances.phones, strict=True) if phones]
    phones = [phone for row in utterances.phones for phone in row]
    joined = torch.cat(chosen) if isinstance(chosen[0], Tensor) else np.concatenate(chosen)
    return joined, phones


def phones_right(codes: Codes, train: Utterances, held_out: Utterances) -> float:
    """The share of held-out codes whose phone is the one that their code goes with most in training."""
    (seen, phones), (unseen, right) = labelled(train, codes[0]), labelled(held_out, codes[1])
    names, numbers = np.unique(phones, return_inverse=True)
    counts = np.zeros((K, len(names)))
    np.add.at(counts, (seen, numbers), 1)
    return float(np.mean(names[counts.argmax(1)][unseen] == np.array(right)))


def phones_beside(codes: Codes, train: Utterances, held_out: Utterances, seed: int) -> float:
    """The share of held-out codes whose phone a classifier tells: it sees ``BESIDE`` codes on either side."""

    def seen(rows: list[np.ndarray]) -> list[np.ndarray]:
        padded = [np.pad(row, BESIDE, constant_values=K) for row in rows]
        return [np.lib.stride_tricks.sliding_window_view(row, 2 * BESIDE + 1) for row in padded]

    (shown, phones), (unseen, right) = labelled(train, seen(codes[0])), labelled(held_out, seen(codes[1]))
    names, numbers = np.unique(phones, return_inverse=True)
    inputs, others = (F.one_hot(torch.from_numpy(x), K + 1).flatten(1).float() for x in (shown, unseen))
    told = classifier(inputs, torch.from_numpy(numbers), len(names), seed)
    return float(np.mean(names[told(others).numpy()] == np.array(right)))


def classifier(inputs: Tensor, labels: Tensor, classes: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A network of one hidden layer that learned to tell ``labels``; of inputs ``(N, D)`` gives classes."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs.shape[1], 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, classes))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(EPOCHS):
        for numbers in torch.randperm(len(inputs)).split(256):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs[numbers]), labels[numbers]).backward()
            optimizer.step()
    net.eval()

    @torch.no_grad()
    def told(x: Tensor) -> Tensor:
        result: Tensor = net(x).argmax(1)
        return result

    return told


def supervised(train: Utterances, held_out: Utterances, seed: int) -> float:
    """The share of held-out codes whose phone a classifier tells that learned from labels: the ceiling."""
    vectors = [[around(mels, CONTEXT) for mels in u.mels] for u in (train, held_out)]
    (seen, phones), (unseen, right) = labelled(train, vectors[0]), labelled(held_out, vectors[1])
    names, numbers = np.unique(phones, return_inverse=True)
    told = classifier(seen, torch.from_numpy(numbers), len(names), seed)
    return float(np.mean(names[told(unseen).numpy()] == np.array(right)))


def speakers_right(
    codes: Codes, train: Utterances, held_out: Utterances, prior: float | None = None
) -> float:
    """The share of held-out seconds whose speaker is the likeliest by how often each has the codes.

    Args:
        prior: counts that each code's successors are given as if seen, as frequent as they are on the whole.
            Then the speaker is the likeliest by the code that follows each one; by default order is ignored.
    """
    speakers = len(train.names)
    single, pairs = np.ones((speakers, K)), np.zeros((speakers, K, K))
    for row, speaker in zip(codes[0], train.speakers.tolist(), strict=True):
        np.add.at(single[speaker], row, 1)
        np.add.at(pairs[speaker], (row[:-1], row[1:]), 1)
    single /= single.sum(1, keepdims=True)
    following = np.repeat(single[:, None], K, 1)
    if prior is not None:
        following = (pairs + prior * following) / (pairs.sum(2, keepdims=True) + prior)
    begins, follows = np.log(single), np.log(following)
    right = []
    for row, speaker in zip(codes[1], held_out.speakers.tolist(), strict=True):
        for first in range(0, len(row) - SEGMENT + 1, SEGMENT):
            second = row[first : first + SEGMENT]
            log_p = begins[:, second[0]] + follows[:, second[:-1], second[1:]].sum(1)
            right.append(log_p.argmax() == speaker)
    return float(np.mean(right))
