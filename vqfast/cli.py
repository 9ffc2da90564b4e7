"""The command line: ``vqfast demo | train | encode | train-prior | sample | decode | likelihood | ...``."""

from __future__ import annotations

import argparse
import io
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
    from vqfast.ops.registry import NoBackendError
    from vqfast.prior.memory import out_of_memory

    if out_of_memory(error):
        return "out of memory: ask for smaller sizes or batches"

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

    def formats(sub: argparse.ArgumentParser, others: str) -> None:
        kinds = "grid (sheets, default), png (a folder of pictures) or npy (uint8 N, C, H, W)"
        sub.add_argument("--format", default="grid", help=f"of the images: {kinds}{others}")

    codes = "a folder that encode or sample wrote, such as OUT/samples, or a .npy of codes (N, H, W)"

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

    sub = add("sample", _sample, "draw new codes from the prior, or complete images, and decode them")
    sub.add_argument("--run", required=True, help="the folder of a run with a prior")
    sub.add_argument("--out", required=True, help="a folder for the samples")
    sub.add_argument("--num", type=int, help="default 100; with --complete, all that there are to draw")
    sub.add_argument("--label", type=int, help="of all samples; by default the classes take turns")
    sub.add_argument(
        "--shape", type=int, nargs=2, metavar=("H", "W"), help="of the codes; default as trained"
    )
    sub.add_argument(
        "--complete",
        metavar="IMAGES",
        help="an image, or others as for train --data; or held-out, the run's: part of their codes is kept, "
        "the rest drawn; completions.png shows them",
    )
    sub.add_argument(
        "--keep",
        help="top-half (default), left-half, bottom-0.3 and so on, or an image, bright where codes are "
        "kept. Codes are drawn row by row, each from those in the rows above and those left of it: kept "
        "ones further on stay, but what is drawn before them doesn't know them",
    )
    sub.add_argument("--draws", type=int, help="completions of each image, default 8")
    sub.add_argument("--temperature", type=float, default=1.0)
    sub.add_argument("--top-k", type=int)
    sub.add_argument("--top-p", type=float)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--method", default="auto", help="auto, naive, cached or an executor")
    sub.add_argument("--batch-size", type=int, default=256, help="at most, as memory allows; default 256")
    formats(sub, "; or codes, for no images")
    device(sub)

    sub = add("decode", _decode, "turn codes into images")
    sub.add_argument("--run", required=True, help="a trained run's folder")
    sub.add_argument("--codes", required=True, help=codes)
    sub.add_argument("--out", required=True, help="a folder for the images")
    formats(sub, "")
    device(sub)

    sub = add("likelihood", _likelihood, "how likely codes or images are under the prior, in bits a code")
    sub.add_argument("--run", required=True, help="the folder of a run with a prior")
    sub.add_argument("--codes", help=codes)
    data(sub, None, "default, without --codes: what the run held out")
    sub.add_argument("--label", type=int, help="of all, in place of their own")
    sub.add_argument("--out", required=True, help="the bits a code of each, a .npy")
    sub.add_argument("--overwrite", action="store_true")
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
    from vqfast.pipeline.codes import stored
    from vqfast.pipeline.ranks import joined

    with joined(device) as ranks:
        target = Run.shared(run, ranks)
        vqvae = load_model(target.folder, "vqvae")
        codes = stored(target, f"codes/{step.HELD_OUT}")
        classes = None
        if not no_labels and codes.read(range(1))[1] is not None:
            classes = step.reopen_images(target)[step.TRAIN].num_classes
        fit = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
        trained = step.train_prior(
            target, vqvae.vq.num_embeddings, classes, ranks, prior, _given(overrides), fit
        )
        bits = step.bits_per_code(trained, codes, ranks).mean()
        _say(
            ranks, f"trained {target.folder / 'prior.safetensors'}; {bits:.3f} bits a code on held-out images"
        )


def _sample(
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
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model, write_file
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
            shape = shape or stored(source, f"codes/{step.HELD_OUT}").read(range(1))[0].shape[1:]
            wanted = step.Wanted(num or 100, tuple(shape), {"label": label}, step.labels_of(prior, label))
        else:
            images = step.like_the_runs(source, vqvae, complete)
            completion = Completion(vqvae, images, keep or "top-half", 8 if draws is None else draws, ranks)
            wanted = completion.wanted(prior, num, label)
        target = Run.shared(out, ranks, create=True)
        samples = step.sample(source, target, prior, wanted, ranks, **options)
        said = [f"{samples.num} samples in {target.folder / 'samples'}"]
        if format != "codes":
            step.decode(source, target, vqvae, samples, format, ranks)
            said.append(f"images in {target.folder / format}")
        if complete is not None and ranks.first:
            picture = target.folder / "completions.png"
            if not picture.is_file():
                write_file(picture, completion.sheet(samples))
            said.append(f"some beside their originals in {picture}")
        _say(ranks, "; ".join(said))


def _decode(run: str, codes: str, out: str, format: str, device: str) -> None:
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
        _say(ranks, f"{found.num} images in {target.folder / format}")


def _likelihood(
    run: str,
    codes: str | None,
    data: str | None,
    labels: str | None,
    size: int | None,
    channels: int | None,
    label: int | None,
    out: str,
    overwrite: bool,
    device: str,
) -> None:
    import numpy as np

    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model, write_file
    from vqfast.pipeline.codes import open_codes
    from vqfast.pipeline.data import load_images
    from vqfast.pipeline.ranks import joined

    _check_new(out, overwrite)
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
            images = (
                step.reopen_images(source)[step.HELD_OUT]
                if data is None
                else load_images(data, labels, size, channels)
            )
            found = step.encoded(vqvae, images, ranks)
        bits = step.bits_per_code(prior, found, ranks, label)
        if ranks.first:
            buffer = io.BytesIO()
            np.save(buffer, bits.numpy())
            write_file(Path(out), buffer.getvalue())
            print(f"{len(bits)} grids of codes: {bits.mean():.3f} bits a code; each one's in {out}")


def _check_new(out: str, overwrite: bool) -> None:
    if Path(out).exists() and not overwrite:
        raise ValueError(f"{out} exists; say --overwrite or choose another name")


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
    import torch

    from vqfast.pipeline import images as pictures
    from vqfast.pipeline import steps as step
    from vqfast.pipeline.checkpoint import Run, load_model, write_file
    from vqfast.pipeline.data import load_images
    from vqfast.pipeline.ranks import joined

    if num < 1:
        raise ValueError(f"num is {num}; want 1 or more")
    _check_new(out, overwrite)
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", ranks.device)
        images = (
            step.reopen_images(source)[step.HELD_OUT]
            if data is None
            else load_images(data, labels, size, channels)
        )
        figures = step.reconstruct(vqvae, images, ranks)
        if ranks.first:
            shown = range(min(num, len(images)))
            outputs = torch.cat(list(step.decoded(vqvae, step.encoded(vqvae, images, ranks), shown, ranks)))
            write_file(Path(out), pictures.pairs(images.batch(shown), outputs, min(12, len(shown))))
            found = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
            print(f"{len(images)} images: {found}; {len(shown)} of them in {out}")


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
