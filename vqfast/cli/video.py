"""What is for video alone in the commands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vqfast.checks import check_choice, check_integer
from vqfast.cli.arguments import given_of, opened, tell, training_of, without_skip_bad
from vqfast.cli.written import as_toml, written_down
from vqfast.data import Clips
from vqfast.models import Autoencoder
from vqfast.pipeline import Continuation, Ranks, Run, SampleRequest, VideoTraining, joined, modality_of
from vqfast.pipeline import train_vqvae as train_vqvae_step
from vqfast.pipeline.pages import PAGE, write_report
from vqfast.pipeline.parts import HELD_OUT, noted_num_actions
from vqfast.pipeline.video_actions import frames_of_grid
from vqfast.pipeline.video_continuation import acted

READING = ("frames", "stride", "size", "channels", "skip_bad")  # options about reading clips
MODELS = ("paper-video", "paper-video-halved")


def train_video(out: str, device: str, config: str | None, **options: Any) -> None:
    """Step 1 for video: train a VQ-VAE on clips."""
    training = training_of(VideoTraining, options)
    text = as_toml(options, training)
    reading = {name: options.pop(name) for name in READING}
    named = {name: options.pop(name) for name in ("data", "val", "group", "model")}
    check_choice("model", named["model"], MODELS)
    if reading["size"] is not None and len(reading["size"]) == 1:
        (reading["size"],) = reading["size"]
    with joined(device) as ranks:
        run = Run.shared(out, ranks, create=True)
        with written_down(run, "vqvae", "train-video.toml", text, ranks):
            train_vqvae_step(
                run,
                modality="video",
                reading=reading,
                model_options=given_of(options),
                training=training,
                ranks=ranks,
                **named,
            )
        write_report(run, ranks)
        tell(ranks, f"trained {run.folder / 'vqvae.safetensors'}; see {run.folder / PAGE}")


def continuation(
    run: Run,
    vqvae: Autoencoder,
    ranks: Ranks,
    *,
    given: int,
    data: str | None,
    frames: int | None,
    actions: str | None,
    draws: int | None,
) -> Continuation:
    """Samples that go on from clips: those at a path, or held out of the run's training."""
    _check_is_video(run)
    own = data is None or data == HELD_OUT
    dataset = opened(run, vqvae, None if own else data, ranks, without_skip_bad(run))
    assert isinstance(dataset, Clips)
    return Continuation(
        vqvae,
        dataset,
        modality_of(run),
        given=given,
        frames=frames,
        actions=actions,
        draws=1 if draws is None else draws,
        ranks=ranks,
    )


def directed(
    run: Run, vqvae: Autoencoder, request: SampleRequest, *, frames: int | None, actions: str | None
) -> SampleRequest:
    """A request with the frames and the actions that the user names, if any."""
    if frames is None and actions is None:
        return request
    _check_is_video(run)
    if frames is not None:
        check_integer("frames", frames)
        if frames % frames_of_grid(vqvae):
            raise ValueError(f"frames is {frames}; want a multiple of {frames_of_grid(vqvae)}, the model's")
        (shape,) = request.shapes
        request = replace(request, shapes=[(frames // frames_of_grid(vqvae), *shape[1:])])
    return request if actions is None else acted(vqvae, request, actions, noted_num_actions(run))


def _check_is_video(run: Run) -> None:
    if modality_of(run).item != "clip":
        raise ValueError(f"{run.folder} is no run of video; want one that train-video made")
