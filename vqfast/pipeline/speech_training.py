"""Step 1 for speech: the model is trained on random parts of recordings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqfast.checks import check_choice, check_number
from vqfast.data import Recordings
from vqfast.functional import perplexity
from vqfast.models import SpeechVQVAE
from vqfast.pipeline.checkpoint import load_model
from vqfast.pipeline.loop import Share, Task
from vqfast.pipeline.options import Training
from vqfast.pipeline.parts import HELD_OUT, TRAIN, data_note, open_parts
from vqfast.pipeline.progress import warn_of
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.speech_measures import measure_speech
from vqfast.pipeline.training import begin_training, train_once
from vqfast.pipeline.validation import validation_of

TRAINING = Training()


def train_speech(
    run: Run,
    data: str | Path,
    *,
    reading: Mapping[str, Any] | None = None,
    val: float | str | Path = 0.1,
    group: str | None = None,
    model: str = "paper-speech",
    model_options: Mapping[str, Any] | None = None,
    training: Training = TRAINING,
    ranks: Ranks = ALONE,
) -> SpeechVQVAE:
    """Step 1 for speech: trains a ``SpeechVQVAE`` on recordings. A trained one is given back at once.

    Args:
        run: the run to train in.
        data: a recording or a folder of them: see ``load_audio``.
        reading: options of ``load_audio``; each step takes ``crop`` seconds of each recording in its batch.
        val: the share of the recordings that is held out of training, above 0 and below 1; or the path of
            other recordings to measure on, of the same speakers.
        group, ranks: see ``train_vqvae``.
        model: a configuration that ``SpeechVQVAE.named`` knows.
        model_options: arguments of ``SpeechVQVAE`` that replace those of the configuration. The rate is the
            data's, and so is the number of speakers, unless ``num_classes`` is None.
        training: how it is trained; its seed fixes the split and the parts of recordings too. The held-out
            figure is bits per sample.

    Returns:
        The trained model, in eval mode. It lies in ``vqvae.safetensors``, its curves in ``vqvae.png`` and
        ``vqvae.csv``.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range, the data can't be read, or
            the run was begun with other settings.
    """
    check_choice("model", model, SpeechVQVAE.CONFIGS)
    if not isinstance(val, (str, Path)):
        check_number("val", val, above=0, below=1)
    note = data_note(data, modality="audio", val=val, seed=training.seed, reading=reading or {}, group=group)
    parts, found = open_parts(run, note, ranks)
    part, held_out = parts[TRAIN], parts[HELD_OUT]
    assert isinstance(part, Recordings) and isinstance(held_out, Recordings)
    warn_of(ranks, "data", part.describe())
    options = dict(model_options or {})
    torch.manual_seed(training.seed)
    own = {"rate": part.rate, "num_classes": part.num_classes}
    vqvae = SpeechVQVAE.named(model, **{**own, **options}).to(ranks.device)
    settings = {"data": note, "model": model, **options}
    begin_training(run, "vqvae", settings | training.settings(len(part)), ranks)
    run.begin("data", found, ranks=ranks)

    def measure() -> dict[str, float]:
        figures = measure_speech(vqvae, held_out, ranks=ranks)
        return {f"held_out_{name}": value for name, value in figures.items()}

    validation = validation_of(training, "held_out_bits_per_sample", measure)
    make_task = partial(speech_task, vqvae, part, training, ranks)
    train_once(run, "vqvae", vqvae, make_task, training, validation=validation, ranks=ranks)
    trained = load_model(run.folder, "vqvae", device=ranks.device)
    assert isinstance(trained, SpeechVQVAE)
    return trained


class _Batch(NamedTuple):
    waves: Tensor
    labels: Tensor | None
    lengths: Tensor


def speech_task(model: SpeechVQVAE, dataset: Recordings, training: Training, ranks: Ranks) -> Task:
    """What a model of speech learns: each sample of a part of a recording, and the quantiser's loss.

    Its figures are loss, bits_per_sample, perplexity and dead_codes.
    """
    num_embeddings = model.vq.num_embeddings
    length = model.stride * max(1, round(dataset.crop * dataset.rate / model.stride))
    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels)
    lengths = torch.from_numpy(dataset.lengths).clamp(max=length)
    used = torch.zeros(num_embeddings, dtype=torch.bool, device=ranks.device)

    def batch(share: Share) -> _Batch:
        told = None if labels is None or model.num_classes is None else labels[share.numbers]
        return _Batch(dataset.crops(share.numbers, length, share.chances[:, 0]), told, lengths[share.numbers])

    def metrics(step: int, batch: _Batch) -> dict[str, Tensor]:
        waves, own_labels, own_lengths = (None if t is None else t.to(ranks.device) for t in batch)
        assert waves is not None and own_lengths is not None
        out, nats = model(waves, labels=own_labels, lengths=own_lengths, return_nats=True)
        error = nats.sum() / own_lengths.sum()
        codes = out.indices[out.indices >= 0]
        used.index_fill_(0, codes, True)
        return {
            "loss": error + out.loss,
            "bits_per_sample": error.detach() / math.log(2),
            "perplexity": perplexity(codes, num_embeddings),
        }

    return Task("VQ-VAE", len(dataset), batch, metrics, {"dead_codes": used})
