"""Options that are written down: recipes, TOML files, and each run's own."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.command import PRIOR, TRAIN, UNLABELLED, refused, run
from vqfast.cli import main
from vqfast.cli.parser import make_parser
from vqfast.cli.recipes import RECIPES
from vqfast.pipeline import PriorTraining, Training
from vqfast.pipeline.optimizing import make_optimizer
from vqfast.pipeline.prior_training import PRIORS
from vqfast.pipeline.vqvae_task import MODELS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parsed(command: str) -> dict[str, Any]:
    return vars(make_parser().parse_args(command.split()))


def training_of(arguments: dict[str, Any], kind: type[Training] = Training) -> Training:
    return kind(**{f.name: arguments[f.name] for f in fields(kind) if f.name in arguments})


ADAM, ADAMW = torch.optim.Adam, torch.optim.AdamW
# of each source: parameters, and those of its optimiser, schedule and batches
SOURCES: dict[str, tuple[int, type, float, float, str, int, float | None, int | None]] = {
    "keras": (49_937, ADAM, 1e-3, 0.0, "constant", 128, 30, None),
    "ruseckas": (3_299_139, ADAMW, 1e-2, 1e-2, "onecycle", 128, 20, None),
    "ruseckas-hierarchical": (6_834_826, ADAMW, 1e-2, 1e-2, "onecycle", 64, 10, None),
    "paper": (0, ADAM, 2e-4, 0.0, "constant", 128, None, 250_000),
    "vqvae2": (0, ADAM, 3e-4, 0.0, "constant", 128, None, None),
}


@pytest.mark.parametrize("name", RECIPES["train"])
def test_a_recipe_is_the_sources_training(name: str) -> None:
    count, kind, lr, decay, schedule, batch, epochs, steps = SOURCES[name]
    arguments = parsed(f"train --out x --recipe {name}")
    model = MODELS[arguments["model"]].named(arguments["model"])
    if count:
        frozen = sum(q.codebook.numel() for q in model.quantizers if not q.codebook.requires_grad)
        assert sum(p.numel() for p in model.parameters()) + frozen == count
    training = training_of(arguments)
    optimizer = make_optimizer(model, training)
    group = optimizer.param_groups[0]
    assert type(optimizer) is kind and (group["lr"], group["weight_decay"]) == (lr, decay)
    assert (training.schedule, training.batch_size) == (schedule, batch)
    assert (training.epochs, training.steps, training.ema, training.clip) == (epochs, steps, None, None)
    assert arguments["flip"] == name.startswith("ruseckas")
    assert arguments["size"] == (128 if name.startswith("ruseckas") else 256 if name == "vqvae2" else None)
    if name.startswith(("keras", "ruseckas")):  # random code vectors, which gradients move
        assert all(not q.kmeans_init and q.decay is None and not q.revive_below for q in model.quantizers)


def test_the_recipe_of_keras_prior() -> None:
    arguments = parsed("train-prior --run x --recipe keras")
    training = training_of(arguments, PriorTraining)
    assert arguments["prior"] == "residual" and arguments["no_labels"] and "residual" in PRIORS
    assert (training.epochs, training.batch_size, training.lr) == (30, 128, 3e-4)
    assert training.schedule == "constant" and training.optimizer == "adam"


def test_given_options_go_before_a_file_and_a_file_before_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('recipe = "ruseckas"\nlr = 0.5\nsteps = 9\nval = "some where"\nskip-bad = true\n')
    arguments = parsed(f"train --config {file} --out x --no-flip --weight-decay 0.25")
    training = training_of(arguments)
    assert arguments["model"] == "ruseckas" and arguments["out"] == "x" and arguments["skip_bad"]
    assert not arguments["flip"] and arguments["val"] == "some where"
    assert (training.lr, training.weight_decay, training.batch_size) == (0.5, 0.25, 128)
    assert (training.steps, training.epochs) == (9, None)  # a length replaces another
    assert training_of(parsed(f"train --config {file} --out x --epochs 2")).steps is None
    assert parsed(f"train --config {file} --out x --recipe keras")["model"] == "keras"
    file.write_text('out = "there"\nflip = true\ncompile = false\nval = 0.25')
    arguments = parsed(f"train --config={file}")
    assert arguments["out"] == "there" and arguments["flip"] and arguments["val"] == 0.25
    assert not training_of(arguments).compile
    file.write_text('precision = "bf16"')  # as earlier versions wrote it
    assert training_of(parsed(f"train --config {file} --out x")).precision == "bfloat16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = 1\nrate = 2\n[more]\n", "has rate, more; want the command's options alone, as in --help"),
        ("batch_size = 2", "has batch_size; want"),
        ('config = "x"', "has config; want"),
        ("lr = ", "is no TOML file: "),
        ('lr = "fast"', "invalid float value: 'fast'"),
        ('recipe = "x"', "recipe is 'x'; want 'keras', 'ruseckas'"),
        ("lr = false", "lr is false; want a value, or nothing for the default"),
        ("ema = true", "argument --ema: expected one argument"),
        ("lr = -1.0", "lr is -1.0; want a finite number, above 0"),
    ],
)
def test_bad_files(here: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    Path("a.toml").write_text(text)
    refused(f"{TRAIN} new --config a.toml".replace("--lr 1e-3", ""), message, capsys)


def test_the_file_of_the_page_is_right(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "pipeline.md"
    (tmp_path / "a.toml").write_text(page.read_text().partition("```text\nrecipe")[2].partition("```")[0])
    (tmp_path / "a.toml").write_text("recipe" + (tmp_path / "a.toml").read_text())
    arguments = parsed(f"train --config {tmp_path / 'a.toml'} --out x")
    assert arguments["model"] == "ruseckas" and arguments["data"] == "photos/" and not arguments["flip"]
    assert training_of(arguments).lr == 0.003


def test_a_runs_own_file_trains_the_same_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(f"{TRAIN} new --crop 4 --flip --ema 0.5 --optimizer adamw --val 0.2") == 0
    assert run("encode --run new") == 0
    assert run(f"train-prior --run new {PRIOR} --clip 1 --warmup 2") == 0
    written = tomllib.loads(Path("new/train.toml").read_text())
    assert written["data"] == str(here / "images.npy") and written["ema"] == 0.5 and written["flip"]
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert run("train --config ../new/train.toml --out again") == 0
    assert run("encode --run again") == 0
    assert run("train-prior --config ../new/train-prior.toml --run again") == 0
    for name in ("vqvae.safetensors", "prior.safetensors", "train.toml", "train-prior.toml"):
        assert Path("again", name).read_bytes() == (here / "new" / name).read_bytes()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("command", "given", "again", "weights"),
    [
        (
            "train-second-stage",
            "--run begun --out {} --hidden-channels 8 --num-downsamplings 1 --steps 2 --batch-size 4",
            "--run begun --out {}",
            "vqvae",
        ),
        ("train-classifier", "--run {} --steps 2 --batch-size 4 --lr 0.01", "--run {}", "classifier"),
    ],
)
def test_other_trainings_keep_their_options_too(command: str, given: str, again: str, weights: str) -> None:
    first, second = ("one", "two") if "--out" in given else ("begun", "coded")
    assert run(f"{command} {given.format(first)}") == 0
    assert run(f"{command} {again.format(second)} --config {first}/{command}.toml") == 0
    for name in (f"{weights}.safetensors", f"{command}.toml"):
        assert Path(first, name).read_bytes() == Path(second, name).read_bytes()


def test_an_interrupted_run_has_its_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqfast.pipeline import loop

    monkeypatch.setattr(loop, "_take_step", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(f"{TRAIN} new") == 130
    assert tomllib.loads(Path("new/train.toml").read_text())["steps"] == 12


@pytest.mark.parametrize("name", [b"del\x7f", b"latin-1 \xe9", '日本 " \\'.encode()])
def test_data_of_any_name(here: Path, name: bytes) -> None:
    folder = os.fsdecode(name)
    shutil.copytree("photos", folder)
    model = UNLABELLED.replace("--data images.npy", "--steps 1").split()
    assert main([*model, "new", f"--data={folder}"]) == 0
    assert run("train --config new/train.toml --out again") == 0
    for file in ("train.toml", "vqvae.safetensors"):
        assert Path("again", file).read_bytes() == Path("new", file).read_bytes()


def test_options_are_written_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """An abbreviated --config or --recipe would be taken and not be read."""
    with pytest.raises(SystemExit):
        parsed("train --out x --conf options.toml")
