"""Spectrograms and sounds of the suite ``speech``, to look at and to hear."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.speech_data import FRAMES, HOP, MELS, RATE, Utterances
from benchmarks.speech_sound import waves_of
from benchmarks.speech_waves import COOLER, converted
from vqfast.data.audio import wav_bytes
from vqfast.data.images.sheet import grid
from vqfast.files import write_file
from vqfast.models import SpeechVQVAE
from vqfast.models.speech_encoder import LogMel
from vqfast.priors import WaveNet

CODES = 38  # of each picture: a second and a half
HEARD = 28  # of those, in sounds
DARK, LIGHT = -1.5, 1.5  # of log-mels


def pictured(mels: Tensor) -> Tensor:
    """Log-mels ``(MELS, T)`` as a picture of as many windows as are shown, low bands below."""
    part = mels[:, : CODES * FRAMES].flip(0)
    return ((part - DARK) / (LIGHT - DARK)).clamp(0, 1).unsqueeze(0)


def show(
    vqvae: SpeechVQVAE, prior: WaveNet, held_out: Utterances, codes: list[np.ndarray], path: Path
) -> None:
    """Writes a picture, and sounds beside it: a recording of each speaker, and what is made of it.

    The lines of the picture: the recording; its codes told by the fast decoder as the same speaker, and as
    the next one; the latter drawn by the WaveNet; and codes that the prior drew, drawn so too. The converted
    voice is to be heard as made of the fast decoder's spectrogram, and as the WaveNet draws it.

    Args:
        path: of the picture, without a suffix.
    """
    log_mel, speakers = LogMel(MELS, HOP, RATE), range(len(held_out.names))
    chosen = [
        next(i for i, s in enumerate(held_out.speakers.tolist()) if s == speaker and len(codes[i]) >= CODES)
        for speaker in speakers
    ]
    rows = torch.from_numpy(np.stack([codes[i][:CODES] for i in chosen]))
    targets = torch.tensor(speakers).roll(-1)
    drawn = partial(vqvae.decode, labels=targets, temperature=COOLER)
    waves = drawn(rows, seed=1)
    new = drawn(prior.sample(len(speakers), (CODES,), labels=targets, seed=2), seed=3)
    lines = [
        [held_out.raw(i) for i in chosen],
        [converted(vqvae, held_out, [codes[i]], s)[0] for i, s in zip(chosen, speakers, strict=True)],
        [converted(vqvae, held_out, [codes[i]], s)[0] for i, s in zip(chosen, targets.tolist(), strict=True)],
        list(log_mel(waves)),
        list(log_mel(new)),
    ]
    pictures = torch.stack([pictured(mels) for line in lines for mels in line])
    captions = ["recording", "decoded", "converted", "drawn", "new"]
    write_file(path.with_suffix(".png"), grid(pictures, columns=len(speakers), scale=2, captions=captions))
    mels = torch.stack([m[:, : CODES * FRAMES] for m in lines[2]])
    told = waves_of(log_mel, mels)
    originals = held_out.waves[chosen[0]][: CODES * FRAMES * HOP]
    sounds = {"recording": originals, "converted": told[0, 0], "drawn": waves[0, 0], "new": new[0, 0]}
    for name, wave in sounds.items():
        heard = wave[: HEARD * FRAMES * HOP].numpy()
        write_file(path.with_name(f"{path.name}-{name}.wav"), wav_bytes(heard, RATE))
