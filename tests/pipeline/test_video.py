"""Clips through the steps: a killed training goes on, and two processes write what one writes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.command import files, run
from tests.moving import walk, write_video, write_walks
from tests.pipeline.test_ranks import SCRIPT, torchrun
from vqfast.data import Clips, load_video
from vqfast.models import VQVAE
from vqfast.pipeline import Continuation, Run, Training, modality_of, reopen_parts, shards, train_vqvae
from vqfast.pipeline.video_actions import actions_of_grids, chosen_actions
from vqfast.priors import ClipPrior

pytest.importorskip("av", reason="PyAV is not installed")

SMALL: dict[str, Any] = {
    "hidden_channels": 8,
    "num_residual_blocks": 0,
    "num_embeddings": 8,
    "embedding_dim": 4,
}
PRIOR: dict[str, Any] = {"channels": 8, "num_layers": 2, "context_channels": 8, "context_blocks": 1}
WORDS = "--hidden-channels 8 --num-residual-blocks 0 --num-embeddings 8 --embedding-dim 4"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_walks(folder, 4, frames=12)
    return folder


def train(run: Run, clips: Path, **how: Any) -> Any:
    training = Training(batch_size=3, **how)
    own = {"reading": {"frames": 4}, "val": 0.25, "model": "paper-video", "model_options": SMALL}
    return train_vqvae(run, clips, modality="video", training=training, **own)


def test_training_resumes_to_the_bit(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(Run(tmp_path / "whole", create=True), clips, steps=8)
    stopped = Run(tmp_path / "stopped", create=True)
    varied, steps = Clips.varied, []

    def interrupted(self: Clips, numbers: Any, chances: Any) -> Any:
        steps.append(float(chances[0, 0]))
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return varied(self, numbers, chances)

    monkeypatch.setattr(Clips, "varied", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, clips, steps=8)
    assert len(steps) == 5
    again = train(stopped, clips, steps=8)
    assert len(steps) == len(set(steps)) == 8
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_held_out_clips_may_be_a_folder_of_their_own(clips: Path, tmp_path: Path) -> None:
    shown, _ = walk(8, 9)
    write_video(tmp_path / "val" / "a.mp4", shown)
    np.save(tmp_path / "val" / "a.actions.npy", np.zeros(8, np.int64))
    trained = Run(tmp_path / "run", create=True)
    own: dict[str, Any] = {"reading": {"frames": 4}, "val": tmp_path / "val", "model_options": SMALL}
    train_vqvae(
        trained, clips, modality="video", model="paper-video", training=Training(steps=1, batch_size=2), **own
    )
    parts = reopen_parts(trained)
    assert [len(part) for part in parts.values()] == [12, 2]
    assert [part.num_actions for part in parts.values()] == [3, 3]


def test_a_continuation_keeps_what_is_given(clips: Path, tmp_path: Path) -> None:
    """The frames and the actions that are given are the clips' own, for each draw."""
    data = load_video(clips, frames=6)
    torch.manual_seed(0)
    vqvae = VQVAE.named("paper-video", **SMALL)
    prior = ClipPrior(8, num_actions=3, **PRIOR)
    kind = modality_of(_run_of(clips, tmp_path))
    more = Continuation(vqvae, data, kind, given=2, frames=9, actions="1", draws=3)
    request = more.request([prior])
    assert request.num == 24 and request.shapes == [(9, 4, 6)]
    (known,), actions = request.known(range(4, 8)), request.actions(range(4, 8))
    codes = vqvae.encode(data.batch([1, 1, 2, 2])[:, :, :2])
    assert torch.equal(known, codes)
    assert actions[:, :2].tolist() == data.actions[[1, 1, 2, 2], :2].tolist()
    assert (actions[:, 2:] == 1).all()
    with pytest.raises(ValueError, match="want none: the prior was trained without"):
        more.request([ClipPrior(8, **PRIOR)])
    with pytest.raises(ValueError, match="don't have the actions of all frames"):
        Continuation(vqvae, data, kind, given=2, frames=9).request([prior])


def _run_of(clips: Path, folder: Path) -> Run:
    trained = Run(folder / "run", create=True)
    train(trained, clips, steps=1)
    return trained


