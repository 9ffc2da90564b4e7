"""The whole pipeline: an epoch of training, tokenising images, and drawing new ones.

The eager contender is the same model around the usual quantiser, in torch's default memory format, with
ReLUs and Adam as they come; it draws by the naive loop. vqfast trains as its command line does: channels
last, Adam's fused step, ReLUs in place, and in bfloat16 where that is asked for. Floor: the products and
convolutions of the eager model in float32; for drawing, those of visible taps and of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast
from benchmarks.core import Call, Case, Floor, Outputs, counted
from benchmarks.layer import STILL, EagerVQ
from benchmarks.machine import DEVICE
from benchmarks.sampling import floor, naive, naive_positions

BATCH = 32
BFLOAT16 = "vqfast, bfloat16"


def model(kind: str, hidden: int) -> vqfast.VQVAE:
    """The paper's VQ-VAE with vqfast's quantiser or the eager one; both have the same weights."""
    vqvae: Any = vqfast.VQVAE.named("paper", hidden_channels=hidden, **STILL)
    if kind == "eager":
        vqvae.add_module("vq", EagerVQ(vqvae.vq.codebook.detach()))
        vqvae.encoder._forward_pre_hooks.clear()  # images stay in torch's default memory format
        for module in vqvae.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
    moved: vqfast.VQVAE = vqvae.to(DEVICE)
    return moved


def epoch(kind: str, hidden: int, dtype: torch.dtype = torch.float32) -> Call:
    """One epoch of training with Adam; returns the last loss."""
    vqvae = model(kind, hidden).to(dtype)
    optimizer = torch.optim.Adam(vqvae.parameters(), 2e-4, fused=kind != "eager")
    autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind == BFLOAT16)

    def run(images: Tensor) -> Tensor:
        for batch in torch.split(images, BATCH):
            optimizer.zero_grad()
            with autocast:
                reconstruction, _, vq_loss = vqvae(batch)
            loss: Tensor = vq_loss + F.mse_loss(reconstruction.to(dtype), batch)
            torch.autograd.backward(loss)
            optimizer.step()
        return loss.detach()

    return run


def tokenise(kind: str, hidden: int) -> Call:
    """The codes of all images."""
    vqvae = model(kind, hidden).eval()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        parts = torch.split(images, BATCH)
        if kind == "vqfast":
            return torch.cat([vqvae.encode(part) for part in parts])
        return torch.cat([vqvae.vq(vqvae.encoder(part))[1] for part in parts])

    return run


def prior() -> vqfast.PixelCNN:
    """The gated PixelCNN that draws the codes."""
    return vqfast.PixelCNN(512, 64, 15)


def generate(kind: str, hidden: int, num: int, side: int) -> Call:
    """Draws codes and decodes them. The naive loop stops after its first positions and decodes nothing."""
    if kind == "eager":
        return naive(prior, num, (side, side))
    drawn, vqvae = prior().to(DEVICE).eval(), model(kind, hidden).eval()

    @torch.no_grad()
    def run(seed: int) -> Tensor:
        return vqvae.decode(drawn.sample(num, (side, side), seed=seed))

    return run


def drawing(hidden: int, num: int, side: int, _: int) -> Floor:
    """The floor of ``generate``."""
    decode = model("vqfast", hidden).eval().decode
    codes = torch.zeros(num, side, side, dtype=torch.int64, device=DEVICE)
    with torch.no_grad():
        decoding = counted(lambda: decode, codes)
    return Floor(floor(prior(), num, (side, side)).flop + decoding.flop)


def right_loss(hidden: int, images: Tensor, outputs: Outputs) -> None:
    """All losses equal the eager model's in float64, to 1 %."""
    torch.manual_seed(0)  # as the contenders' weights
    want = epoch("eager", hidden, torch.float64)(images.double())
    for name, loss in outputs.items():
        torch.testing.assert_close(loss.double(), want, rtol=1e-2, atol=0, msg=name)


def right_codes(hidden: int, images: Tensor, outputs: Outputs) -> None:
    """The first images' codes equal float64's; 1 % may differ, because the encoder rounds."""
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
    """The images are finite; the suite ``sampling`` checks the codes."""
    for name, images in outputs.items():
        if images is not None:  # the naive loop, cut short
            assert len(images) == num and images.isfinite().all(), f"{name}'s images"


def cases(num: int, side: int, hidden: int) -> list[Case]:
    """``num`` colour images of ``side`` x ``side``, a model of ``hidden`` channels."""
    shape = {"images": num, "side": side, "hidden": hidden}

    def case(
        name: str,
        build: Callable[..., Call],
        check: Callable[[Any, Outputs], None],
        data: Callable[[], Any],
        *more: int,
        kinds: Sequence[str] = ("vqfast", "eager"),
    ) -> Case:
        contenders = {kind: partial(build, kind, hidden, *more) for kind in kinds}
        parts = {"eager": naive_positions((more[1], more[1])) / more[1] ** 2} if more else {}
        floor = partial(drawing, hidden, *more) if more else partial(counted, contenders["eager"])
        return Case(f"{name}, {num} images, {side}x{side}", shape, contenders, data, check, floor, parts)

    def images() -> Tensor:
        return torch.rand(num, 3, side, side, device=DEVICE)

    def seed() -> int:
        return int(torch.randint(2**31, ()))

    trained = ("vqfast", BFLOAT16, "eager")
    return [
        case("train one epoch", epoch, partial(right_loss, hidden), images, kinds=trained),
        case("tokenise", tokenise, partial(right_codes, hidden), images),
        case("sample and decode", generate, partial(finite_images, num), seed, num, side // 4),
    ]


PAPER = replace(cases(64, 64, 256)[0], slow=("vqfast",))  # its sizes take a minute
CASES = [*cases(256, 32, 128), PAPER]
