from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vqfast.models import VQVAE
from vqfast.pipeline import codes as shards
from vqfast.pipeline import steps
from vqfast.pipeline.checkpoint import Run, load_model, read_json
from vqfast.pipeline.codes import Tick, pack, read_shards, unpack, write_shards
from vqfast.pipeline.data import load_images
from vqfast.pipeline.ranks import Ranks
from vqfast.prior.base import CausalPrior

ALONE = Ranks(0, 1, torch.device("cpu"))
MODEL = {"hidden_channels": 8, "num_embeddings": 8, "embedding_dim": 4}
FIT = {"codebook": "kmeans", "steps": 12, "batch_size": 8, "lr": 1e-3, "seed": 0}
PRIOR = {"channels": 8, "num_layers": 2, "head_channels": 8}
PRIOR_FIT = {"steps": 12, "batch_size": 8, "lr": 1e-3, "seed": 0}


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
    for part, images in steps.reopen_images(run).items():
        steps.encode(run, run, vqvae, part, images, ALONE)
    prior = steps.train_prior(run, 8, 3, ALONE, "gated", PRIOR, PRIOR_FIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 8)
        steps.sample(run, run, vqvae, prior, 21, (2, 3), torch.arange(21) % 3, ALONE, seed=4)
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


# shards


@pytest.mark.parametrize(("num", "count"), [(1, 1), (8, 1), (9, 2), (21, 3)])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int, count: int, world: int) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    made: list[int] = []

    def make(rows: range, tick: Tick) -> dict[str, np.ndarray]:
        made.extend(rows)
        tick(len(rows))
        return {"codes": np.array(rows), "squares": np.array(rows) ** 2}

    for rank in range(world):
        ranks = Ranks(rank, world, torch.device("cpu"))
        monkeypatch.setattr(Ranks, "barrier", lambda self: None)
        write_shards(tmp_path / "codes", num, ranks, "", make)
    assert sorted(made) == list(range(num))  # each once
    assert sorted(path.name for path in tmp_path.rglob("*.npz")) == [f"{i:05d}.npz" for i in range(count)]
    before = files(tmp_path)
    write_shards(tmp_path / "codes", num, ALONE, "", make)
    assert len(made) == num and files(tmp_path) == before
    found = read_shards(tmp_path / "codes", num)
    assert found["codes"].tolist() == list(range(num)) and found["squares"][-1] == (num - 1) ** 2


def test_damaged_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    write_shards(tmp_path, 20, ALONE, "", lambda rows, tick: {"codes": np.array(rows)})
    middle = tmp_path / "00001.npz"
    whole = middle.read_bytes()
    for damaged in (b"", whole[:100], whole[:-10], b"x" * 300, whole[:60] + b"xxxx" + whole[64:]):
        middle.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"00001\.npz is no whole shard"):
            read_shards(tmp_path, 20)
    np.savez(middle, codes=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"no whole shard.*pickle"):
        read_shards(tmp_path, 20)
    middle.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.npz is missing: the codes aren't complete"):
        read_shards(tmp_path, 20)


