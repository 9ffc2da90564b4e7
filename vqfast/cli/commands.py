"""What each command does. Each imports its part of the pipeline, which needs packages that are optional."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


def demo(out: str, seed: int, steps_scale: float, device: str) -> None:
    from vqfast.pipeline.demo import demo, summary
    from vqfast.pipeline.ranks import joined

    if not 0 < steps_scale <= 1:
        raise ValueError(f"steps-scale is {steps_scale}; want a number above 0, up to 1")
    with joined(device) as ranks:
        demo(out, ranks, seed, steps_scale)
        if ranks.first:
            print(summary(out))


def train(
    out: str,
    data: str,
    labels: str | None,
    size: int | None,
    channels: int | None,
    depth: int | None,
    skip_bad: bool,
    holdout: float,
    model: str,
    codebook: str,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    device: str,
    **overrides: Any,
) -> None:
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run
    from vqfast.pipeline.ranks import joined

    with joined(device) as ranks:
        run = Run.shared(out, ranks, create=True)
        where = [None if path is None else _absolute(path) for path in (data, labels)]
        note: dict[str, Any] = {"source": where[0], "labels": where[1], "size": size, "channels": channels}
        note |= {"depth": depth, "skip_bad": skip_bad, "holdout": holdout, "seed": seed}
        fit = {"codebook": codebook, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
        step.train_vqvae(run, note, ranks, model, _given(overrides), fit)
        _say(ranks, f"trained {run.folder / 'vqvae.safetensors'}; curves in {run.folder / 'vqvae.png'}")


def _absolute(source: str) -> str:
    return source if source == "digits" else str(Path(source).absolute())


def _given(overrides: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in overrides.items() if value is not None}


def _say(ranks: Any, line: str) -> None:
    if ranks.first:
        print(line)


def encode(run: str, data: str | None, out: str | None, device: str, **reading: Any) -> None:
    from vqfast.data.disk import counted
    from vqfast.pipeline import parts
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model
    from vqfast.pipeline.ranks import joined

    _check_reading(data, reading)
    if (data is None) != (out is None):
        raise ValueError(
            "--data and --out go together: other images than the run's go to a folder of their own"
        )
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=out is None)
        vqvae = load_model(source.folder, "vqvae", ranks.device)
        if out is None:
            target, opened = source, parts.reopen_images(source)
        else:
            opened = {"all": _images(source, vqvae, data, ranks, reading)}
            target = Run.shared(out, ranks, create=True)
        for part, images in opened.items():
            step.encode(source, target, vqvae, part, images, ranks)
            _say(ranks, f"{counted(len(images), 'image')} encoded in {target.folder / 'codes' / part}")


def train_prior(
    run: str,
    prior: str,
    no_labels: bool,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    device: str,
    **overrides: Any,
) -> None:
    from vqfast.pipeline import parts
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model
    from vqfast.pipeline.codes import stored
    from vqfast.pipeline.ranks import joined

    with joined(device) as ranks:
        target = Run.shared(run, ranks)
        vqvae = load_model(target.folder, "vqvae")
        codes = stored(target, f"codes/{parts.HELD_OUT}")
        classes = None
        if not no_labels and codes.read(range(1))[1] is not None:
            classes = parts.reopen_images(target)[parts.TRAIN].num_classes
        fit = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
        trained = step.train_prior(
            target, vqvae.vq.num_embeddings, classes, ranks, prior, _given(overrides), fit
        )
        bits = step.bits_per_code(trained, codes, ranks).mean()
        _say(
            ranks, f"trained {target.folder / 'prior.safetensors'}; {bits:.3f} bits a code on held-out images"
        )


def sample(
    run: str,
    out: str,
    num: int | None,
    label: int | None,
    shape: list[int] | None,
    complete: str | None,
    keep: str | None,
    draws: int | None,
    format: str,
    device: str,
    **options: Any,
) -> None:
    from vqfast.data.disk import counted
    from vqfast.files import write_file
    from vqfast.pipeline import parts
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model
    from vqfast.pipeline.codes import stored
    from vqfast.pipeline.completion import Completion
    from vqfast.pipeline.formats import check_format
    from vqfast.pipeline.ranks import joined

    if num is not None and not 1 <= num < 2**63:
        raise ValueError(f"num is {num}; want 1 or more, below 2^63")
    check_format(format, "codes")
    if complete is None and (keep is not None or draws is not None):
        raise ValueError("--keep and --draws go with --complete")
    if complete is not None and shape is not None:
        raise ValueError("--shape and --complete exclude each other: the codes' shape is the images'")
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", ranks.device)
        prior = load_model(source.folder, "prior", ranks.device)
        if complete is None:
            height, width = shape or stored(source, f"codes/{parts.HELD_OUT}").read(range(1))[0].shape[1:]
            labels = step.labels_of(prior, label)
            wanted = step.Wanted(num or 100, (height, width), {"label": label}, labels)
        else:
            others = None if complete == parts.HELD_OUT else complete
            reading: dict[str, Any] = {
                "skip_bad": {}
            }  # none: an error then names no option, there being none
            images = _images(source, vqvae, others, ranks, reading)
            completion = Completion(vqvae, images, keep or "top-half", 8 if draws is None else draws, ranks)
            wanted = completion.wanted(prior, num, label)
        target = Run.shared(out, ranks, create=True)
        samples = step.sample(source, target, prior, wanted, ranks, **options)
        said = [f"{counted(samples.num, 'sample')} in {target.folder / 'samples'}"]
        if format != "codes":
            step.decode(source, target, vqvae, samples, format, ranks)
            said.append(f"images in {target.folder / format}")
        if complete is not None and ranks.first:
            picture = target.folder / "completions.png"
            if not picture.is_file():
                write_file(picture, completion.sheet(samples))
            said.append(f"some beside their originals in {picture}")
        _say(ranks, "; ".join(said))


def decode(run: str, codes: str, out: str, format: str, device: str) -> None:
    from vqfast.data.disk import counted
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model
    from vqfast.pipeline.codes import open_codes
    from vqfast.pipeline.formats import check_format
    from vqfast.pipeline.ranks import joined

    check_format(format)
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", ranks.device)
        found = open_codes(codes)
        target = Run.shared(out, ranks, create=True)
        step.decode(source, target, vqvae, found, format, ranks)
        _say(ranks, f"{counted(found.num, 'image')} in {target.folder / format}")


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
    import numpy as np

    from vqfast.data.disk import counted
    from vqfast.files import write_file
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model
    from vqfast.pipeline.codes import open_codes
    from vqfast.pipeline.ranks import joined

    _check_new(out, overwrite)
    _check_reading(data, reading)
    if codes is not None and data is not None:
        raise ValueError("--codes and --data exclude each other")
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        prior = load_model(source.folder, "prior", ranks.device)
        step.labels_of(prior, label)  # refuses a class that there isn't
        if codes is not None:
            found = open_codes(codes)
        else:
            vqvae = load_model(source.folder, "vqvae", ranks.device)
            images = _images(source, vqvae, data, ranks, reading)
            found = step.encoded(vqvae, images, ranks)
        bits = step.bits_per_code(prior, found, ranks, label)
        if ranks.first:
            buffer = io.BytesIO()
            np.save(buffer, bits.numpy())
            write_file(Path(out), buffer.getvalue())
            print(
                f"{counted(len(bits), 'grid')} of codes: {bits.mean():.3f} bits a code; each one's in {out}"
            )


def _images(run: Any, vqvae: Any, data: str | None, ranks: Any, reading: dict[str, Any]) -> Any:
    """Those that are named, read as the run's were where nothing else is said; else what the run held out."""
    from vqfast.pipeline import parts
    from vqfast.pipeline.progress import say

    if data is None:
        return parts.reopen_images(run)[parts.HELD_OUT]
    images = parts.like_the_runs(run, vqvae, data, **_given(reading))
    say(ranks, "data", images.told())
    return images


