from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vqfast.data import load_images
from vqfast.models import VQVAE
from vqfast.pipeline import codes as shards
from vqfast.pipeline import images as pictures
from vqfast.pipeline import steps
from vqfast.pipeline.checkpoint import Run, load_model, read_json
from vqfast.pipeline.codes import Codes, open_codes, stored
from vqfast.pipeline.parts import HELD_OUT, TRAIN, reopen_images
from vqfast.pipeline.ranks import Ranks
from vqfast.priors.base import CausalPrior

ALONE = Ranks(0, 1, torch.device("cpu"))
MODEL = {"hidden_channels": 8, "num_embeddings": 8, "embedding_dim": 4}
FIT = {"codebook": "kmeans", "steps": 12, "batch_size": 8, "lr": 1e-3, "seed": 0}
PRIOR = {"channels": 8, "num_layers": 2, "head_channels": 8}
PRIOR_FIT = {"steps": 12, "batch_size": 8, "lr": 1e-3, "seed": 0}
WANTED = steps.Wanted(21, (2, 3), {"labels": "in turn"}, lambda rows: torch.arange(rows.start, rows.stop) % 3)


def note(folder: Path, **changes: Any) -> dict[str, Any]:
    where = {"source": str(folder / "x.npy"), "labels": str(folder / "y.npy"), "size": None, "channels": None}
    return {**where, "holdout": 0.25, "seed": 0, **changes}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.integers(0, 256, (60, 8, 12), dtype=np.uint8))
    np.save(folder / "y.npy", np.arange(60) % 3)
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Run:
    """A run with all stages done."""
    run = Run(data / "run", create=True)
    vqvae = steps.train_vqvae(run, note(data), ALONE, "paper", MODEL, FIT)
    for part, images in reopen_images(run).items():
        steps.encode(run, run, vqvae, part, images, ALONE)
    prior = steps.train_prior(run, 8, 3, ALONE, "gated", PRIOR, PRIOR_FIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 8)
        steps.sample(run, run, prior, WANTED, ALONE, seed=4)
    return run


@pytest.fixture(scope="module")
def vqvae(run: Run) -> VQVAE:
    return load_model(run.folder, "vqvae")


@pytest.fixture(scope="module")
def prior(run: Run) -> CausalPrior:
    return load_model(run.folder, "prior")


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and contents of all files."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found if path.name != ".lock"}


# images


@pytest.mark.parametrize("images", [None, [], "x", {}, {"source": "digits"}])
def test_a_run_that_does_not_say_which_images(tmp_path: Path, images: Any) -> None:
    run = Run(tmp_path, create=True)
    run.stage("vqvae", {} if images is None else {"images": images})
    with pytest.raises(ValueError, match=r"run\.json has no images with channels, .* in vqvae"):
        reopen_images(run)


def test_images_are_those_of_the_training(run: Run, data: Path) -> None:
    parts = reopen_images(run)
    train, held_out = load_images(str(data / "x.npy"), str(data / "y.npy")).split(0.25, 0)
    assert list(parts) == [TRAIN, HELD_OUT]
    assert [len(part) for part in parts.values()] == [45, 15]
    assert parts["train"].fingerprint == train.fingerprint
    assert parts["held-out"].fingerprint == held_out.fingerprint


