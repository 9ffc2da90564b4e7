"""The options of train-speech and train-video, one of all that draw, and words about these kinds of data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vqfast import pipeline
from vqfast.data import load_audio, load_video

VIDEO = "a video (mp4, webm, avi, gif), a folder of them or of folders of numbered images, or a .npy of "
VIDEO += "uint8 (N, T, H, W, C)"
AUDIO = "a recording, or a folder of recordings, whose sub-folders are the speakers"


def share_or_path(text: str) -> float | str:
    """A number, or a path as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def temperature_option(sub: Any, like: Callable[..., Any], drawn: str) -> None:
    """Adds ``--temperature`` to the parser of a command that draws these."""
    help = f"divides the logits: below 1 makes likely {drawn} likelier, 0 takes the likeliest"
    sub.option("--temperature", help, like, type=float, metavar="X")


def speech_options(sub: Any) -> None:
    """Adds the options of train-speech to a parser."""
    like: Callable[..., Any] = pipeline.train_speech
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    sub.option("--out", "folder of the new run", required=True, metavar="FOLDER")
    sub.option("--data", f"{AUDIO}: WAV, FLAC, Ogg, MP3", required=True, metavar="PATH")
    sub.option("--rate", "samples a second to resample to (default: the lowest of all recordings)", **whole)
    sub.option("--crop", "seconds of a recording in a step", load_audio, type=float, metavar="X")
    sub.option("--skip-bad", "leave out recordings that can't be read", action="store_true")
    val = "share of the recordings to hold out; or a PATH of others to measure on, as --data"
    sub.option("--val", val, like, type=share_or_path, metavar="X")
    group = "regular expression: recordings whose names agree in its parentheses are held out together"
    sub.option("--group", f"{group} (default: each by itself)", metavar="REGEX")
    model = "configuration: paper-speech, or mel-speech, which has 25 codes a second and learns sooner"
    sub.option("--model", model, like)
    strides = "strides of the encoder, whose product is how many samples a code stands for; with --num-mels "
    strides += "the first is the spectrogram's (default: the model's)"
    sub.option("--encoder-strides", strides, type=int, nargs="+", metavar="N")
    for name, kind, help in (
        ("--hidden-channels", int, "channels of the encoder"),
        ("--num-residual-blocks", int, "residual blocks of the encoder"),
        ("--num-mels", int, "bands of a log-mel spectrogram that the encoder starts with"),
        ("--mel-weight", float, "weight of a second decoder's error, which tells the spectrogram"),
        ("--wavenet-channels", int, "channels of the WaveNet"),
        ("--wavenet-layers", int, "layers of the WaveNet"),
        ("--num-values", int, "values of a sample, in mu-law"),
        ("--num-mixtures", int, "logistic distributions that a sample is drawn from, in place of a table"),
        ("--num-embeddings", int, "code vectors in the codebook"),
        ("--embedding-dim", int, "numbers in a code vector"),
        ("--beta", float, "weight of the commitment loss"),
        ("--decay", float, "decay of the codebook's moving averages, below 1; without it gradients train it"),
    ):
        sub.option(name, f"{help} (default: the model's)", type=kind, metavar="X" if kind is float else "N")
    sub.option("--no-speakers", "don't tell the decoder who speaks", action="store_true")


def video_options(sub: Any) -> None:
    """Adds the options of train-video to a parser."""
    like: Callable[..., Any] = pipeline.train_vqvae
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    sub.option("--out", "folder of the new run", required=True, metavar="FOLDER")
    sub.option("--data", VIDEO, required=True, metavar="PATH")
    sub.option("--frames", "frames of a clip (default 16)", default=16, **whole)
    sub.option("--stride", "take every N-th frame", load_video, **whole)
    size = (
        "pixels along a side: resize the frames and cut out squares; or height and width (default: as found)"
    )
    sub.option("--size", size, nargs="+", **whole)
    sub.option("--channels", "1 (grey) or 3 (RGB) (default: as found)", **whole)
    sub.option("--skip-bad", "leave out videos that can't be read", action="store_true")
    val = "share of the clips that is kept out of training, whole videos; or a PATH of others, as --data"
    sub.option("--val", val, like, type=share_or_path, metavar="X")
    group = "regular expression: videos whose names agree in its parentheses are held out together"
    sub.option("--group", f"{group} (default: each by itself)", metavar="REGEX")
    model = (
        "configuration: paper-video, which has a grid of codes a frame; or paper-video-halved, which halves "
    )
    model += "time as often as height and width (default paper-video)"
    sub.option("--model", model, default="paper-video", metavar="MODEL")
