"""The commands ``report`` and ``picture``, and the page that trainings write."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.command import files, refused, run
from tests.pipeline.pages import Page
from vqfast.cli import main
from vqfast.cli.arguments import given_of, training_of
from vqfast.cli.parser import make_parser
from vqfast.data.images.sheet import GAP, MARGIN
from vqfast.pipeline import Run, Training
from vqfast.pipeline.pages.commands import commands_of
from vqfast.pipeline.parts import data_note


@pytest.mark.usefixtures("here")
def test_report_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (
        ("report --run whole", "report in whole/report.html"),
        ("report --run whole", "report in whole/report.html"),  # replaces its own
        ("report --run whole begun --out both.html", "report in both.html"),
        ("report --run begun --out both.html --overwrite", "report in both.html"),
        ("picture --run begun --of codebook --out book.png", "codebook in book.png"),
        ("picture --run begun --of codebook --num 2 --out two.png", "codebook in two.png"),
        ("picture --run begun --of random-codes --out random.png", "random-codes in random.png"),
        ("picture --run begun --of random-codes --seed 1 --out other.png", "random-codes in other.png"),
    ):
        assert run(command) == 0
        assert capsys.readouterr().out == f"{said}\n"
    assert not Page(Path("whole/report.html").read_bytes()).missing
    assert set(Page(Path("both.html").read_bytes()).missing) == {"samples"}
    for name, columns, lines in (("book", 3, 3), ("two", 2, 1), ("random", 8, 8)):
        with Image.open(f"{name}.png") as image:
            assert image.size == tuple(2 * MARGIN + n * (64 + GAP) - GAP for n in (columns, lines))
    assert Path("random.png").read_bytes() != Path("other.png").read_bytes()


@pytest.mark.usefixtures("here")
def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    before = files(Path())
    for command, wanted in (
        ("report --run nope", "nope holds no vqfast run"),
        ("report --run whole nope --out a.html", "nope holds no vqfast run"),
        ("report --run whole begun", "--out is missing"),
        ("report --run whole --out images.npy", "images.npy exists; use --overwrite"),
        ("picture --run begun --of tea --out a.png", "of is 'tea'; want 'codebook' or 'random-codes'"),
        ("picture --run begun --of codebook --num 0 --out a.png", "num is 0; want a positive integer"),
        ("picture --run begun --of random-codes --seed -1 --out a.png", "seed is -1; want an integer in 0.."),
        ("picture --run begun --of codebook --out images.npy", "images.npy exists; use --overwrite"),
        ("picture --run drawn --of codebook --out a.png", "vqvae.safetensors is missing"),
    ):
        refused(command, wanted, capsys)
    assert files(Path()) == before


@pytest.mark.usefixtures("here")
def test_trainings_write_the_page() -> None:
    for name, sections in (("begun", {"samples"}), ("whole", set())):
        page = Path(name, "report.html").read_bytes()
        assert set(Page(page).missing) == sections


def made(folder: Path) -> dict[str, bytes]:
    """All files but the options as they were given."""
    return {name: data for name, data in files(folder).items() if not name.endswith(".toml")}


@pytest.mark.usefixtures("here")
def test_commands_make_the_run_again() -> None:
    assert run("train-classifier --run whole --steps 1") == 0
    before = made(Path("whole"))
    lines = "\n".join(commands_of(Run("whole", lock=False))).replace("\\\n", " ").splitlines()
    assert [line.split()[1] for line in lines] == ["train", "encode", "train-prior", "train-classifier"]
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0  # refuses other settings than the run's
    assert made(Path("whole")) == before


@pytest.mark.parametrize(
    "command",
    [
        "train --data photos --group=-(.) --no-kmeans-init --flip --compile --val 0.2 --seed 3",
        "train-speech --data voices --encoder-strides 25 4 --no-speakers --skip-bad --val 0.25",
    ],
)
def test_commands_say_all_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """What the command's own function is called with, is what the command of the page calls it with."""
    monkeypatch.chdir(tmp_path)
    given = vars(make_parser().parse_args(f"{command} --out run".split()))
    options = {**given}
    for name in ("command", "out", "device", "config", "recipe"):
        options.pop(name, None)
    training = training_of(Training, options)
    named = {name: options.pop(name) for name in ("data", "val", "group", "model")}
    own = {"num_classes": None} if options.pop("no_speakers", False) else {}
    names = {"labels", "size", "crop", "channels", "depth", "skip_bad", "flip", "rate"} & options.keys()
    note = data_note(
        named["data"],
        modality="audio" if "rate" in options else "images",
        val=named["val"],
        group=named["group"],
        seed=training.seed,
        reading={name: options.pop(name) for name in names},
    )
    run = Run(tmp_path / "run", create=True)
    settings = {"data": note, "model": named["model"], **given_of(options), **own}
    run.begin("vqvae", settings | training.settings(10))
    (line,) = commands_of(run)
    again = vars(make_parser().parse_args(shlex.split(line.replace("\\\n", " "))[1:]))
    expected = {**given, "data": note["path"], "out": str(run.folder), "val": note["val"]}
    assert {name: again[name] for name in expected} == expected  # and defaults, spelled out
