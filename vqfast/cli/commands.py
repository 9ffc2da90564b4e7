"""The commands: words in, words out. The work is done by ``vqfast.pipeline``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_choice, check_integer, check_number
from vqfast.cli.arguments import (
    check_new,
    check_reading,
    given_of,
    opened,
    tell,
    training_of,
    without_skip_bad,
)
from vqfast.cli.info import machine_lines
from vqfast.cli.video import continuation, directed
from vqfast.cli.written import as_toml, written_down
from vqfast.data import Recordings, Source
from vqfast.data.audio.formats import sound_of_pairs
from vqfast.data.disk import quantity
from vqfast.files import write_file
from vqfast.models import VQVAE, Autoencoder, SpeechVQVAE
from vqfast.pipeline import (
    Completion,
    PriorTraining,
    Ranks,
    Rejection,
    Run,
    SampleRequest,
    Training,
    VideoTraining,
    bits_per_code,
    bits_per_dim,
    joined,
    load_model,
    load_priors,
    measure_reconstruction,
    measure_speech,
    modality_of,
    num_rejected,
    open_codes,
    reopen_parts,
    stage_codes,
)
from vqfast.pipeline import decode as decode_step
from vqfast.pipeline import encode as encode_step
from vqfast.pipeline import sample as sample_step
from vqfast.pipeline import train_classifier as train_classifier_step
from vqfast.pipeline import train_priors as train_priors_step
from vqfast.pipeline import train_second_stage as train_second_stage_step
from vqfast.pipeline import train_vqvae as train_vqvae_step
from vqfast.pipeline.coding import decoded, encoded
from vqfast.pipeline.demo import run_demo, summary
from vqfast.pipeline.levels import level_name, level_of
from vqfast.pipeline.measures import likelihood_of
from vqfast.pipeline.pages import PAGE, write_report
from vqfast.pipeline.parts import HELD_OUT
from vqfast.pipeline.sampling import check_label

READING = ("labels", "size", "crop", "channels", "depth", "skip_bad")  # options about reading data


def demo(out: str, seed: int, steps_scale: float, device: str) -> None:
    """Learn real handwritten digits and draw new ones, in minutes on a CPU."""
    check_number("steps_scale", steps_scale, above=0, maximum=1)
    with joined(device) as ranks:
        run_demo(out, ranks, seed=seed, steps_scale=steps_scale)
        if ranks.first:
            print(summary(out))


def train(out: str, device: str, config: str | None, recipe: str | None, **options: Any) -> None:
    """Step 1: train a VQ-VAE on images."""
    training = training_of(Training, options)
    text = as_toml(options, training)
    reading = {name: options.pop(name) for name in (*READING, "flip")}
    named = {name: options.pop(name) for name in ("data", "val", "group", "model")}
    with joined(device) as ranks:
        run = Run.shared(out, ranks, create=True)
        with written_down(run, "vqvae", "train.toml", text, ranks):
            train_vqvae_step(
                run,
                reading=reading,
                model_options=given_of(options),
                training=training,
                ranks=ranks,
                **named,
            )
        write_report(run, ranks)
        tell(ranks, f"trained {run.folder / 'vqvae.safetensors'}; see {run.folder / PAGE}")


def train_second_stage(run: str, out: str, device: str, config: str | None, **options: Any) -> None:
    """Train a second VQ-VAE over the codes of a run, in a new run with one level of codes more."""
    training = training_of(Training, options)
    text = as_toml(options, training)
    with joined(device) as ranks:
        target = Run.shared(out, ranks, create=True)
        first = Run.shared(run, ranks, lock=False)
        with written_down(target, "vqvae", "train-second-stage.toml", text, ranks):
            train_second_stage_step(
                target,
                first,
                model=options.pop("model"),
                model_options=given_of(options),
                training=training,
                ranks=ranks,
            )
        write_report(target, ranks)
        tell(ranks, f"trained {target.folder / 'vqvae.safetensors'}; see {target.folder / PAGE}")


def encode(
    run: str, data: str | None, out: str | None, format: str | None, device: str, **reading: Any
) -> None:
    """Step 2: turn images into grids of codes."""
    check_reading(data, reading)
    if (data is None) != (out is None):
        raise ValueError("--data and --out go together: codes of other data go to a folder of their own")
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=out is None)
        vqvae = load_model(source.folder, "vqvae", device=ranks.device)
        if out is None:
            target, parts = source, reopen_parts(source, ranks)
        else:
            parts = {"all": opened(source, vqvae, data, ranks, reading)}
            target = Run.shared(out, ranks, create=True)
        item = modality_of(source).item
        for part, dataset in parts.items():
            encode_step(source, vqvae, dataset, part=part, format=format, out=target, ranks=ranks)
            tell(ranks, f"{quantity(len(dataset), item)} encoded in {target.folder / 'codes' / part}")


def train_prior(run: str, device: str, config: str | None, recipe: str | None, **options: Any) -> None:
    """Step 3: train a PixelCNN prior on a run's codes."""
    if modality_of(Run(run, lock=False)).item == "clip":
        options.setdefault("batch_size", VideoTraining().batch_size)
    training = training_of(PriorTraining, options)
    text = as_toml(options, training)
    use_labels, use_actions = not options.pop("no_labels"), not options.pop("no_actions")
    named = {n: options.pop(n) for n in ("level", "prior", "condition_channels", "condition_blocks")}
    with joined(device) as ranks:
        target = Run.shared(run, ranks)
        with written_down(target, "prior", "train-prior.toml", text, ranks):
            trained = train_priors_step(
                target,
                prior_options=given_of(options),
                use_labels=use_labels,
                use_actions=use_actions,
                training=training,
                ranks=ranks,
                **named,
            )
        write_report(target, ranks)
        bits = bits_per_code(trained, stage_codes(target, f"codes/{HELD_OUT}"), ranks=ranks).mean(0)
        for network, figure in zip(trained, bits, strict=True):
            file = target.folder / f"{level_name('prior', level_of(network))}.safetensors"
            tell(ranks, f"trained {file}; {figure:.3f} bits per code on held-out data")
        tell(ranks, f"see {target.folder / PAGE}")


