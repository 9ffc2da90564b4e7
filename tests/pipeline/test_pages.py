"""The page of a run, and the one that compares runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.chromium import BROWSER, Chromium
from tests.pipeline.pages import Page
from tests.pipeline.trained import MODEL, PRIOR, REQUEST, train
from vqfast.models import VQVAE
from vqfast.pipeline import (
    PriorTraining,
    Run,
    Training,
    bits_per_code,
    encode,
    measure_reconstruction,
    reopen_parts,
    report,
    sample,
    stage_codes,
    train_priors,
    train_second_stage,
)
from vqfast.pipeline import pages as module
from vqfast.pipeline.pages import write_report
from vqfast.pipeline.pages.contents import Contents
from vqfast.pipeline.ranks import ALONE
from vqfast.priors.base import CausalPrior

SECTIONS = ["figures", "curves", "reconstructions", "samples", "codebook", "random", "settings", "commands"]


def copied(run: Run, folder: Path, *left_out: str) -> Run:
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns(".lock", *left_out))
    return Run(folder, lock=False)


@pytest.fixture(scope="module")
def whole(trained: Run, prior: CausalPrior, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with all stages done."""
    run = copied(trained, tmp_path_factory.mktemp("pages") / "run", "samples")
    sample(run, [prior], REQUEST, seed=4)  # the samples of ``trained`` are in smaller shards
    return run


@pytest.fixture
def copy(whole: Run, tmp_path: Path) -> Run:
    """A run with all stages done, to change."""
    return copied(whole, tmp_path / "copy")


@pytest.fixture(scope="module")
def page(whole: Run) -> Page:
    return Page(report(whole))


def test_a_page_has_all_sections(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and [link["href"] for link in page.all("a")] == [
        f"#{i}" for i in SECTIONS
    ]
    assert list(page.text) == ["", *SECTIONS] and set(SECTIONS) <= set(ids) and not page.missing
    assert len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    assert all("aria-label" in svg or svg.get("aria-hidden") == "true" for svg in page.all("svg"))


def test_a_page_needs_nothing_but_itself(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "form"} & {name for name, _ in page.elements}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))


def test_figures_are_those_of_the_run(page: Page, whole: Run, vqvae: VQVAE, prior: CausalPrior) -> None:
    figures = measure_reconstruction(vqvae, reopen_parts(whole)["held-out"])
    bits = bits_per_code([prior], stage_codes(whole, "codes/held-out")).mean()
    told = page.text["figures"]
    for value in (f"{figures['psnr']:.4g}", f"{figures['perplexity']:.4g}", f"{bits:.3f}"):
        assert value in told
    counts = stage_codes(whole, "codes/train").all()[0][0].flatten().bincount(minlength=8)
    assert f"{int((counts == 0).sum())} of 8" in told
    assert f"In 45 training items, {int((counts > 0).sum())} of 8 codes are used" in page.text["codebook"]


def test_pictures_are_those_of_the_run(page: Page, whole: Run, vqvae: VQVAE) -> None:
    x = Contents(whole).some(12).batch(range(12))
    indices = vqvae.encode(x)
    outputs = vqvae.decode(indices).clamp(0, 1)
    pictures = page.pictures()
    for i in range(12):
        original, reconstruction, codes = (np.asarray(picture) for picture in pictures[3 * i : 3 * i + 3])
        np.testing.assert_array_equal(original, (x[i, 0] * 255).round().byte())
        np.testing.assert_array_equal(reconstruction, (outputs[i, 0] * 255).round().byte())
        assert codes.shape == (2, 3, 3)
        same = (codes[:, :, None, None] == codes[None, None]).all(-1)
        np.testing.assert_array_equal(same, indices[i][:, :, None, None] == indices[i][None, None])
    samples, labels = stage_codes(whole, "samples").all()
    first = vqvae.decode(samples[0][labels == 1][:1]).clamp(0, 1)
    np.testing.assert_array_equal(np.asarray(pictures[36 + 7]), (first[0, 0] * 255).round().byte())
    assert [group["aria-label"] for group in page.all("div") if group.get("role") == "group"][:3] == [
        f"7 samples of class {label}" for label in range(3)
    ]


