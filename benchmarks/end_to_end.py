"""The way from images to new ones: an epoch of training, tokens, samples.

The eager contender has the same model around the common quantiser, and draws by the naive loop. Floor: the
products and convolutions of the eager model; of samples, the visible taps' and the decoder's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast
from benchmarks.core import Call, Case, Floor, Outputs, counted
from benchmarks.layer import EagerVQ
from benchmarks.machine import DEVICE
from benchmarks.sampling import NAIVE_POSITIONS, flop, naive

BATCH = 32


def model(kind: str, hidden: int) -> nn.Module:
    """The paper's VQ-VAE with our quantiser or the common one; the same weights."""
    vqvae = vqfast.VQVAE.named("paper", hidden_channels=hidden)
    if kind == "eager":
        vqvae.vq = EagerVQ(vqvae.vq.codebook.detach())
    return vqvae.to(DEVICE)


def epoch(kind: str, hidden: int, dtype: torch.dtype = torch.float32) -> Call:
    """Adam over all batches; the last loss."""
    vqvae = model(kind, hidden).to(dtype)
    optimizer = torch.optim.Adam(vqvae.parameters(), 2e-4)

    def run(images: Tensor) -> Tensor:
        for batch in images.split(BATCH):
            optimizer.zero_grad()
            reconstruction, _, loss = vqvae(batch)
            loss = loss + F.mse_loss(reconstruction, batch)
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run


def tokenise(kind: str, hidden: int) -> Call:
    """All codes."""
    vqvae = model(kind, hidden).eval()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        parts = images.split(BATCH)
        if kind == "vqfast":
            return torch.cat([vqvae.encode(part) for part in parts])
        return torch.cat([vqvae.vq(vqvae.encoder(part))[1] for part in parts])

    return run


def prior() -> vqfast.PixelCNN:
    """A gated one."""
    return vqfast.PixelCNN(512, 64, 15)


def generate(kind: str, hidden: int, num: int, side: int) -> Call:
    """Codes from a gated prior and their images; the naive loop is cut short and decodes nothing."""
    if kind == "eager":
        return naive(prior, num, (side, side))
    draw, vqvae = prior().to(DEVICE).eval().sample, model(kind, hidden).eval()
    return torch.no_grad()(lambda seed: vqvae.decode(draw(num, (side, side), seed=seed)))


def drawing(hidden: int, num: int, side: int, _: int) -> Floor:
    """Of ``generate``."""
    decode = torch.no_grad()(model("vqfast", hidden).eval().decode)
    codes = torch.zeros(num, side, side, dtype=torch.int64, device=DEVICE)
    return Floor(num * flop(prior(), (side, side)) + counted(lambda: decode, codes).flop)


def right_loss(hidden: int, images: Tensor, outputs: Outputs) -> None:
    """All train as the common model does in float64."""
    torch.manual_seed(0)  # as the contenders' weights
    want = epoch("eager", hidden, torch.float64)(images.double())
    for name, loss in outputs.items():
        torch.testing.assert_close(loss.double(), want, rtol=1e-2, atol=0, msg=name)


def right_codes(hidden: int, images: Tensor, outputs: Outputs) -> None:
    """The first images' codes are the nearest in float64, but for what rounding in the encoder decides."""
    torch.manual_seed(0)  # as the contenders' weights
    vqvae = model("vqfast", hidden).double().eval()
    with torch.no_grad():
        z_e = vqvae.encoder(images[:2].double()).movedim(1, -1)
        distances = torch.cdist(z_e.flatten(0, 2), vqvae.vq.codebook)
    want = distances.argmin(1).view(z_e.shape[:-1])
    for name, codes in outputs.items():
        agree = (codes[:2] == want).double().mean()
        assert agree > 0.99, f"{name}: {agree:.1%} of the codes are right"


def finite_images(num: int, _: int, outputs: Outputs) -> None:
    """What the samplers draw is checked in ``sampling``."""
    for name, images in outputs.items():
        if images is not None:  # the naive loop, cut short
            assert len(images) == num and images.isfinite().all(), f"{name}'s images"


def cases(num: int, side: int, hidden: int) -> list[Case]:
    """Of ``num`` colour images of ``side`` x ``side``, by a model of ``hidden`` channels."""
    shape = {"images": num, "side": side, "hidden": hidden}

    def case(name: str, build: Callable[..., Call], check: Callable, data: Callable, *more: int) -> Case:
        contenders = {kind: partial(build, kind, hidden, *more) for kind in ("vqfast", "eager")}
        parts = {"eager": NAIVE_POSITIONS / more[1] ** 2} if more else {}
        floor = partial(drawing, hidden, *more) if more else partial(counted, contenders["eager"])
        return Case(f"{name}, {num} images, {side}x{side}", shape, contenders, data, check, floor, parts)

    def images() -> Tensor:
        return torch.rand(num, 3, side, side, device=DEVICE)

    def seed() -> int:
        return int(torch.randint(2**31, ()))

    return [
        case("train one epoch", epoch, partial(right_loss, hidden), images),
        case("tokenise", tokenise, partial(right_codes, hidden), images),
        case("sample and decode", generate, partial(finite_images, num), seed, num, side // 4),
    ]


CASES = cases(256, 32, 128)