def train_classifier(run: str, device: str, config: str | None, **options: Any) -> None:
    """Train a classifier on a run's images and labels, for sample --reject."""
    training = training_of(Training, options)
    text = as_toml(options, training)
    with joined(device) as ranks:
        target = Run.shared(run, ranks)
        with written_down(target, "classifier", "train-classifier.toml", text, ranks):
            train_classifier_step(target, training=training, ranks=ranks)
        write_report(target, ranks)
        tell(ranks, f"trained {target.folder / 'classifier.safetensors'}; see {target.folder / PAGE}")


def sample(
    run: str,
    out: str,
    num: int | None,
    label: int | None,
    shape: list[int] | None,
    complete: str | None,
    keep: str | None,
    given: int | None,
    data: str | None,
    frames: int | None,
    actions: str | None,
    draws: int | None,
    reject: float | None,
    format: str | None,
    device: str,
    **options: Any,
) -> None:
    """Step 4: draw new codes, or complete images, and decode them."""
    if num is not None:
        check_integer("num", num)
    if complete is None and (keep is not None or (draws is not None and given is None)):
        raise ValueError("--keep and --draws go with --complete")
    if complete is not None and shape is not None:
        raise ValueError("--shape and --complete exclude each other: the items give the shape of the codes")
    if complete is not None and any(option is not None for option in (given, frames, actions)):
        raise ValueError("--complete goes without --given, --frames and --actions")
    if given is not None and shape is not None:
        raise ValueError("--shape and --given exclude each other: the clips give the shape of the codes")
    if data is not None and given is None:
        raise ValueError("--data goes with --given: the clips that are given")
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        formats = modality_of(source).formats
        format = next(iter(formats)) if format is None else format
        check_choice("format", format, (*formats, "codes"))
        vqvae = load_model(source.folder, "vqvae", device=ranks.device)
        priors = load_priors(source, vqvae, device=ranks.device)
        completion: Completion | None = None
        if given is not None:
            how: dict[str, Any] = {"frames": frames, "actions": actions, "draws": draws}
            completion = continuation(source, vqvae, ranks, given=given, data=data, **how)
        elif complete is not None:
            completion = _completion(source, vqvae, complete, keep, draws, ranks)
        if completion is None:
            request = SampleRequest(100 if num is None else num, _shapes(source, vqvae, shape), labels=label)
            request = directed(source, vqvae, request, frames=frames, actions=actions)
        else:
            request = completion.request(priors, num=num, labels=label)
        rejection = None if reject is None else Rejection.of_run(source, vqvae, reject, ranks)
        target = Run.shared(out, ranks, create=True)
        samples = sample_step(source, priors, request, out=target, ranks=ranks, reject=rejection, **options)
        made = [f"{quantity(samples.num, 'sample')} in {target.folder / 'samples'}"]
        if rejection is not None:
            made[0] += f", {num_rejected(target)} rejected"
        if format != "codes":
            decode_step(source, vqvae, samples, format=format, out=target, ranks=ranks)
            made.append(f"decoded in {target.folder / format}")
        if completion is not None and ranks.first:
            picture = target.folder / "completions.png"
            if not picture.is_file():
                write_file(picture, completion.picture(samples))
            made.append(f"some beside their originals in {picture}")
        tell(ranks, "; ".join(made))


def decode(run: str, codes: str, out: str, format: str | None, temperature: float, device: str) -> None:
    """Step 5, as sample does it: turn codes into images."""
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        formats = modality_of(source).formats
        format = next(iter(formats)) if format is None else format
        check_choice("format", format, formats)
        vqvae = load_model(source.folder, "vqvae", device=ranks.device)
        grids = open_codes(codes)
        target = Run.shared(out, ranks, create=True)
        decode_step(source, vqvae, grids, format=format, out=target, ranks=ranks, temperature=temperature)
        item = modality_of(source).item
        tell(ranks, f"{quantity(grids.num, item)} in {target.folder / format}")