def _check_reading(data: str | None, reading: dict[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in reading.items() if value]
    if data is None and given:
        raise ValueError(f"{', '.join(given)} without --data: the run's own images are read as for training")


def _check_new(out: str, overwrite: bool) -> None:
    if Path(out).exists() and not overwrite:
        raise ValueError(f"{out} exists; say --overwrite or choose another name")


def reconstruct(
    run: str,
    data: str | None,
    out: str,
    num: int,
    overwrite: bool,
    device: str,
    **reading: Any,
) -> None:
    import torch

    from vqfast.data.disk import counted
    from vqfast.files import write_file
    from vqfast.pipeline import images as pictures
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model
    from vqfast.pipeline.ranks import joined

    if num < 1:
        raise ValueError(f"num is {num}; want 1 or more")
    _check_new(out, overwrite)
    _check_reading(data, reading)
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", ranks.device)
        images = _images(source, vqvae, data, ranks, reading)
        figures = step.reconstruct(vqvae, images, ranks)
        if ranks.first:
            shown = range(min(num, len(images)))
            outputs = torch.cat(list(step.decoded(vqvae, step.encoded(vqvae, images, ranks), shown, ranks)))
            write_file(Path(out), pictures.pairs(images.batch(shown), outputs, min(12, len(shown))))
            found = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
            print(f"{counted(len(images), 'image')}: {found}; {len(shown)} of them in {out}")


def info() -> None:
    import platform

    import torch

    import vqfast
    from vqfast.ops import registry

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"vqfast {vqfast.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"CPU: {platform.machine()}, {torch.get_num_threads()} threads, {capability}")
    print(f"GPU: {', '.join(gpus) or 'none'}")
    print(f"VQFAST_BACKEND: {registry.forced_backend() or 'not set, the first that can'}")
    for device in ("cpu", "cuda") if gpus else ("cpu",):
        probe = torch.empty(0, device=device)
        for op in registry.TABLE:
            for backend in registry.BACKENDS:
                refused = registry.refusal(op, backend, probe)
                record = "" if refused else registry.record_of(op, backend, probe.device)
                print(f"{device:5} {op:12} {backend:10} {refused or 'runs'}{record and f' ({record})'}")
