"""The commands that are for recordings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqfast.cli.arguments import check_new, check_reading, given_of, opened, tell, training_of
from vqfast.cli.written import as_toml, written_down
from vqfast.data import Recordings
from vqfast.data.disk import quantity
from vqfast.files import write_file
from vqfast.models import SpeechVQVAE
from vqfast.pipeline import Ranks, Run, Training, joined, load_model, phone_table
from vqfast.pipeline import convert as convert_step
from vqfast.pipeline import train_speech as train_speech_step
from vqfast.pipeline.pages import PAGE, write_report

READING = ("rate", "crop", "skip_bad")  # options about reading recordings


def train_speech(out: str, device: str, config: str | None, **options: Any) -> None:
    """Step 1 for recordings: train a model of speech."""
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
        write_report(run, ranks)
        tell(ranks, f"trained {run.folder / 'vqvae.safetensors'}; see {run.folder / PAGE}")


def codes(
    run: str,
    phones: str,
    data: str | None,
    tier: str | None,
    out: str,
    overwrite: bool,
    device: str,
    **reading: Any,
) -> None:
    """Compare the codes of recordings with phone labels."""
    check_new(out, overwrite, ".csv")
    check_reading(data, reading)
    with joined(device) as ranks:
        source, vqvae = _speech_run(run, ranks)
        dataset = opened(source, vqvae, data, ranks, reading)
        assert isinstance(dataset, Recordings)
        if ranks.first:
            table = phone_table(vqvae, dataset, phones, tier=tier, ranks=ranks)
            write_file(Path(out), table.csv())
            by_code, common = (f"{100 * share:.1f} % are right" for share in table.shares_right())
            told = f"{len(table.counts)} of {quantity(len(dataset), 'recording')} with phones"
            print(f"{table.total:,} codes of {told}; {len(table.phones)} phones")
            print(f"by the most frequent phone of each code {by_code}, by the most common phone {common}")
            print(f"found in the other recordings each time; all counts in {out}")


def convert(
    run: str, data: str | None, speaker: str, out: str, temperature: float, device: str, **reading: Any
) -> None:
    """Give recordings the voice of another speaker."""
    check_reading(data, reading)
    with joined(device) as ranks:
        source, vqvae = _speech_run(run, ranks)
        dataset = opened(source, vqvae, data, ranks, reading)
        assert isinstance(dataset, Recordings)
        target = Run.shared(out, ranks, create=True)
        convert_step(
            source, vqvae, dataset, speaker=speaker, out=target, ranks=ranks, temperature=temperature
        )
        tell(ranks, f"{quantity(len(dataset), 'recording')} as {speaker} in {target.folder / 'wav'}")


def _speech_run(folder: str, ranks: Ranks) -> tuple[Run, SpeechVQVAE]:
    source = Run.shared(folder, ranks, lock=False)
    vqvae = load_model(source.folder, "vqvae", device=ranks.device)
    if not isinstance(vqvae, SpeechVQVAE):
        raise ValueError(f"{source.folder} is no run of speech; want one that train-speech made")
    return source, vqvae
