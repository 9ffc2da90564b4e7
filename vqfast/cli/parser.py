"""What the command line takes."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vqfast.cli import commands


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser; among the arguments that it gives, ``command`` is the function that takes the others."""
    parser = _Parser(
        prog="vqfast", description="VQ-VAEs and their PixelCNN priors, from images to new images."
    )
    subparsers = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    def add(name: str, function, help: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        return sub

    def device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", default="auto", help="auto, cpu or cuda")

    def data(sub: argparse.ArgumentParser, default: str | None, help: str) -> None:
        formats = "digits, a folder of images, .npy, .npz or an IDX file"
        sub.add_argument("--data", default=default, help=f"{formats} ({help})")
        sub.add_argument("--labels", help="a .npy or IDX file of labels")
        sub.add_argument(
            "--size", type=int, help="resize and crop to SIZE x SIZE; default: the run's, if any"
        )
        sub.add_argument("--channels", type=int, help="1 (grey) or 3 (RGB); default: the run's, if any")
        sub.add_argument(
            "--depth",
            type=int,
            help="bits of a channel in files and arrays of wider integers; default: the run's, or as many "
            "as the largest value takes",
        )
        sub.add_argument("--skip-bad", action="store_true", help="leave out image files that can't be read")

    def formats(sub: argparse.ArgumentParser, others: str) -> None:
        kinds = "grid (sheets, default), png (a folder of pictures) or npy (uint8 N, C, H, W)"
        sub.add_argument("--format", default="grid", help=f"of the images: {kinds}{others}")

    codes = "a folder that encode or sample wrote, such as OUT/samples, or a .npy of codes (N, H, W)"

    def fit(sub: argparse.ArgumentParser, steps: int, batch_size: int, lr: float) -> None:
        sub.add_argument("--steps", type=int, default=steps, help=f"default {steps}")
        sub.add_argument("--batch-size", type=int, default=batch_size, help=f"default {batch_size}")
        sub.add_argument("--lr", type=float, default=lr, help=f"Adam's, decaying to 0; default {lr}")
        sub.add_argument("--seed", type=int, default=0)

    sub = add("demo", commands.demo, "learn real handwritten digits and make new ones, in minutes on a CPU")
    sub.add_argument("--out", required=True, metavar="RUN", help="the run's folder")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--steps-scale", type=float, default=1.0, help="below 1 for a quick look")
    device(sub)

    sub = add("train", commands.train, "train a VQ-VAE on images")
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

    sub = add("encode", commands.encode, "turn images into grids of codes")
    sub.add_argument("--run", required=True, help="a trained run's folder")
    data(sub, None, "default: what the run was trained on")
    sub.add_argument("--out", help="a folder for the codes of --data")
    device(sub)

    sub = add("train-prior", commands.train_prior, "train a PixelCNN prior on a run's codes")
    sub.add_argument("--run", required=True, help="the folder of a run whose codes are encoded")
    sub.add_argument("--prior", default="gated", help="gated (default) or residual")
    for name in ("channels", "num-layers", "num-residual-blocks", "head-channels"):
        sub.add_argument(f"--{name}", type=int, help="overrides the prior's")
    sub.add_argument("--no-labels", action="store_true", help="ignore the labels")
    fit(sub, 10_000, 64, 3e-4)
    device(sub)

    sub = add("sample", commands.sample, "draw new codes from the prior, or complete images, and decode them")
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
    sub.add_argument("--method", default="auto", help="auto, native, triton, torch or reference")
    sub.add_argument("--batch-size", type=int, default=256, help="at most, as memory allows; default 256")
    formats(sub, "; or codes, for no images")
    device(sub)

    sub = add("decode", commands.decode, "turn codes into images")
    sub.add_argument("--run", required=True, help="a trained run's folder")
    sub.add_argument("--codes", required=True, help=codes)
    sub.add_argument("--out", required=True, help="a folder for the images")
    formats(sub, "")
    device(sub)

    sub = add(
        "likelihood", commands.likelihood, "how likely codes or images are under the prior, in bits a code"
    )
    sub.add_argument("--run", required=True, help="the folder of a run with a prior")
    sub.add_argument("--codes", help=codes)
    data(sub, None, "default, without --codes: what the run held out")
    sub.add_argument("--label", type=int, help="of all, in place of their own")
    sub.add_argument("--out", required=True, help="the bits a code of each, a .npy")
    sub.add_argument("--overwrite", action="store_true")
    device(sub)

    sub = add("reconstruct", commands.reconstruct, "encode and decode images; a picture and the error")
    sub.add_argument("--run", required=True, help="a trained run's folder")
    data(sub, None, "default: what the run held out")
    sub.add_argument("--out", required=True, help="the picture, a .png")
    sub.add_argument("--num", type=int, default=24, help="images in the picture")
    sub.add_argument("--overwrite", action="store_true")
    device(sub)

    add("info", commands.info, "what runs here, and what doesn't, and why")
    return parser