def test_changed_images_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    run = Run(tmp_path / "run", create=True)
    with pytest.raises(FileNotFoundError, match="holds no trained VQ-VAE"):
        reopen_images(run)
    images = note(tmp_path, labels=None)
    steps.train_vqvae(run, dict(images), ALONE, "paper", MODEL, {**FIT, "steps": 1})
    x[3, 3, 3] ^= 1
    np.save(tmp_path / "x.npy", x)
    before = files(run.folder)
    with pytest.raises(ValueError, match=r"x\.npy has changed since the run was trained on it"):
        reopen_images(run)
    with pytest.raises(ValueError, match=r"x\.npy has changed since the run was trained on it"):
        steps.train_vqvae(run, dict(images), ALONE, "paper", MODEL, {**FIT, "steps": 1})
    (tmp_path / "x.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"x\.npy.; no such file or folder"):
        reopen_images(run)
    assert files(run.folder) == before


# stages


def test_the_files_of_a_run(run: Run) -> None:
    names = {str(Path(name).relative_to(run.folder)) for name in files(run.folder)}
    models = {
        f"{m}.{s}" for m in ("vqvae", "prior") for s in ("safetensors", "config.json", "history.json", "png")
    }
    samples = {f"samples/0000{i}.npz" for i in range(3)}
    assert names == {"run.json", "codes/train/00000.npz", "codes/held-out/00000.npz", *models, *samples}
    assert read_json(run.folder / "vqvae.history.json")["step"] == [0, 10, 11]


def test_codes_are_the_models(run: Run, vqvae: VQVAE) -> None:
    for part, images in reopen_images(run).items():
        codes, labels = stored(run, f"codes/{part}").all()
        x = images.batch(range(len(images)))
        assert codes.shape == (len(images), 2, 3) and codes.dtype == torch.int64
        assert torch.equal(codes, vqvae.encode(x))
        assert labels.tolist() == images.labels.tolist()
    with pytest.raises(FileNotFoundError, match="holds no codes/all: encode first"):
        stored(run, "codes/all")


def test_codes_of_other_images(tmp_path: Path, run: Run, vqvae: VQVAE) -> None:
    x = np.random.default_rng(1).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    out, images = Run(tmp_path / "out", create=True), load_images(str(tmp_path / "x.npy"))
    steps.encode(run, out, vqvae, "all", images, ALONE)
    codes, labels = stored(out, "codes/all").all()
    assert codes.shape == (5, 2, 2) and labels is None
    assert out.settings("codes/all")["num"] == 5 and run.settings("codes/all") is None


def test_samples_are_the_priors(run: Run, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    codes, labels = stored(run, "samples").all()
    assert labels.tolist() == [i % 3 for i in range(21)]
    assert torch.equal(codes, prior.sample(21, (2, 3), labels=labels, seed=4))  # in one go as in three shards
    some, theirs = stored(run, "samples").read(range(5, 18))
    assert torch.equal(some, codes[5:18]) and torch.equal(theirs, labels[5:18])


def test_known_codes_of_samples(tmp_path: Path, run: Run, prior: CausalPrior) -> None:
    known = torch.full((21, 2, 3), -1)
    known[:, 0] = torch.arange(63).view(21, 3) % 8
    wanted = replace(WANTED, known=lambda rows: known[rows.start : rows.stop])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 8)
        out = Run(tmp_path, create=True)
        codes, labels = steps.sample(run, out, prior, wanted, ALONE, seed=4).all()
    assert torch.equal(codes[:, 0], known[:, 0])
    assert torch.equal(codes, prior.sample(21, (2, 3), labels=labels, seed=4, known=known))


@pytest.mark.parametrize(("format", "count"), [("npy", 3), ("png", 21), ("grid", 3)])
def test_decoded_samples(
    tmp_path: Path, run: Run, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch, format: str, count: int
) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    codes, out = stored(run, "samples"), Run(tmp_path, create=True)
    steps.decode(run, out, vqvae, codes, format, ALONE)
    found = files(tmp_path / format)
    assert len(found) == count
    with torch.no_grad():
        expected = vqvae.decode(codes.all()[0]).clamp(0, 1)
    if format == "grid":
        contents = [pictures.grid(part, 3) for part in expected.split(8)]
        assert [data for _, (_, data) in sorted(found.items())] == contents
    else:
        paths = sorted((tmp_path / format).iterdir())
        read = (
            np.concatenate([np.load(path) for path in paths])
            if format == "npy"
            else np.stack([np.asarray(Image.open(path)) for path in paths])[:, None]
        )
        assert read.dtype == np.uint8 and read.shape == (21, 1, 8, 12)
        np.testing.assert_allclose(read, expected * 255, atol=0.51)
    # what is missing is made again, what is there stays
    last = sorted(found)[-1]
    Path(last).unlink()
    steps.decode(run, out, vqvae, codes, format, ALONE)
    assert {name: data for name, (_, data) in files(tmp_path / format).items()} == {
        name: data for name, (_, data) in found.items()
    }
    first = sorted(found)[0]
    assert files(tmp_path / format)[first] == found[first]
    with pytest.raises(ValueError, match=f"another {format}: codes was .*, now .*; use another folder"):
        steps.decode(run, out, vqvae, replace(codes, fingerprint="others"), format, ALONE)


def test_colour_pictures() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    with Image.open(io.BytesIO(pictures.single(image))) as opened:
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), image.transpose(1, 2, 0))