def test_items_are_spread_over_the_data(whole: Run) -> None:
    held_out = reopen_parts(whole)["held-out"]
    some = Contents(whole).some(3)
    assert torch.equal(some.batch([0, 2]), held_out.batch([0, 14])) and len(some) == 3
    assert some.labels is not None and held_out.labels is not None
    assert some.labels.tolist() == held_out.labels[[0, 7, 14]].tolist()
    assert len(Contents(whole).some(99)) == 15


def test_a_run_without_samples_draws_some(copy: Run) -> None:
    marker = copy.folder / "run.json"
    settings = json.loads(marker.read_text())
    del settings["stages"]["samples"]
    marker.write_text(json.dumps(settings))
    page = Page(report(copy))
    assert not page.missing and "drawn for this page" in page.text["samples"]
    assert "8 samples of class 2" in [group.get("aria-label") for group in page.all("div")]


def test_a_run_of_several_levels(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    small = {"residual_channels": 4, "num_downsamplings": 1}
    model = train(run, data, model="vqvae2", model_options=small, steps=2)
    for part, images in reopen_parts(run).items():
        encode(run, model, images, part=part)
    train_priors(run, level=0, prior_options=PRIOR, training=PriorTraining(steps=2))
    page = Page(report(run))
    assert set(page.missing) == {"samples"} and "prior-1" in page.missing["samples"]
    assert page.text["figures"].count("Bits per code, level") == 1
    train_priors(run, level=1, prior_options=PRIOR, training=PriorTraining(steps=2))
    page = Page(report(run))
    assert not page.missing and "2 x 3 and 4 x 6 codes" in page.text["reconstructions"]
    assert page.text["figures"].count("Bits per code, level") == 2 and "Prior, level 1" in page.text["curves"]
    assert "Use of codes, level 1" in page.text["codebook"] and "--level 1" in page.text["commands"]
    assert [picture.size for picture in page.pictures()[2:4]] == [(3, 2), (6, 4)]


def test_a_run_of_codes_of_codes(data: Path, tmp_path: Path) -> None:
    first, run = (Run(tmp_path / name, create=True) for name in ("first", "second"))
    train(first, data, model_options={"num_downsamplings": 1})
    small = {**MODEL, "num_downsamplings": 1, "num_residual_blocks": 1}
    model = train_second_stage(run, first, model_options=small, training=Training(steps=2))
    for part, images in reopen_parts(run).items():
        encode(run, model, images, part=part)
    train_priors(run, prior_options=PRIOR, training=PriorTraining(steps=2))
    page = Page(report(run))
    assert not page.missing and "2 x 3 and 4 x 6 codes" in page.text["reconstructions"]
    assert "vqfast train-second-stage --run FIRST --model" in page.text["commands"]


def test_a_run_that_only_trains(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    train(run, data)
    page = Page(report(run))
    assert set(page.missing) == {"samples"} and "train the prior first" in page.missing["samples"]
    assert "train-prior" not in page.text["commands"]
    (run.folder / "vqvae.safetensors").unlink()
    page = Page(report(run))
    assert set(page.missing) == {"figures", "reconstructions", "samples", "codebook", "random"}
    assert "VQ-VAE: 12 of 12 steps" in page.text[""]


MARKUP = "<script>alert(1)</script><b onclick='x'>&amp;\x00\udcff"


def test_nothing_of_a_run_becomes_markup(whole: Run, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    copied(whole, folder)
    marker = folder / "run.json"
    run = json.loads(marker.read_text())
    run["stages"]["data"]["classes"] = [MARKUP] * 3
    run["stages"]["vqvae"][MARKUP] = {"a": [MARKUP], "x": "y" * 10_000}
    run["stages"][MARKUP] = {f"n{i}": i for i in range(1000)}
    marker.write_text(json.dumps(run))
    csv = folder / "prior.csv"
    csv.write_text(csv.read_text().replace("bits_per_code", "<b>bits</b>"))
    page = Page(report(Run(folder, lock=False)))
    assert not page.missing
    assert page.text[""].count("<script>alert(1)</script>") >= 6 and "<b>bits</b>" in page.text["curves"]
    assert folder.name in page.text[""] and "and 900 more" in page.text["settings"]
    test_a_page_needs_nothing_but_itself(page)
    assert not page.all("b") or all(not attributes for attributes in page.all("b"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_bytes(b'[{"step": 1}]\n"x,\xff')


@pytest.mark.parametrize(
    "name, sections",
    [
        ("vqvae.safetensors", "figures reconstructions samples codebook random"),
        ("vqvae.config.json", "figures reconstructions samples codebook random"),
        ("prior.safetensors", "figures"),
        ("vqvae.csv", "curves"),
        ("prior.csv", "curves"),
        ("codes/train/00000.npz", "figures codebook"),
        ("samples/00000.npz", "samples"),
    ],
)
@pytest.mark.parametrize("damage", [cut, emptied, other, Path.unlink])
def test_what_is_damaged_is_named(
    copy: Run, name: str, sections: str, damage: Callable[[Path], None]
) -> None:
    damage(copy.folder / name)
    page = Page(report(copy))
    assert set(page.missing) == set(sections.split())
    assert all(Path(name).name in line for line in page.missing.values())


def test_a_run_without_a_prior(copy: Run) -> None:
    (copy.folder / "prior.safetensors").unlink()
    page = Page(report(copy))
    assert set(page.missing) == {"figures"} and "PSNR" in page.text["figures"]  # the samples are there


def test_data_that_is_gone(copy: Run) -> None:
    marker = copy.folder / "run.json"
    marker.write_text(marker.read_text().replace("x.npy", "gone.npy"))
    page = Page(report(copy))
    assert set(page.missing) == {"figures", "reconstructions", "random"}
    assert all("gone.npy" in line for line in page.missing.values())


def test_comparison(whole: Run, data: Path, tmp_path: Path) -> None:
    other = Run(tmp_path / "run", create=True)
    train(other, data, model_options={"num_embeddings": 16}, lr=2e-3)
    page = Page(report(whole, other))
    assert list(page.text) == ["", "figures", "differences", "curves", "reconstructions"] and not page.missing
    differences = page.text["differences"]
    assert "run (2)" in differences and "vqvae.num_embeddings" in differences and "0.002" in differences
    assert "vqvae.batch_size" not in differences
    assert len(page.pictures()) == 3 * 12
    assert any("run (2) training" in svg.get("aria-label", "") for svg in page.all("svg"))
    (other.folder / "vqvae.safetensors").unlink()
    (other.folder / "vqvae.csv").write_text("step\nx")
    page = Page(report(whole, other))
    assert set(page.missing) == {"figures", "curves", "reconstructions"} and len(page.pictures()) == 2 * 12
    assert all(line.startswith("run (2): ") for line in page.missing.values())
    with pytest.raises(TypeError, match="runs is empty"):
        report()


def renew(path: Path) -> None:
    later = path.stat().st_mtime + 3600
    os.utime(path, (later, later))


def test_a_step_writes_the_page_of_new_weights(
    copy: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = copy.folder / "report.html"
    monkeypatch.setattr(module, "report", lambda run, ranks: b"page")
    write_report(copy, ALONE)
    assert made.read_bytes() == b"page"
    monkeypatch.setattr(module, "report", lambda run, ranks: b"later")
    write_report(copy, ALONE)
    assert made.read_bytes() == b"page"  # as no weights are newer
    renew(copy.folder / "prior.safetensors")
    write_report(copy, ALONE)
    assert made.read_bytes() == b"later" and caplog.messages == []
    renew(copy.folder / "prior.safetensors")

    def fails(run: Run, ranks: object) -> bytes:
        raise RuntimeError("no memory\nleft")

    monkeypatch.setattr(module, "report", fails)
    write_report(copy, ALONE)
    (message,) = caplog.messages
    assert message.startswith("report: ") and message.endswith("report.html can't be written: no memory left")
    assert made.read_bytes() == b"later"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_pages_in_a_browser(whole: Run, data: Path, tmp_path: Path) -> None:
    other = Run(tmp_path / "other", create=True)
    train(other, data, lr=2e-3)
    pages = {tmp_path / "one.html": (whole,), tmp_path / "two.html": (whole, other)}
    for path, runs in pages.items():
        path.write_bytes(report(*runs))
    with Chromium(tmp_path / "profile") as browser:
        for path in pages:
            for width, dark in ((390, False), (1280, True)):
                browser.open(path, width=width, dark=dark)
                requests = [sent["request"]["url"] for sent in browser.said("Network.requestWillBeSent")]
                assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
                for kind in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                    assert not browser.said(kind)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
                assert browser.evaluate(broken) == 0 < browser.evaluate("document.images.length")
                ground = "getComputedStyle(document.body).backgroundColor"
                assert browser.evaluate(ground) == ("rgb(18, 20, 23)" if dark else "rgb(247, 247, 245)")
