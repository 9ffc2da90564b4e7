"""The command line: ``vqfast demo | train | encode | train-prior | sample | reconstruct | info``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

EXTRAS = {"safetensors", "PIL", "tqdm", "matplotlib", "sklearn"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")
    with _interrupts() as interrupts:
        try:
            command(**arguments)
            sys.stdout.flush()  # a pipe that nobody reads any more shows here
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
            return 1
        except BaseException as error:
            if interrupts or isinstance(error, KeyboardInterrupt):
                sys.unraisablehook = lambda unraisable: None  # what is half made complains as it goes
                line, status = "interrupted; the same command goes on from here", 130
            else:
                line, status = f"error: {_explained(error)}", 2
            sys.stderr.write(f"vqfast: {line}\n")  # at once: print's two writes mix with another process's
            return status
    return 0


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Notes every Ctrl-C: an import or native code that is interrupted may raise an error of its own."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> NoReturn:
        seen.append(number)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored, as by nohup
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _explained(error: BaseException) -> str:
    """One line about an error that the user can mend; any other goes on its way."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is missing: pip install 'vqfast[demo]'"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        return "out of memory: ask for smaller sizes or batches"
    from vqfast.ops.registry import NoBackendError

    if isinstance(error, (ValueError, TypeError, OverflowError, OSError, NoBackendError)):
        return " ".join(str(error).split())
    raise error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vqfast", description="VQ-VAEs and their PixelCNN priors, from images to new images."
    )
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    def add(name: str, function, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        return sub

    def device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", default="auto", help="auto, cpu or cuda")

    def data(sub: argparse.ArgumentParser, default: str | None, help: str) -> None:
        formats = "digits, a folder of images, .npy, .npz or an IDX file"
        sub.add_argument("--data", default=default, help=f"{formats} ({help})")
        sub.add_argument("--labels", help="a .npy or IDX file of labels")
        sub.add_argument("--size", type=int, help="resize and crop to SIZE x SIZE")
        sub.add_argument("--channels", type=int, help="1 (grey) or 3 (RGB)")

    def fit(sub: argparse.ArgumentParser, steps: int, batch_size: int, lr: float) -> None:
        sub.add_argument("--steps", type=int, default=steps, help=f"default {steps}")
        sub.add_argument("--batch-size", type=int, default=batch_size, help=f"default {batch_size}")
        sub.add_argument("--lr", type=float, default=lr, help=f"Adam's, decaying to 0; default {lr}")
        sub.add_argument("--seed", type=int, default=0)

    sub = add("demo", _demo, "learn real handwritten digits and make new ones, in minutes on a CPU")
    sub.add_argument("--out", required=True, metavar="RUN", help="the run's folder")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--steps-scale", type=float, default=1.0, help="below 1 for a quick look")
    device(sub)

    sub = add("train", _train, "train a VQ-VAE on images")
    sub.add_argument("--out", required=True, metavar="RUN", help="the run's folder")
    data(sub, "digits", "default digits")
    sub.add_argument("--holdout", type=float, default=0.1, help="share of the images kept out of training")
    sub.add_argument("--model", default="paper", help="paper (default), keras or ruseckas")
    for name, kind in (
        ("hidden-channels", int),
        ("num-downsamplings", int),
        ("num-residual-blocks", int),
        ("num-embeddings", int),
        ("embedding-dim", int),
        ("beta", float),
        ("decay", float),
    ):
        sub.add_argument(f"--{name}", type=kind, help="overrides the model's")
    sub.add_argument("--codebook", default="kmeans", help="how it starts: kmeans (default) or uniform")
    fit(sub, 10_000, 128, 2e-4)
    device(sub)

    sub = add("encode", _encode, "turn images into grids of codes")
    sub.add_argument("--run", required=True, help="a trained run's folder")
    data(sub, None, "default: what the run was trained on")
    sub.add_argument("--out", help="a folder for the codes of --data")
    device(sub)

    sub = add("train-prior", _train_prior, "train a PixelCNN prior on a run's codes")
    sub.add_argument("--run", required=True, help="the folder of a run whose codes are encoded")
    sub.add_argument("--prior", default="gated", help="gated (default) or residual")
    for name in ("channels", "num-layers", "num-residual-blocks", "head-channels"):
        sub.add_argument(f"--{name}", type=int, help="overrides the prior's")
    sub.add_argument("--no-labels", action="store_true", help="ignore the labels")
    fit(sub, 10_000, 64, 3e-4)
    device(sub)

    sub = add("sample", _sample, "draw new codes from the prior and decode them")
    sub.add_argument("--run", required=True, help="the folder of a run with a prior")
    sub.add_argument("--out", required=True, help="a folder for the samples: shards .npz and a picture")
    sub.add_argument("--num", type=int, default=100)
    sub.add_argument("--label", type=int, help="of all samples; by default the classes take turns")
    sub.add_argument(
        "--shape", type=int, nargs=2, metavar=("H", "W"), help="of the codes; default as trained"
    )
    sub.add_argument("--temperature", type=float, default=1.0)
    sub.add_argument("--top-k", type=int)
    sub.add_argument("--top-p", type=float)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--method", default="auto", help="auto, naive, cached or an executor")
    sub.add_argument("--batch-size", type=int, default=256)
    device(sub)

    sub = add("reconstruct", _reconstruct, "encode and decode images; a picture and the error")
    sub.add_argument("--run", required=True, help="a trained run's folder")
    data(sub, None, "default: what the run held out")
    sub.add_argument("--out", required=True, help="the picture, a .png")
    sub.add_argument("--num", type=int, default=24, help="images in the picture")
    sub.add_argument("--overwrite", action="store_true")
    device(sub)

    add("info", _info, "what runs here, and what doesn't, and why")
    return parser


def _demo(out: str, seed: int, steps_scale: float, device: str) -> None:
    from vqfast.pipeline.demo import demo, summary
    from vqfast.pipeline.ranks import joined

    if not 0 < steps_scale <= 1:
        raise ValueError(f"steps-scale is {steps_scale}; want a number above 0, up to 1")
    with joined(device) as ranks:
        demo(out, ranks, seed, steps_scale)
        if ranks.first:
            print(summary(out))


def _train(
    out: str,
    data: str,
    labels: str | None,
    size: int | None,
    channels: int | None,
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
        note = {"source": where[0], "labels": where[1], "size": size, "channels": channels}
        note |= {"holdout": holdout, "seed": seed}
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


def _encode(
    run: str,
    data: str | None,
    labels: str | None,
    size: int | None,
    channels: int | None,
    out: str | None,
    device: str,
) -> None:
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model
    from vqfast.pipeline.data import load_images
    from vqfast.pipeline.ranks import joined

    if (data is None) != (out is None):
        raise ValueError(
            "--data and --out go together: other images than the run's go to a folder of their own"
        )
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=out is None)
        vqvae = load_model(source.folder, "vqvae", ranks.device)
        if out is None:
            target, parts = source, step.reopen_images(source)
        else:
            parts = {"all": load_images(data, labels, size, channels)}
            target = Run.shared(out, ranks, create=True)
        for part, images in parts.items():
            step.encode(source, target, vqvae, part, images, ranks)
            _say(ranks, f"{len(images)} images encoded in {target.folder / 'codes' / part}")


def _train_prior(
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
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model
    from vqfast.pipeline.ranks import joined

    with joined(device) as ranks:
        target = Run.shared(run, ranks)
        vqvae = load_model(target.folder, "vqvae")
        codes, labels = step.read_codes(target, step.HELD_OUT)
        classes = None if labels is None or no_labels else step.reopen_images(target)[step.TRAIN].num_classes
        fit = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
        trained = step.train_prior(
            target, vqvae.vq.num_embeddings, classes, ranks, prior, _given(overrides), fit
        )
        bits = step.bits_per_code(trained, codes, None if classes is None else labels, ranks)
        _say(
            ranks, f"trained {target.folder / 'prior.safetensors'}; {bits:.3f} bits a code on held-out images"
        )


def _sample(
    run: str,
    out: str,
    num: int,
    label: int | None,
    shape: list[int] | None,
    device: str,
    **options: Any,
) -> None:
    import torch

    from vqfast.pipeline import images as pictures
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model, write_file
    from vqfast.pipeline.ranks import joined

    if num < 1:
        raise ValueError(f"num is {num}; want 1 or more")
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", ranks.device)
        prior = load_model(source.folder, "prior", ranks.device)
        if shape is None:
            shape = list(step.read_codes(source, step.HELD_OUT)[0].shape[1:])
        labels = None
        if label is not None:
            if not 0 <= label < (prior.num_classes or 0):
                raise ValueError(f"label is {label}; the prior has {prior.num_classes or 'no'} classes")
            labels = torch.full((num,), label)
        elif prior.num_classes:
            labels = torch.arange(num) % prior.num_classes
        prior.check_conditioning(num, tuple(shape), labels, None)
        target = Run.shared(out, ranks, create=True)
        step.sample(source, target, vqvae, prior, num, tuple(shape), labels, ranks, **options)
        if ranks.first:
            first = torch.from_numpy(step.read_samples(target, 100)["images"]).float() / 255
            write_file(target.folder / "samples.png", pictures.grid(first, 10))
            print(
                f"{num} samples in {target.folder / 'samples'}; the first in {target.folder / 'samples.png'}"
            )


def _reconstruct(
    run: str,
    data: str | None,
    labels: str | None,
    size: int | None,
    channels: int | None,
    out: str,
    num: int,
    overwrite: bool,
    device: str,
) -> None:
    from vqfast.pipeline import images as pictures
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model, write_file
    from vqfast.pipeline.data import load_images
    from vqfast.pipeline.ranks import joined

    if num < 1:
        raise ValueError(f"num is {num}; want 1 or more")
    if Path(out).exists() and not overwrite:
        raise ValueError(f"{out} exists; say --overwrite or choose another name")
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", ranks.device)
        images = (
            step.reopen_images(source)[step.HELD_OUT]
            if data is None
            else load_images(data, labels, size, channels)
        )
        outputs, _, figures = step.reconstruct(vqvae, images, ranks)
        if ranks.first:
            shown = min(num, len(images))
            columns = min(12, shown)
            write_file(Path(out), pictures.pairs(images.batch(range(shown)), outputs[:shown], columns))
            found = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
            print(f"{len(images)} images: {found}; {shown} of them in {out}")


def _info() -> None:
    import platform

    import torch

    import vqfast
    from vqfast.ops import registry
    from vqfast.prior.sampler import EXECUTORS

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
                standing = "" if refused else registry.standing(op, backend, probe.device)
                print(f"{device:5} {op:12} {backend:10} {refused or 'runs'}{standing and f' ({standing})'}")
    print(f"samplers: {', '.join(EXECUTORS)}")


if __name__ == "__main__":
    sys.exit(main())
