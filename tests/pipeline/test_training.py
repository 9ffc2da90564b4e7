from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vqfast.data import Images, load_images
from vqfast.models import VQVAE
from vqfast.pipeline import Ranks, loop
from vqfast.pipeline.batches import batch_numbers, step_seed
from vqfast.pipeline.loop import History, Share, Task, fit
from vqfast.pipeline.options import Training
from vqfast.pipeline.prior_training import prior_task
from vqfast.pipeline.ranks import ALONE
from vqfast.pipeline.vqvae_task import vqvae_task
from vqfast.priors import PixelCNN, ResidualPixelCNN
from vqfast.priors.base import CausalPrior
from vqfast.saving.storage import read_tensors, write_tensors

CODES = torch.randint(8, (20, 3, 3), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """40 images of 8x8, each of about one of 16 greys."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 16, (40, 1, 1)) * 15 + rng.integers(0, 10, (40, 8, 8))
    path = tmp_path_factory.mktemp("images") / "x.npy"
    np.save(path, pixels.astype(np.uint8))
    return load_images(str(path))


# batches


@given(
    num=st.integers(1, 30),
    batch_size=st.integers(1, 70),
    first=st.integers(0, 50),
    seed=st.integers(0, 2**80),
)
def test_every_epoch_visits_each_item_once(num: int, batch_size: int, first: int, seed: int) -> None:
    steps = range(first, first + -(-2 * num // batch_size) + 1)
    stream = torch.cat([batch_numbers(num, batch_size, step, seed) for step in steps])
    assert len(stream) == len(steps) * batch_size and stream.dtype == torch.int64
    start = -first * batch_size % num  # where an epoch begins
    for epoch in stream[start:].split(num):
        if len(epoch) == num:
            assert epoch.sort().values.tolist() == list(range(num))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    epochs = [
        tuple(batch_numbers(30, 30, epoch, seed).tolist())
        for epoch in range(5)
        for seed in (0, 1, 4096, 2**32 - 1)
    ]
    assert len(set(epochs)) == 20


def test_steps_and_seeds_draw_numbers_of_their_own() -> None:
    drawn = set()
    for seed in (0, 1, 2**32 - 1):
        for step in range(5):
            torch.manual_seed(step_seed(seed, step))
            drawn.add(torch.rand(()).item())
    assert len(drawn) == 15


# fit


def vqvae(name: str = "paper", **overrides: Any) -> VQVAE:
    torch.manual_seed(0)
    small = {"in_channels": 1, "hidden_channels": 8, "num_embeddings": 8, "embedding_dim": 4}
    return VQVAE.named(name, **{**small, **overrides})


def prior(cls: type[CausalPrior] = PixelCNN, **overrides: Any) -> CausalPrior:
    torch.manual_seed(0)
    return cls(8, channels=4, num_layers=2, head_channels=4, **overrides)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "gradient": vqvae,
    "average": lambda: vqvae(decay=0.9),
    "batch norm": lambda: vqvae("ruseckas", num_downsamplings=2),
    "prior": lambda: prior(num_classes=3),
}
STEPS = 13


def trained(
    model: nn.Module,
    images: Images,
    state: Path,
    **options: Any,
) -> History:
    settings = {"steps": STEPS, "batch_size": 6, "lr": 1e-2, "seed": 3, **options}
    ranks = settings.pop("ranks", ALONE)
    training = Training(**settings)
    if isinstance(model, VQVAE):
        task = vqvae_task(model, images, ALONE)
    else:
        labels = torch.arange(len(CODES)) % 3 if model.num_classes else None
        task = prior_task(model, [CODES], labels, ALONE)
    return fit(model, task, training, file=state, ranks=ranks)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


class Stopped(BaseException):
    pass


@contextmanager
def stopped_at(last: int) -> Iterator[None]:
    """Ends the training as step ``last`` begins."""

    def numbers(num: int, batch_size: int, step: int, seed: int) -> Tensor:
        if step >= last:
            raise Stopped
        return batch_numbers(num, batch_size, step, seed)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop, "batch_numbers", numbers)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_step_it_ends_with_the_same_bits(kind: str, images: Images, tmp_path: Path) -> None:
    whole = KINDS[kind]()
    untrained = copy.deepcopy(whole)
    history = trained(whole, images, tmp_path / "whole")
    assert history["step"] == [0, 10, 12] and not same(whole, untrained)
    for last in range(STEPS):
        state = tmp_path / f"{last}"
        with stopped_at(last):
            trained(KINDS[kind](), images, state)
        assert state.is_file() == (last > 0)
        torch.manual_seed(last)  # nothing depends on the generator
        again = KINDS[kind]()
        assert trained(again, images, state) == history
        assert same(again, whole)


def test_stopped_at_every_step_in_turn(images: Images, tmp_path: Path) -> None:
    whole, model = vqvae(decay=0.9), vqvae(decay=0.9)
    history = trained(whole, images, tmp_path / "whole")
    for last in range(STEPS):
        with stopped_at(last):
            trained(vqvae(decay=0.9), images, tmp_path / "state")
    assert trained(model, images, tmp_path / "state") == history and same(model, whole)


def test_a_state_is_saved_now_and_then(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 15.0)
    steps: list[int] = []
    monkeypatch.setattr(loop.State, "save", lambda self, file: steps.append(self.step))
    trained(vqvae(), images, tmp_path / "state")
    assert steps == [STEPS]  # at the end alone: it took less


@contextmanager
def signalled_at(last: int, *numbers: int) -> Iterator[None]:
    """Sends this process signals while step ``last`` runs."""

    def batch(num: int, batch_size: int, step: int, seed: int) -> Tensor:
        if step == last:
            for number in numbers:
                signal.raise_signal(number)
        return batch_numbers(num, batch_size, step, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "batch_numbers", batch)
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("last", [0, 7, STEPS - 1])
def test_a_signal_ends_the_training_when_its_step_is_saved(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, last: int
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)
    state, whole, model = tmp_path / "state", vqvae(decay=0.9), vqvae(decay=0.9)
    history = trained(whole, images, tmp_path / "whole")

    def leave(received: int, frame: object) -> None:
        assert state.is_file()  # so the signal acts after it is saved
        raise Stopped(received)

    before = signal.signal(number, leave)
    try:
        with signalled_at(last, number), pytest.raises(Stopped, match=str(int(number))):
            trained(vqvae(decay=0.9), images, state)
        assert signal.getsignal(number) is leave
    finally:
        signal.signal(number, before)
    progress = bytes(read_tensors(state)["progress"].tolist())
    assert progress.startswith(b'{"step": %d,' % (last + 1))
    assert trained(model, images, state) == history and same(model, whole)


def test_a_second_signal_acts_at_once(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)
    with signalled_at(3, signal.SIGINT, signal.SIGINT), pytest.raises(KeyboardInterrupt):
        trained(vqvae(), images, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_an_ignored_signal_stays_so(images: Images, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signalled_at(3, signal.SIGINT):
            trained(vqvae(), images, tmp_path / "state")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_trains_without_signals(images: Images, tmp_path: Path) -> None:
    whole, model = vqvae(), vqvae()
    history = trained(whole, images, tmp_path / "whole")
    with ThreadPoolExecutor() as pool:
        assert pool.submit(trained, model, images, tmp_path / "state").result() == history
    assert same(model, whole)


def test_seeds(images: Images, tmp_path: Path) -> None:
    models = [vqvae() for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        trained(model, images, tmp_path / f"{number}", seed=seed)
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_adam_decays_to_zero_by_a_cosine(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    before, steps, lr = model.weight.item(), 20, 1e-2
    positions: list[float] = []

    def metrics(step: int, batch: Share) -> dict[str, Tensor]:
        positions.append(model.weight.item())
        return {"loss": model.weight.sum()}  # a gradient of 1: so Adam moves by its lr

    task = Task("", 1, lambda share: share, metrics)
    training = Training(steps=steps, batch_size=1, lr=lr, schedule="cosine")
    fit(model, task, training, file=tmp_path / "state", ranks=ALONE)
    moves = -np.diff([*positions, model.weight.item()])
    assert positions[0] == before
    np.testing.assert_allclose(
        moves, [lr * (1 + math.cos(math.pi * s / steps)) / 2 for s in range(steps)], rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; want a positive integer"),
        ({"steps": -1}, "steps is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": 0.0}, "lr is 0.0; want a finite number, above 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"ranks": Ranks(0, 7)}, "batch_size is 6; want 7"),
        ({"lr": 1e30, "steps": 30}, r"the loss is \S+ at step \d+: try a smaller lr"),
    ],
)
def test_bad_arguments(images: Images, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(vqvae(), images, tmp_path / "state", **options)


def test_states_of_something_else(images: Images, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with stopped_at(2):
        trained(vqvae(), images, state)
    right = state.read_bytes()
    tensors = read_tensors(state)

    def refused(message: str, model: nn.Module) -> None:
        before = state.read_bytes()
        with pytest.raises(ValueError, match=message):
            trained(model, images, state)
        assert state.read_bytes() == before

    for model in (vqvae(hidden_channels=4), vqvae(decay=0.9), vqvae("keras"), prior()):
        refused("state is no state of this training; remove it to start anew", model)
    for length in (0, 100, len(right) - 1):
        state.write_bytes(right[:length])
        refused("no whole safetensors file", vqvae())
    history = bytes(tensors["progress"].tolist()).partition(b'"history":')[2][:-1]
    for progress in (
        *(b"{", b"{}", b"[]", b"1", b"\xff", b"[" * 100_000, b'{"step": 2, "history": 3}'),
        *(
            b'{"step": %s, "history": %s}' % (step, history)
            for step in (b'"2"', b"-1", b"2.5", b"10000000", b"null")
        ),
        *(
            b'{"step": 2, "history": {"loss": %s}}' % column
            for column in (b"3", b'["x"]', b'[1], "mse": [1, 2]')
        ),
    ):
        text = torch.frombuffer(bytearray(progress), dtype=torch.uint8)
        write_tensors(state, {**tensors, "progress": text})
        refused("no state of this training", vqvae())
    for name in ("adam.0.exp_avg", "adam.0.step", "adam.99.step", "adam.0.other"):
        write_tensors(state, {**tensors, name: torch.zeros(7)})
        refused("no state of this training", vqvae())
    del tensors["progress"]
    write_tensors(state, tensors)
    refused("no state of this training", vqvae())


# what is learned


@pytest.mark.slow
def test_vqvae_learns(images: Images, tmp_path: Path) -> None:
    model = vqvae(decay=0.9)
    history = trained(model, images, tmp_path / "state", steps=150, batch_size=20)
    assert list(history) == ["step", "loss", "mse", "perplexity", "dead_codes"]
    assert {len(column) for column in history.values()} == {16}
    assert history["mse"][-1] < history["mse"][0] / 10
    assert 4 < history["perplexity"][-1] <= 8


@pytest.mark.slow
@pytest.mark.parametrize("cls", [PixelCNN, ResidualPixelCNN])
def test_prior_learns(cls: type[CausalPrior], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = cls(4, channels=8, num_layers=2, num_classes=4)
    labels = torch.arange(40) % 4
    codes = labels[:, None, None].expand(-1, 2, 2)  # the label says it all
    task = prior_task(model, [codes], labels, ALONE)
    training = Training(steps=150, batch_size=20, lr=1e-2)
    history = fit(model, task, training, file=tmp_path / "state", ranks=ALONE)
    assert list(history) == ["step", "loss", "bits_per_code"]
    np.testing.assert_allclose(history["bits_per_code"], np.array(history["loss"]) / math.log(2))
    assert history["bits_per_code"][0] > 1.5 and history["bits_per_code"][-1] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_start_from_data_uses_most_codes_and_a_random_one_leaves_them_alone(
    images: Images, tmp_path: Path, decay: float | None
) -> None:
    in_use = {}
    for start in (True, False):
        model = vqvae(num_embeddings=16, decay=decay, kmeans_init=start, revive_below=float(start))
        trained(model, images, tmp_path / f"{start}", steps=120, lr=2e-3)
        codes = model.eval().encode(images.batch(range(len(images))))
        in_use[start] = len(codes.unique())
    assert in_use[True] >= 13 > 8 >= in_use[False]