def test_actions_from_the_user(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6) % 3)
    file = str(tmp_path / "a.npy")
    assert chosen_actions(file, 2, 6, 0, 3).tolist() == [[0, 1, 2, 0, 1, 2]] * 2
    assert chosen_actions(file, 2, 3, 0, 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert chosen_actions(file, 2, 8, 2, 3).tolist() == [[-1, -1, 0, 1, 2, 0, 1, 2]] * 2
    assert chosen_actions("2", 1, 3, 1, 3).tolist() == [[2, 2, 2]]
    with pytest.raises(ValueError, match=r"has 6 actions; want 7, or 14 for 2 samples"):
        chosen_actions(file, 2, 7, 0, 3)
    with pytest.raises(ValueError, match=r"has the action 2; want 0\.\.1"):
        chosen_actions(file, 2, 6, 0, 2)


def test_actions_of_several_frames_differ_where_one_does() -> None:
    actions = torch.cartesian_prod(*[torch.arange(3)] * 4)
    found = actions_of_grids(actions, 3, 4)
    assert found.shape == (81, 1) and found.flatten().tolist() == list(range(81))


def assert_alike(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """The same bytes, but of pictures: PyTorch's decoder differs by a last bit from one call to the next."""
    assert found.keys() == expected.keys()
    for name, data in found.items():
        if name.endswith((".mp4", ".gif", ".png")):
            assert abs(len(data) - len(expected[name])) < 0.2 * len(data), name
        else:
            assert data == expected[name], name


STEPS = [
    f"train-video --data ../clips --out run --frames 4 --val 0.25 --steps 2 --batch-size 2 {WORDS}",
    "encode --run trained",
    "train-prior --run trained --steps 2 --batch-size 2 --channels 8 --num-layers 2 --context-channels 8",
    "sample --run whole --out on --given 2 --draws 4",
    "decode --run whole --codes on/samples --out gifs --format gif",
    "likelihood --run whole --out bits.npy",
]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(clips)
    one, two = tmp_path / "one", tmp_path / "two"
    (tmp_path / "script.py").write_text(SCRIPT)
    one.mkdir()
    two.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(one)
        patch.setattr(shards, "SHARD", 4)
        for step in STEPS:
            if "trained" in step and not Path("trained").exists():
                _copy("run", one, two, "trained")
            if "whole" in step and not Path("whole").exists():
                _copy("trained", one, two, "whole")
            assert run(step) == 0
    torch.set_num_threads(threads)
    (tmp_path / "commands").write_text("\n".join(STEPS[1:2] + STEPS[3:]))
    done = torchrun(two, str(tmp_path / "script.py"), "4", str(tmp_path / "commands"))
    assert done.returncode == 0, done.stderr
    for folder in ("trained/codes", "on", "gifs"):
        assert_alike(files(one / folder), files(two / folder))
    assert (np.load(one / "bits.npy") == np.load(two / "bits.npy")).all()


def _copy(name: str, one: Path, two: Path, to: str) -> None:
    import shutil

    for folder in (one, two):
        shutil.copytree(one / name, folder / to)


@pytest.mark.slow
def test_killed_commands_go_on(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while a command works; given again, it ends with the bytes of one that wasn't killed."""
    (tmp_path / "clips").symlink_to(clips)
    monkeypatch.chdir(tmp_path)
    words = STEPS[0].replace("../clips", "clips").replace("--steps 2", "--steps 30")
    train, encode, prior = words.replace("run", "{}"), "encode --run {}", STEPS[2].replace("trained", "{}")
    sample = "sample --run {} --out {}-on --given 2 --num 3"
    for step in (train, encode, prior, sample):
        assert run(step.replace("{}", "whole")) == 0
        if step == train:
            command = [sys.executable, "-m", "vqfast", *step.replace("{}", "killed").split()]
            process = subprocess.Popen(command, stderr=subprocess.PIPE)
            assert process.stderr is not None and process.stderr.readline()  # it has begun to work
            process.kill()
            process.communicate()
        assert run(step.replace("{}", "killed")) == 0
    Path("killed-on/mp4/0000002.mp4").unlink()
    assert run(sample.replace("{}", "killed")) == 0
    for end in ("", "-on"):
        whole, killed = (files(tmp_path / f"{name}{end}") for name in ("whole", "killed"))
        same = [name for name in whole if name.endswith((".safetensors", ".npz", ".mp4", ".history.json"))]
        assert len(same) > 3
        assert_alike({name: whole[name] for name in same}, {name: killed[name] for name in same})
