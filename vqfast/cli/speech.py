"""The commands that are for recordings alone."""

from __future__ import annotations

from typing import Any

from vqfast.cli.arguments import given_of, opened, tell, training_of
from vqfast.cli.written import as_toml, written_down
from vqfast.data import Recordings
from vqfast.data.disk import quantity
from vqfast.models import SpeechVQVAE
from vqfast.pipeline import Run, Training, joined, load_model
from vqfast.pipeline import convert as convert_step
from vqfast.pipeline import train_speech as train_speech_step

READING = ("rate", "crop", "skip_bad")  # options about reading recordings


def train_speech(out: str, device: str, config: str | None, **options: Any) -> None:
    training = training_of(Training, options)
    text = as_toml(options, training)
    reading = {name: options.pop(name) for name in READING}
    named = {name: options.pop(name) for name in ("data", "val", "group", "model")}
    no_speakers = {"num_classes": None} if options.pop("no_speakers") else {}
    with joined(device) as ranks:
        run = Run.shared(out, ranks, create=True)
        with written_down(run, "vqvae", "train-speech.toml", text, ranks):
            train_speech_step(
                run,
                reading=reading,
                model_options={**given_of(options), **no_speakers},
                training=training,
                ranks=ranks,
                **named,
            )
        tell(ranks, f"trained {run.folder / 'vqvae.safetensors'}; curves in {run.folder / 'vqvae.png'}")


def convert(run: str, data: str | None, speaker: str, out: str, device: str, **reading: Any) -> None:
    with joined(device) as ranks:
        source = Run.shared(run, ranks, lock=False)
        vqvae = load_model(source.folder, "vqvae", device=ranks.device)
        if not isinstance(vqvae, SpeechVQVAE):
            raise ValueError(f"{source.folder} is no run of speech; want one that train-speech made")
        dataset = opened(source, vqvae, data, ranks, reading)
        assert isinstance(dataset, Recordings)
        target = Run.shared(out, ranks, create=True)
        convert_step(source, vqvae, dataset, speaker=speaker, out=target, ranks=ranks)
        tell(ranks, f"{quantity(len(dataset), 'recording')} as {speaker} in {target.folder / 'wav'}")
