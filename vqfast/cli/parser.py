"""The parser: the commands, and all their options."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import vqfast
from vqfast import pipeline
from vqfast.cli import commands, pages, speech, video
from vqfast.cli.kinds import AUDIO, VIDEO, share_or_path, speech_options, temperature_option, video_options
from vqfast.cli.recipes import RECIPES
from vqfast.cli.written import words_before
from vqfast.pipeline.pages import PAGE
from vqfast.pipeline.pictures import decoded_at_random

DESCRIPTION = """\
Learns to draw new images like yours: a VQ-VAE turns images into small grids of codes and back, and a PixelCNN
prior learns to draw new grids.

  vqfast demo --out runs/digits                              all of it on handwritten digits, in minutes

  vqfast train --data photos/ --size 128 --out runs/photos   1. train the VQ-VAE
  vqfast encode --run runs/photos                            2. turn the images into codes
  vqfast train-prior --run runs/photos                       3. train the prior on the codes
  vqfast sample --run runs/photos --out runs/new             4. draw new codes, and decode them
"""
EPILOG = """\
A command that was interrupted goes on where it was when it is given again; one that is done says so at once.
Several processes share the work: torchrun --nproc-per-node N -m -- vqfast COMMAND ...
"""
DATA = "a folder of images, an image, a .npy, .npz or IDX (MNIST) file, CIFAR-10's cifar-10-batches-bin, or "
DATA += "digits, scikit-learn's"
CODES = "a folder that encode or sample wrote, such as OUT/samples, one of its files, or a .npy of integers"


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        # words_before reads --config and --recipe, which it knows in full only
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words, known = list(sys.argv[1:] if args is None else args), self._option_string_actions
        if "--config" in known:  # its words stand before those of the command line, which win
            try:
                words = [*words_before(self.prog.rpartition(" ")[2], words, known), *words]
            except (OSError, TypeError, ValueError) as error:
                self.error(" ".join(str(error).split()))
        return super().parse_known_args(words, namespace)

    def option(self, name: str, help: str, like: Callable[..., Any] | None = None, **how: Any) -> None:
        """Adds an option; one that is ``like`` a function's argument has its default."""
        if like is not None:
            default = inspect.signature(like).parameters[name[2:].replace("-", "_")].default
            how["default"] = default
            help += f" (default {default})"
        self.add_argument(name, help=help, **how)