@pytest.mark.parametrize(
    ("num_embeddings", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_codes_take_the_smallest_type(num_embeddings: int, dtype: str) -> None:
    codes = torch.tensor([[0, num_embeddings - 1]])
    assert pack(codes, num_embeddings).dtype == dtype
    assert torch.equal(unpack(pack(codes, num_embeddings)), codes)


# images


def test_images_are_those_of_the_training(run: Run, data: Path) -> None:
    parts = steps.reopen_images(run)
    train, held_out = load_images(str(data / "x.npy"), str(data / "y.npy")).split(0.25, 0)
    assert list(parts) == [steps.TRAIN, steps.HELD_OUT]
    assert [len(part) for part in parts.values()] == [45, 15]
    assert parts["train"].fingerprint == train.fingerprint
    assert parts["held-out"].fingerprint == held_out.fingerprint


def test_changed_images_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    run = Run(tmp_path / "run", create=True)
    with pytest.raises(FileNotFoundError, match="holds no trained VQ-VAE"):
        steps.reopen_images(run)
    images = note(tmp_path, labels=None)
    steps.train_vqvae(run, dict(images), ALONE, "paper", MODEL, {**FIT, "steps": 1})
    x[3, 3, 3] ^= 1
    np.save(tmp_path / "x.npy", x)
    before = files(run.folder)
    with pytest.raises(ValueError, match=r"x\.npy has changed since the run was trained on it"):
        steps.reopen_images(run)
    with pytest.raises(ValueError, match=r"another vqvae: images\.fingerprint was .*, now"):
        steps.train_vqvae(run, dict(images), ALONE, "paper", MODEL, {**FIT, "steps": 1})
    (tmp_path / "x.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*x\.npy"):
        steps.reopen_images(run)
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
    for part, images in steps.reopen_images(run).items():
        codes, labels = steps.read_codes(run, part)
        x = images.batch(range(len(images)))
        assert codes.shape == (len(images), 2, 3) and codes.dtype == torch.int64
        assert torch.equal(codes, vqvae.encode(x))
        assert labels.tolist() == images.labels.tolist()
    with pytest.raises(FileNotFoundError, match="holds no all codes: encode first"):
        steps.read_codes(run, "all")


def test_codes_of_other_images(tmp_path: Path, run: Run, vqvae: VQVAE) -> None:
    x = np.random.default_rng(1).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    out, images = Run(tmp_path / "out", create=True), load_images(str(tmp_path / "x.npy"))
    steps.encode(run, out, vqvae, "all", images, ALONE)
    codes, labels = steps.read_codes(out, "all")
    assert codes.shape == (5, 2, 2) and labels is None
    assert out.settings("codes/all")["num"] == 5 and run.settings("codes/all") is None


def test_samples_are_the_priors(
    run: Run, vqvae: VQVAE, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    samples = steps.read_samples(run)
    labels = torch.arange(21) % 3
    codes = prior.sample(21, (2, 3), labels=labels, seed=4)
    assert samples["labels"].tolist() == labels.tolist()
    assert torch.equal(unpack(samples["codes"]), codes)  # in one go as in three shards
    with torch.no_grad():
        images = vqvae.decode_codes(codes).clamp(0, 1) * 255
    assert samples["images"].dtype == np.uint8 and samples["images"].shape == (21, 1, 8, 12)
    np.testing.assert_allclose(samples["images"], images, atol=0.51)
    assert len(steps.read_samples(run, 3)["codes"]) == 3
    assert len(steps.read_samples(run, 100)["codes"]) == 21


def test_samples_without_labels(tmp_path: Path, data: Path) -> None:
    run = Run(tmp_path, create=True)
    fit = {**FIT, "steps": 1}
    vqvae = steps.train_vqvae(run, note(data), ALONE, "paper", MODEL, fit)
    for part, images in steps.reopen_images(run).items():
        steps.encode(run, run, vqvae, part, images, ALONE)
    small = {"channels": 4, "num_residual_blocks": 1, "num_layers": 1}
    prior = steps.train_prior(run, 8, None, ALONE, "residual", small, {**PRIOR_FIT, "steps": 1})
    assert prior.num_classes is None
    steps.sample(run, run, vqvae, prior, 2, (1, 4), None, ALONE, temperature=0.5, top_k=2)
    assert sorted(steps.read_samples(run)) == ["codes", "images"]
    assert steps.read_samples(run)["images"].shape == (2, 1, 4, 16)


def test_finished_stages_are_not_redone(run: Run, data: Path, vqvae: VQVAE, prior: CausalPrior) -> None:
    before = files(run.folder)
    again = steps.train_vqvae(run, note(data), ALONE, "paper", MODEL, FIT)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in vqvae.state_dict().items())
    assert not again.training
    for part, images in steps.reopen_images(run).items():
        steps.encode(run, run, vqvae, part, images, ALONE)
    steps.train_prior(run, 8, 3, ALONE, "gated", PRIOR, PRIOR_FIT)
    steps.sample(run, run, vqvae, prior, 21, (2, 3), torch.arange(21) % 3, ALONE, seed=4)
    assert files(run.folder) == before


def test_a_state_that_was_left_behind_goes(tmp_path: Path, data: Path) -> None:
    run = Run(tmp_path, create=True)
    arguments = (note(data), ALONE, "paper", MODEL, {**FIT, "steps": 1})
    steps.train_vqvae(run, *arguments)
    before = files(run.folder)
    (tmp_path / "vqvae.state.safetensors").write_bytes(b"whole")  # of one killed right after the weights
    (tmp_path / ".vqvae.state.safetensors.tmp").write_bytes(b"half")  # of one killed while it saved
    steps.train_vqvae(run, *arguments)
    assert files(run.folder) == before


def test_other_settings_are_refused(run: Run, data: Path, vqvae: VQVAE, prior: CausalPrior) -> None:
    before = files(run.folder)
    images = steps.reopen_images(run)

    def train(images: dict[str, Any], name: str = "paper", **fit: Any) -> None:
        steps.train_vqvae(run, images, ALONE, name, MODEL, {**FIT, **fit})

    def sample(num: int, labels: torch.Tensor, **options: Any) -> None:
        steps.sample(run, run, vqvae, prior, num, (2, 3), labels, ALONE, **options)

    labels = torch.arange(21) % 3
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
        ("another samples: seed was 4, now 5", lambda: sample(21, labels, seed=5)),
        ("another samples: labels was '.*', now '.*'; use", lambda: sample(21, labels * 0, seed=4)),
        ("another samples: .*num was 21, now 20", lambda: sample(20, labels[:20], seed=4)),
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
    images = steps.reopen_images(run)["held-out"]
    outputs, codes, figures = steps.reconstruct(vqvae, images, ALONE)
    x = images.batch(range(15))
    assert torch.equal(codes, steps.read_codes(run, "held-out")[0])
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


def test_bits_per_code(run: Run, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, labels = steps.read_codes(run, "train")
    with torch.no_grad():
        p = prior(codes, labels).softmax(1).gather(1, codes.unsqueeze(1))
    monkeypatch.setattr(steps, "BATCH", 7)
    np.testing.assert_allclose(
        steps.bits_per_code(prior, codes, labels, ALONE), -p.log2().mean().item(), rtol=1e-5
    )


def test_seeded(run: Run, data: Path, tmp_path: Path) -> None:
    digests = {}
    for name, seed in (("same", 0), ("other", 1)):
        again = Run(tmp_path / name, create=True)
        steps.train_vqvae(again, note(data), ALONE, "paper", MODEL, {**FIT, "seed": seed})
        digests[name] = hashlib.sha256((again.folder / "vqvae.safetensors").read_bytes()).digest()
    original = hashlib.sha256((run.folder / "vqvae.safetensors").read_bytes()).digest()
    assert digests["same"] == original != digests["other"]