def test_codes_that_somebody_names(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, labels = stored(run, "codes/train").all()
    found = open_codes(str(run.folder / "codes" / "train"))
    assert torch.equal(found.all()[0], codes) and torch.equal(found.all()[1], labels)
    monkeypatch.chdir(run.folder / "codes")
    assert open_codes("held-out").num == 15
    name = str(tmp_path / "codes.npy")
    np.save(name, codes.numpy().astype(np.uint8))
    array = open_codes(name)
    assert array.num == 45 and array.all()[1] is None
    assert torch.equal(array.read(range(3, 40))[0], codes[3:40])
    np.save(name, codes.numpy()[::-1])
    assert open_codes(name).fingerprint != array.fingerprint
    for bad in (np.zeros((2, 3)), np.zeros((2, 3, 3)), np.zeros((0, 3, 3), int), np.array({}, dtype=object)):
        np.save(name, bad, allow_pickle=True)
        with pytest.raises(ValueError, match="codes is "):
            open_codes(name)
    for bad, error in (
        (tmp_path, ValueError),
        (tmp_path / "nope", FileNotFoundError),
        (run.folder, Exception),
    ):
        with pytest.raises(error, match=r"codes is |holds no"):
            open_codes(str(bad))


def test_samples_without_labels(tmp_path: Path, data: Path) -> None:
    run = Run(tmp_path, create=True)
    fit = {**FIT, "steps": 1}
    vqvae = steps.train_vqvae(run, note(data), ALONE, "paper", MODEL, fit)
    for part, images in reopen_images(run).items():
        steps.encode(run, run, vqvae, part, images, ALONE)
    small = {"channels": 4, "num_residual_blocks": 1, "num_layers": 1}
    prior = steps.train_prior(run, 8, None, ALONE, "residual", small, {**PRIOR_FIT, "steps": 1})
    assert prior.num_classes is None
    wanted = steps.Wanted(2, (1, 4), {})
    codes, labels = steps.sample(run, run, prior, wanted, ALONE, temperature=0.5, top_k=2).all()
    assert codes.shape == (2, 1, 4) and labels is None


def test_finished_stages_are_not_redone(run: Run, data: Path, vqvae: VQVAE, prior: CausalPrior) -> None:
    before = files(run.folder)
    again = steps.train_vqvae(run, note(data), ALONE, "paper", MODEL, FIT)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in vqvae.state_dict().items())
    assert not again.training
    for part, images in reopen_images(run).items():
        steps.encode(run, run, vqvae, part, images, ALONE)
    steps.train_prior(run, 8, 3, ALONE, "gated", PRIOR, PRIOR_FIT)
    steps.sample(run, run, prior, WANTED, ALONE, seed=4)
    assert files(run.folder) == before


def test_a_state_that_was_left_behind_goes(tmp_path: Path, data: Path) -> None:
    run = Run(tmp_path, create=True)
    arguments = (note(data), ALONE, "paper", MODEL, {**FIT, "steps": 1})
    steps.train_vqvae(run, *arguments)
    before = files(run.folder)
    (tmp_path / "vqvae.state.safetensors").write_bytes(b"whole")  # of one killed right after the weights
    (tmp_path / ".vqfast-0123.tmp").write_bytes(b"half")  # of one killed while it saved
    del run
    run = Run(tmp_path)
    steps.train_vqvae(run, *arguments)
    assert files(run.folder) == before