def make_parser() -> argparse.ArgumentParser:
    """The parser; among the arguments that it gives, ``command`` is the function that takes the others."""
    parser = _Parser(
        prog="vqfast",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vqfast {vqfast.__version__}")
    parsers = parser.add_subparsers(title="commands", required=True, metavar="command", parser_class=_Parser)

    def add(name: str, command: Callable[..., None]) -> _Parser:
        told = inspect.getdoc(command) or ""
        sub: _Parser = parsers.add_parser(name, help=f"{told[:1].lower()}{told[1:-1]}", description=told)
        sub.set_defaults(command=command)
        return sub

    sub = add("demo", commands.demo)
    _run(sub, "--out", "folder of the new run")
    sub.option("--seed", "number that fixes all that is random (default 0)", type=int, default=0, metavar="N")
    scale = "share of the full training to do, above 0 and up to 1; less for a quick look (default 1)"
    sub.option("--steps-scale", scale, type=float, default=1.0, metavar="X")
    _device(sub)

    sub = add("train", commands.train)
    _run(sub, "--out", "folder of the new run")
    sub.option("--data", f"{DATA} (default digits)", default="digits", metavar="PATH")
    _reading(sub, "as found")
    flip = "mirror half of the images in training"
    sub.option("--flip", flip, action=argparse.BooleanOptionalAction, default=False)
    like: Callable[..., Any] = pipeline.train_vqvae
    val = "share of the images that is kept out of training; or a PATH of others to measure on, as --data"
    sub.option("--val", val, like, type=share_or_path, metavar="X")
    group = "regular expression, such as '(.*)_crop': images whose names agree in its parentheses, here the "
    group += "crops of a photo, are held out together or not at all (default: each by itself)"
    sub.option("--group", group, metavar="REGEX")
    model = "configuration: paper, keras or ruseckas; of several levels vqvae2 or ruseckas-hierarchical"
    sub.option("--model", model, like)
    _model(sub)
    _written(sub, "train")
    _training(sub, pipeline.Training)
    _device(sub)

    sub = add("train-second-stage", commands.train_second_stage)
    _run(sub, "--run", "folder of a trained run")
    _run(sub, "--out", "folder of the new run")
    sub.option("--model", "configuration: paper, keras or ruseckas", pipeline.train_second_stage)
    _model(sub)
    _written(sub, "train-second-stage")
    _training(sub, pipeline.Training)
    _device(sub)

    sub = add("train-speech", speech.train_speech)
    speech_options(sub)
    _written(sub, "train-speech")
    _training(sub, pipeline.Training)
    _device(sub)

    sub = add("train-video", video.train_video)
    video_options(sub)
    _model(sub)
    _written(sub, "train-video")
    _training(sub, pipeline.VideoTraining)
    _device(sub)

    sub = add("encode", commands.encode)
    _run(sub, "--run", "folder of a trained run")
    sub.option("--data", f"{DATA} (default: the run's own images)", metavar="PATH")
    _reading(sub, "the run's")
    sub.option("--out", "folder for the codes of --data", metavar="FOLDER")
    sub.option("--format", "of the files of codes: npz (the default of a new folder) or safetensors")
    _device(sub)

    sub = add("train-prior", commands.train_prior)
    _run(sub, "--run", "folder of a run whose images are encoded")
    like = pipeline.train_priors
    prior = "kind of network: gated (the default), residual or snail; of recordings' codes wavenet, "
    prior += "of clips' codes clips"
    sub.option("--prior", prior)
    for name, help in (
        ("--channels", "channels of the hidden layers"),
        ("--num-layers", "masked layers"),
        ("--num-residual-blocks", "residual blocks, of the residual prior only"),
        ("--num-blocks", "blocks of layers, of the snail prior only"),
        ("--num-heads", "heads of each attention, 0 for none, of the snail prior only"),
        ("--head-channels", "channels of the layer before the logits"),
        ("--context-channels", "channels of the network of earlier frames, of the clips prior only"),
        ("--context-blocks", "its residual blocks, each of which sees one code farther around"),
        ("--context-frames", "frames that each of these blocks reads"),
        (
            "--context-kernel-size",
            "codes along a side of the kernels by which an action moves the last frame",
        ),
    ):
        sub.option(name, f"{help} (default: the network's)", type=int, metavar="N")
    dropout = "share of a gated or snail prior's hidden values that training sets to zero (default 0)"
    sub.option("--dropout", dropout, type=float, metavar="X")
    level = "train the prior of this level alone, 0 for the coarsest (default: of all levels)"
    sub.option("--level", level, type=int, metavar="N")
    channels = "of a finer level: channels of the network that the codes of the coarser levels go through"
    sub.option("--condition-channels", channels, like, type=int, metavar="N")
    blocks = "its residual blocks for each coarser level"
    sub.option("--condition-blocks", blocks, like, type=int, metavar="N")
    sub.option("--no-labels", "train without the labels that the images have", action="store_true")
    sub.option("--no-actions", "train without the actions that the clips have", action="store_true")
    _written(sub, "train-prior")
    _training(sub, pipeline.PriorTraining)
    _device(sub)

    sub = add("train-classifier", commands.train_classifier)
    _run(sub, "--run", "folder of a trained run whose images have labels")
    _written(sub, "train-classifier")
    _training(sub, pipeline.Training)
    _device(sub)

    sub = add("sample", commands.sample)
    _run(sub, "--run", "folder of a run with a trained prior")
    _run(sub, "--out", "folder for the samples")
    number = "how many samples to draw (default 100; with --complete, every completion)"
    sub.option("--num", number, type=int, metavar="N")
    sub.option("--label", "class of all samples (default: the classes take turns)", type=int, metavar="N")
    shape = "sizes of the coarsest grids, in codes: height and width, or length (default: as trained)"
    sub.option("--shape", shape, type=int, nargs="+", metavar="N")
    sub.option(
        "--complete",
        f"images to complete: {DATA}; or held-out, the run's own. A part of their codes is kept and the rest "
        "is drawn; completions.png shows some of them",
        metavar="PATH",
    )
    sub.option(
        "--keep",
        "the part to keep: a side and a share, such as left-half or bottom-0.3; or an image, bright where "
        "codes are kept (default top-half). Codes are drawn from the top left, line by line, and know "
        "only those drawn before them",
    )
    given = "of clips: go on from the first N frames of each (default: draw all frames)"
    sub.option("--given", given, type=int, metavar="N")
    sub.option("--data", f"{VIDEO} to go on from (default: those that the run holds out)", metavar="PATH")
    frames = "of clips: frames of a sample, given ones among them (default: as trained)"
    sub.option("--frames", frames, type=int, metavar="N")
    acting = (
        "of clips: a number, the action that leads to each frame; or a .npy or .csv with the action of each "
    )
    acting += "frame of a sample (default: those of the given clips, else of held-out ones in turn)"
    sub.option("--actions", acting, metavar="N|FILE")
    sub.option("--draws", "completions of each image (default 8), or of each clip (1)", type=int, metavar="N")
    reject = "draw a sample anew unless the run's classifier gives its class at least this probability; "
    reject += "train-classifier trains it (default: keep all)"
    sub.option("--reject", reject, type=float, metavar="X")
    like = pipeline.sample
    temperature_option(sub, like, "codes")
    top_k = "draw from the N likeliest codes only (default: from all)"
    sub.option("--top-k", top_k, type=int, metavar="N")
    top_p = "draw from the likeliest codes only, as few as have this probability together (default: from all)"
    sub.option("--top-p", top_p, type=float, metavar="X")
    sub.option("--seed", "number that fixes the samples", like, type=int, metavar="N")
    precision = "bfloat16 rounds the factors of products: faster on CPUs, with other samples (default: exact)"
    sub.option("--precision", precision)
    method = "backend: auto, native, triton, torch or reference; all give the same samples"
    sub.option("--method", method, like)
    batch = "samples drawn at a time; halved as often as the memory asks for"
    sub.option("--batch-size", batch, like, type=int, metavar="N")
    _format(sub, "; or codes, for the codes alone")
    _device(sub)

    sub = add("decode", commands.decode)
    _run(sub, "--run", "folder of a trained run")
    sub.option("--codes", CODES, required=True, metavar="PATH")
    _run(sub, "--out", "folder for the images")
    _format(sub, "")
    temperature_option(sub, pipeline.decode, "samples of recordings")
    _device(sub)

    sub = add("convert", speech.convert)
    _run(sub, "--run", "folder of a run that train-speech made")
    sub.option("--data", f"{AUDIO} (default: those that the run holds out)", metavar="PATH")
    sub.option("--speaker", "name of a speaker of the run: of a folder of its recordings", required=True)
    _run(sub, "--out", "folder for the recordings; they keep their names, in wav/")
    sub.option("--skip-bad", "leave out recordings that can't be read", action="store_true")
    temperature_option(sub, pipeline.convert, "samples")
    _device(sub)

    sub = add("codes", speech.codes)
    _run(sub, "--run", "folder of a run that train-speech made")
    phones = "folder of phone labels: Praat's TextGrid, HTK's or xwaves' files, named as the recordings"
    sub.option("--phones", phones, required=True, metavar="FOLDER")
    sub.option("--tier", "name of the tier of TextGrids (default: phones or alike, or the last)")
    sub.option("--data", f"{AUDIO} (default: those that the run holds out)", metavar="PATH")
    sub.option("--skip-bad", "leave out recordings that can't be read", action="store_true")
    sub.option("--out", "a .csv for how often each code stands at each phone", required=True, metavar="FILE")
    sub.option("--overwrite", "replace --out if it is there", action="store_true")
    _device(sub)

    sub = add("likelihood", commands.likelihood)
    _run(sub, "--run", "folder of a run with a trained prior")
    sub.option("--codes", f"{CODES}, in place of images", metavar="PATH")
    sub.option("--data", f"{DATA} (default: the images that the run holds out)", metavar="PATH")
    _reading(sub, "the run's")
    sub.option("--label", "class of all grids (default: their own)", type=int, metavar="N")
    sub.option("--out", "a .npy for the bits per code of each grid", required=True, metavar="FILE")
    sub.option("--overwrite", "replace --out if it is there", action="store_true")
    _device(sub)

    sub = add("reconstruct", commands.reconstruct)
    _run(sub, "--run", "folder of a trained run")
    sub.option("--data", f"{DATA} (default: the images that the run holds out)", metavar="PATH")
    _reading(sub, "the run's")
    pairs = "a .png for the picture; or of recordings a .wav, in which each stands before what became of it"
    sub.option("--out", pairs, required=True, metavar="FILE")
    sub.option("--num", "images in the picture (default 24)", type=int, default=24, metavar="N")
    sub.option("--levels", "decode N levels alone, the coarsest first (default: all)", type=int, metavar="N")
    sub.option("--overwrite", "replace --out if it is there", action="store_true")
    _device(sub)

    sub = add("report", pages.make_report)
    folders = "folder of a run; several are compared"
    sub.option("--run", folders, nargs="+", required=True, metavar="FOLDER")
    page = f"an .html file for the page (default: {PAGE} in the folder of the one run)"
    sub.option("--out", page, metavar="FILE")
    sub.option("--overwrite", "replace --out if it is there", action="store_true")
    _device(sub)

    sub = add("picture", pages.picture)
    _run(sub, "--run", "folder of a trained run")
    of = "codebook (each code vector decoded as a grid of it alone) or random-codes (grids of random codes)"
    sub.option("--of", of, required=True)
    number = "how many code vectors of each level, or grids (default: all code vectors, 64 grids)"
    sub.option("--num", number, type=int, metavar="N")
    sub.option("--seed", "number that fixes the random codes", decoded_at_random, type=int, metavar="N")
    sub.option("--out", "a .png for the picture", required=True, metavar="FILE")
    sub.option("--overwrite", "replace --out if it is there", action="store_true")
    _device(sub)

    add("info", commands.info)
    return parser


def _run(sub: _Parser, name: str, help: str) -> None:
    sub.option(name, help, required=True, metavar="FOLDER")


def _model(sub: _Parser) -> None:
    for name, kind, help in (
        ("--hidden-channels", int, "channels inside the encoder and the decoder"),
        ("--num-downsamplings", int, "how often the encoder halves height and width"),
        ("--num-residual-blocks", int, "residual blocks in the encoder and in the decoder"),
        ("--num-embeddings", int, "code vectors in the codebook"),
        ("--embedding-dim", int, "numbers in a code vector"),
        (
            "--num-mixtures",
            int,
            "logistic distributions for the likelihood of each value; 0 for squared error",
        ),
        ("--level-dropout", float, "of several levels: share of images in a step without some finer levels"),
        ("--beta", float, "weight of the commitment loss"),
        ("--decay", float, "decay of the codebook's moving averages, below 1; without it gradients train it"),
        ("--revive-below", float, "vectors a batch, on average, below which a code is replaced; 0 for none"),
    ):
        sub.option(name, f"{help} (default: the model's)", type=kind, metavar="X" if kind is float else "N")
    start = "start the codebook by k-means on the first batch (default: the model's)"
    sub.option("--kmeans-init", start, action=argparse.BooleanOptionalAction)


def _device(sub: _Parser) -> None:
    sub.option("--device", "auto (a GPU if there is one), cpu or cuda", like=pipeline.joined)


def _format(sub: _Parser, others: str) -> None:
    kinds = "of images grid (sheets, the default), png (single pictures) or npy (arrays, uint8 N, C, H, W); "
    kinds += "of recordings wav (the default) or npy (float32 N, 1, T); of clips mp4 (the default), gif "
    kinds += "or npy (uint8 N, T, H, W, C)"
    sub.option("--format", f"files: {kinds}{others}")


def _written(sub: _Parser, command: str) -> None:
    """Options that stand for others."""
    if command in RECIPES:
        recipe = f"training as published: {', '.join(RECIPES[command])}; other options replace its own"
        sub.option("--recipe", recipe, metavar="NAME")
    config = "TOML file with any of these options, such as lr = 0.001; options given here replace its own. "
    sub.option("--config", f"{config}Each run has its own, {command}.toml", metavar="FILE")


def _training(sub: _Parser, kind: type[pipeline.Training]) -> None:
    """The fields of ``Training``; one that isn't given is not among the arguments."""

    def option(name: str, help: str, **how: Any) -> None:
        default = inspect.signature(kind).parameters[name[2:].replace("-", "_")].default
        help += "" if default is None or default is False else f" (default {default})"
        sub.option(name, help, default=argparse.SUPPRESS, **how)

    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    number: dict[str, Any] = {"type": float, "metavar": "X"}
    steps = "steps of the whole training; more than before make a run go on (default 10000)"
    option("--steps", steps, **whole)
    option("--epochs", "how often each item is seen, in place of --steps", **number)
    option("--batch-size", "items in a step, over all processes", **whole)
    option("--lr", "highest learning rate", **number)
    option("--schedule", "how it decays: cosine or linear to 0, constant, or onecycle, as torch's OneCycleLR")
    option("--warmup", "steps in which it rises", **whole)
    option("--optimizer", "adam or adamw")
    option("--weight-decay", "of all weights", **number)
    option("--clip", "scale gradients down to this norm (default: as they are)", **number)
    ema = "measure and save moving averages of the weights, of this decay, such as 0.999 (default: none)"
    option("--ema", ema, **number)
    precision = "floats of products: float32, or bfloat16 or float16 (GPU) for mixed precision"
    option("--precision", precision)
    option("--compile", "train the model by torch.compile", action=argparse.BooleanOptionalAction)
    option("--workers", "threads that read batches ahead", **whole)
    every = "measure the held-out part after every N steps and keep the best weights (default: the last "
    option("--val-every", every + "weights)", **whole)
    option("--patience", "end after N measurements without a better one", **whole)
    board = "folder for TensorBoard's events, where it is installed (default: none)"
    option("--tensorboard", board, metavar="FOLDER")
    option("--seed", "number that fixes the weights and the batches", **whole)


def _reading(sub: _Parser, default: str) -> None:
    """The options in ``commands.READING``."""
    labels = "a .npy or IDX file with an integer for each image (default: class folders, if there are any)"
    sub.option("--labels", labels, metavar="FILE")
    size = f"pixels along a side: resize the images and cut out squares (default: {default})"
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    sub.option("--size", size, **whole)
    crop = "pixels along a side: cut a square out of each image, of the size that it then has; training "
    crop += "takes "
    sub.option("--crop", f"{crop}random ones, all else the central one (default: {default})", **whole)
    sub.option("--channels", f"1 (grey) or 3 (RGB) (default: {default})", type=int, metavar="N")
    depth = f"bits of a channel in files wider than 8 bits (default: {default}"
    depth += ", or as many as the largest value needs)"
    sub.option("--depth", depth, type=int, metavar="N")
    sub.option("--skip-bad", "leave out image files that can't be read", action="store_true")
    if default == "the run's":
        sub.option("--frames", f"of video: frames of a clip (default: {default})", **whole)
        sub.option("--stride", f"of video: take every N-th frame (default: {default})", **whole)