def likelihood(
    run: str,
    codes: str | None,
    data: str | None,
    label: int | None,
    out: str,
    overwrite: bool,
    device: str,
    **reading: Any,
) -> None:
    """Tell how likely images or codes are, in bits."""
    check_new(out, overwrite, ".npy")
    check_reading(data, reading)
    if codes is not None and data is not None:
        raise ValueError("--codes and --data exclude each other")
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", device=ranks.device)
        priors = load_priors(source, vqvae, device=ranks.device)
        check_label(priors, label)
        if codes is not None:
            dataset, grids = None, open_codes(codes)
        else:
            dataset = opened(source, vqvae, data, ranks, reading)
            grids = encoded(vqvae, dataset, ranks)
        bits = bits_per_code(priors, grids, labels=label, ranks=ranks)
        counts = torch.tensor([indices[0].numel() for indices in grids.read(range(1))[0]])
        totals = bits @ counts.double()
        by_dim, decoder = "", likelihood_of(vqvae)
        if dataset is not None and decoder is not None:
            by_dim = _bits_per_dim(decoder, dataset, totals, ranks)
        if ranks.first:
            buffer = io.BytesIO()
            np.save(buffer, bits.squeeze(1).numpy())
            write_file(Path(out), buffer.getvalue())
            figures = f"{totals.mean() / counts.sum():.3f} bits per code"
            if len(priors) > 1:
                figures += f" ({', '.join(f'{mean:.3f}' for mean in bits.mean(0))} by level)"
            count = quantity(len(bits), "grid")
            print(f"{count} of codes: {figures}{by_dim}; those of each grid in {out}")


def reconstruct(
    run: str,
    data: str | None,
    out: str,
    num: int,
    levels: int | None,
    overwrite: bool,
    device: str,
    **reading: Any,
) -> None:
    """Encode and decode images, for a picture and the error; recordings also for a sound."""
    check_integer("num", num)
    check_new(out, overwrite, ".png", ".wav")
    check_reading(data, reading)
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", device=ranks.device)
        dataset, modality = opened(source, vqvae, data, ranks, reading), modality_of(source)
        sound = Path(out).suffix.lower() == ".wav"
        if sound and not isinstance(dataset, Recordings):
            item = modality.item
            raise ValueError(f"out is {out}; want a name that ends in .png: {item}s have no sound")
        check_integer("levels", levels, 1, len(vqvae.codebook_sizes), optional=True)
        if isinstance(vqvae, SpeechVQVAE) and isinstance(dataset, Recordings):
            figures = measure_speech(vqvae, dataset, ranks=ranks)
        else:
            figures = measure_reconstruction(vqvae, dataset, levels=levels, ranks=ranks)
        if ranks.first:
            shown = range(min(num, len(dataset)))
            codes = encoded(vqvae, dataset, ranks)
            outputs = torch.cat(list(decoded(vqvae, codes, shown, ranks, levels=levels)))
            if sound and isinstance(dataset, Recordings):
                write_file(Path(out), sound_of_pairs(dataset, shown, outputs))
            else:
                write_file(Path(out), modality.show_pairs(dataset.batch(shown), outputs))
            values = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
            print(f"{quantity(len(dataset), modality.item)}: {values}; {len(shown)} of them in {out}")


def info() -> None:
    """Tell which backends run on this machine, and why others don't."""
    for line in machine_lines():
        print(line)


def _bits_per_dim(decoder: VQVAE, dataset: Source, code_bits: Tensor, ranks: Ranks) -> str:
    """The bound on the bits of a value, in words; ``code_bits`` are those of all codes of each item."""
    learned, uniform = (
        bits_per_dim(decoder, dataset, code_bits=given, ranks=ranks).mean() for given in (code_bits, None)
    )
    return f"; {learned:.3f} bits per dimension, {uniform:.3f} with a uniform prior"


def _shapes(run: Run, vqvae: Autoencoder, coarsest: list[int] | None) -> list[tuple[int, ...]]:
    """The shapes of the grids of each level: the run's own, or with another coarsest one."""
    if coarsest is None:
        levels, _ = stage_codes(run, f"codes/{HELD_OUT}").read(range(1))
        return [tuple(indices.shape[1:]) for indices in levels]
    if len(coarsest) != vqvae.ndim:
        raise ValueError(f"--shape has {len(coarsest)} sizes; want {vqvae.ndim}")
    return [tuple(size * vqvae.stride // stride for size in coarsest) for stride in vqvae.strides]


def _completion(
    run: Run, vqvae: Autoencoder, complete: str, keep: str | None, draws: int | None, ranks: Ranks
) -> Completion:
    own = complete == HELD_OUT
    dataset = opened(run, vqvae, None if own else complete, ranks, without_skip_bad(run))
    options = given_of({"keep": keep, "draws": draws})
    return Completion(vqvae, dataset, modality_of(run), ranks=ranks, **options)
