"""Step 1: the VQ-VAE is trained on data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vqfast.checks import check_choice
from vqfast.models import Autoencoder
from vqfast.pipeline.checkpoint import check_rebuildable, load_model
from vqfast.pipeline.measures import bits_per_dim, likelihood_of, measure_reconstruction
from vqfast.pipeline.options import Training
from vqfast.pipeline.parts import HELD_OUT, TRAIN, data_note, open_parts
from vqfast.pipeline.progress import warn_of
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.training import begin_training, train_once
from vqfast.pipeline.validation import validation_of
from vqfast.pipeline.vqvae_task import MODELS, vqvae_task

TRAINING = Training()
MSE, BITS = "held_out_mse", "held_out_bits_per_dim"  # figures that are compared, of which less is better


def train_vqvae(
    run: Run,
    data: str | Path,
    *,
    modality: str = "images",
    reading: Mapping[str, Any] | None = None,
    val: float | str | Path = 0.1,
    group: str | None = None,
    model: str = "paper",
    model_options: Mapping[str, Any] | None = None,
    training: Training = TRAINING,
    ranks: Ranks = ALONE,
) -> Autoencoder:
    """Step 1: trains a VQ-VAE on data. A run that has a trained one gives it back at once.

    Args:
        run: the run to train in.
        data: a path, or ``"digits"``: see ``load_images`` and ``load_video``.
        modality: the kind of data, a name in ``vqfast.data.MODALITIES``.
        reading: options of ``load_images``, or of the function for the other kind.
        val: the share of the data that is kept out of training, above 0 and below 1; or the path of data to
            measure on, which is read like ``data``.
        group: a regular expression; images whose file names agree in its first pair of parentheses are on one
            side of the split. See ``Images.split``.
        model: a configuration that ``VQVAE.named`` or ``HierarchicalVQVAE.named`` knows.
        model_options: arguments of that class that replace those of the configuration.
        training: how it is trained; its seed fixes the split too. The held-out figure that is compared is the
            squared error, or the bits per dimension under a uniform prior where the decoder has a likelihood.
        ranks: the processes that work together.

    Returns:
        The trained model, in eval mode. It lies in ``vqvae.safetensors``, its curves in ``vqvae.png`` and
        ``vqvae.csv``.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range, the data can't be read or
            doesn't fit the model, or the run was begun with other settings.

    >>> import tempfile
    >>> from vqfast.pipeline import PriorTraining, SampleRequest, decode, encode, reopen_parts
    >>> from vqfast.pipeline import sample, train_priors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = Run(folder, create=True)
    ...     small = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4}
    ...     reading = {"size": 8}
    ...     training = Training(steps=2)
    ...     vqvae = train_vqvae(
    ...         run, "digits", reading=reading, model_options=small, training=training
    ...     )
    ...     for part, dataset in reopen_parts(run).items():
    ...         encode(run, vqvae, dataset, part=part)
    ...     small = {"channels": 8, "num_layers": 2}
    ...     priors = train_priors(run, prior_options=small, training=PriorTraining(steps=2))
    ...     samples = sample(run, priors, SampleRequest(num=4, shapes=[(2, 2)]))
    ...     decode(run, vqvae, samples, format="png")
    ...     sorted(path.name for path in Path(folder, "png").iterdir())
    ['0000000.png', '0000001.png', '0000002.png', '0000003.png']
    """
    check_choice("model", model, MODELS)
    note = data_note(data, modality=modality, val=val, seed=training.seed, reading=reading or {}, group=group)
    parts, found = open_parts(run, note, ranks)
    part = parts[TRAIN]
    warn_of(ranks, "data", part.describe())
    if isinstance(note["val"], str):
        warn_of(ranks, "val", parts[HELD_OUT].describe())
    options = dict(model_options or {})
    torch.manual_seed(training.seed)
    sizes = {"in_channels": part.shape[0]}
    if model == "ruseckas-hierarchical":
        sizes["image_size"] = part.shape[1]
    vqvae = MODELS[model].named(model, **{**sizes, **options}).to(ranks.device)
    check_rebuildable(vqvae)
    try:
        vqvae.code_shapes(part.shape[1:])
    except ValueError as error:
        for name in ("crop", "size"):
            if note.get(name) is not None:
                stride = f"a multiple of {vqvae.stride}, the model's stride"
                raise ValueError(f"{name} is {note[name]}; want {stride}") from None
        raise ValueError(f"the data doesn't fit the model: {error}; --size resizes images") from None
    settings = {"data": note, "model": model, **options}
    begin_training(run, "vqvae", settings | training.settings(len(part)), ranks)
    run.begin("data", found, ranks=ranks)

    decoder = likelihood_of(vqvae)

    def measure() -> dict[str, float]:
        figures = measure_reconstruction(vqvae, parts[HELD_OUT], ranks=ranks)
        measured = {f"held_out_{name}": value for name, value in figures.items()}
        if decoder is not None:
            measured[BITS] = bits_per_dim(decoder, parts[HELD_OUT], ranks=ranks).mean().item()
        return measured

    validation = validation_of(training, MSE if decoder is None else BITS, measure)
    make_task = partial(vqvae_task, vqvae, part, ranks)
    train_once(run, "vqvae", vqvae, make_task, training, validation=validation, ranks=ranks)
    return load_model(run.folder, "vqvae", device=ranks.device)