def test_other_settings_are_refused(run: Run, data: Path, vqvae: VQVAE, prior: CausalPrior) -> None:
    before = files(run.folder)
    images = reopen_images(run)

    def train(images: dict[str, Any], name: str = "paper", **fit: Any) -> None:
        steps.train_vqvae(run, images, ALONE, name, MODEL, {**FIT, **fit})

    def sample(seed: int = 4, **changes: Any) -> None:
        steps.sample(run, run, prior, replace(WANTED, **changes), ALONE, seed=seed)

    for message, call in (
        ("another vqvae: lr was 0.001, now 0.01; use", lambda: train(note(data), lr=0.01)),
        ("another vqvae: name was 'paper', now 'keras'", lambda: train(note(data), "keras")),
        ("another vqvae: images.holdout was 0.25, now 0.5", lambda: train(note(data, holdout=0.5))),
        ("images.size was None, now 4", lambda: train(note(data, size=4))),
        (
            "codes/train: data was .*, now .*, num was 45, now 15",
            lambda: steps.encode(run, run, vqvae, "train", images["held-out"], ALONE),
        ),
        (
            "another prior: head_channels was 8, now None, name was 'gated', now 'residual', num_classes",
            lambda: steps.train_prior(
                run, 8, None, ALONE, "residual", {"channels": 8, "num_layers": 2}, PRIOR_FIT
            ),
        ),
        ("another samples: seed was 4, now 5", lambda: sample(seed=5)),
        ("another samples: labels was 'in turn', now 0; use", lambda: sample(note={"labels": 0})),
        ("another samples: .*num was 21, now 20", lambda: sample(num=20)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert files(run.folder) == before


@pytest.mark.parametrize(
    ("name", "model", "fit", "message"),
    [
        ("nonsense", {}, {}, "want one of paper"),
        ("paper", {"num_embeddings": 0}, {}, "num_embeddings is 0"),
        ("paper", {"num_downsamplings": 3}, {}, r"spatial is \(8, 12\); want .* multiples of the stride 8"),
        ("paper", {}, {"seed": -1}, "seed is -1; want 0..2"),
        ("paper", {}, {"seed": 2**32}, "seed is 4294967296; want 0..2"),
        ("paper", {}, {"steps": 0}, "steps is 0"),
        ("paper", {}, {"codebook": "x"}, "codebook is 'x'"),
    ],
)
def test_bad_arguments_leave_the_folder_free(
    tmp_path: Path, data: Path, name: str, model: dict[str, Any], fit: dict[str, Any], message: str
) -> None:
    run = Run(tmp_path, create=True)
    with pytest.raises(ValueError, match=message):
        steps.train_vqvae(run, note(data), ALONE, name, {**MODEL, **model}, {**FIT, **fit})
    assert {Path(name).name for name in files(tmp_path)} <= {"run.json"}
    steps.train_vqvae(run, note(data), ALONE, "paper", MODEL, {**FIT, "steps": 1})  # with others it goes on


def test_bad_priors(run: Run) -> None:
    with pytest.raises(ValueError, match="prior is 'wavenet'; want gated or residual"):
        steps.train_prior(run, 8, 3, ALONE, "wavenet", {}, PRIOR_FIT)
    with pytest.raises(ValueError, match="seed is -1"):
        steps.train_prior(run, 8, 3, ALONE, "gated", {}, {**PRIOR_FIT, "seed": -1})


# measures


def test_reconstruct(run: Run, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "BATCH", 4)
    images = reopen_images(run)["held-out"]
    figures = steps.reconstruct(vqvae, images, ALONE)
    x, codes = images.batch(range(15)), stored(run, "codes/held-out").all()[0]
    outputs = torch.cat(list(steps.decoded(vqvae, steps.encoded(vqvae, images, ALONE), range(15), ALONE)))
    assert outputs.shape == x.shape and outputs.min() >= 0 and outputs.max() <= 1
    mse = F.mse_loss(outputs.double(), x.double()).item()
    p = np.bincount(codes.flatten(), minlength=8) / codes.numel()
    expected = {
        "mse": mse,
        "psnr": 10 * np.log10(1 / mse),
        "perplexity": np.exp(-sum(q * np.log(q) for q in p if q)),
        "codes_in_use": np.mean(p > 0),
    }
    assert list(figures) == list(expected)
    np.testing.assert_allclose(list(figures.values()), list(expected.values()), rtol=1e-5)


@torch.no_grad()
def test_bits_per_code(run: Run, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stored(run, "codes/train")
    codes, labels = found.all()
    monkeypatch.setattr(steps, "BATCH", 7)
    for label in (None, 2):
        p = prior(codes, labels if label is None else torch.full((45,), label)).softmax(1)
        expected = -p.gather(1, codes.unsqueeze(1)).log2().flatten(1).mean(1)
        bits = steps.bits_per_code(prior, found, ALONE, label)
        assert bits.shape == (45,)
        np.testing.assert_allclose(bits, expected, rtol=1e-5)
    short = Codes(45, "", lambda rows: (codes[:2], labels[:2]))
    with pytest.raises(ValueError, match="bits a code: 14 items came for 45 rows"):
        steps.bits_per_code(prior, short, ALONE)
    unlabelled = Codes(45, "", lambda rows: (codes[rows.start : rows.stop], None))
    with pytest.raises(
        ValueError, match=r"labels is None; want integers in 0\.\.2, since the prior has 3 classes"
    ):
        steps.bits_per_code(prior, unlabelled, ALONE)


def test_what_does_not_fit_is_worked_in_parts(
    run: Run, vqvae: VQVAE, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding, decoding and likelihood, where there is room for five at a time."""
    images = reopen_images(run)["held-out"]

    def results() -> list[torch.Tensor]:
        codes = steps.encoded(vqvae, images, ALONE)
        outputs = torch.cat(list(steps.decoded(vqvae, codes, range(15), ALONE)))
        figures = torch.tensor(list(steps.reconstruct(vqvae, images, ALONE).values()))
        return [codes.all()[0], outputs, steps.bits_per_code(prior, codes, ALONE), figures]

    def limited(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(x: torch.Tensor, *rest: Any) -> torch.Tensor:
            if len(x) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return method(x, *rest)

        return call

    expected = results()
    for model, name in ((vqvae, "encode"), (vqvae, "decode"), (prior, "bits_per_code")):
        monkeypatch.setattr(model, name, limited(getattr(model, name)))
    for result, wanted in zip(results(), expected, strict=True):
        torch.testing.assert_close(result, wanted)


def test_seeded(run: Run, data: Path, tmp_path: Path) -> None:
    digests = {}
    for name, seed in (("same", 0), ("other", 1)):
        again = Run(tmp_path / name, create=True)
        steps.train_vqvae(again, note(data), ALONE, "paper", MODEL, {**FIT, "seed": seed})
        digests[name] = hashlib.sha256((again.folder / "vqvae.safetensors").read_bytes()).digest()
    original = hashlib.sha256((run.folder / "vqvae.safetensors").read_bytes()).digest()
    assert digests["same"] == original != digests["other"]
