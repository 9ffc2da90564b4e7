"""The named models are those of their sources, written here in plain torch from the sources' words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.models import VQVAE


def block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


class PlainRuseckas(nn.Module):
    """The notebook "vq-vae": images of 128x128 to 4x4 codes and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *block(3, 16),
            *[nn.MaxPool2d(2), *block(16, 32)],
            *[nn.MaxPool2d(2), *block(32, 64)],
            *[nn.MaxPool2d(2), *block(64, 128)],
            *[nn.MaxPool2d(2), *block(128, 256)],
            *[nn.MaxPool2d(2), *block(256, 512)],
            *block(512, 16),
        )
        self.codebook = nn.Parameter(torch.empty(256, 16))
        self.decoder = nn.Sequential(
            *block(16, 512),
            *[nn.UpsamplingNearest2d(scale_factor=2), *block(512, 256)],
            *[nn.UpsamplingNearest2d(scale_factor=2), *block(256, 128)],
            *[nn.UpsamplingNearest2d(scale_factor=2), *block(128, 64)],
            *[nn.UpsamplingNearest2d(scale_factor=2), *block(64, 32)],
            *[nn.UpsamplingNearest2d(scale_factor=2), *block(32, 16)],
            nn.Conv2d(16, 3, 3, 1, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x)
        flat = z.movedim(1, -1)
        indices = torch.cdist(flat.flatten(0, 2), self.codebook).argmin(1).view(flat.shape[:-1])
        q = self.codebook[indices].movedim(-1, 1)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        reconstruction = self.decoder(z + (q - z).detach())
        return reconstruction, indices, F.mse_loss(reconstruction, x) + 0.1 * loss


def copy_in_order(plain: nn.Module, model: nn.Module) -> None:
    """Copies parameters and buffers, which must have the same shapes in the same order."""
    ours, theirs = list(model.state_dict().values()), list(plain.state_dict().values())
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        mine.copy_(other)


def test_parameters_of_the_named_models() -> None:
    counts = {name: sum(p.numel() for p in VQVAE.named(name).parameters()) for name in VQVAE.CONFIGS}
    assert counts["keras"] == 49_937 and counts["ruseckas"] == 3_299_139


def test_ruseckas_is_the_notebooks_model() -> None:
    """The same outputs, loss and gradients under the same weights, in training."""
    torch.manual_seed(0)
    plain, model = PlainRuseckas().double(), VQVAE.named("ruseckas", dtype=torch.float64)
    for part, other in ((plain.encoder, model.encoder), (plain.decoder, model.decoder)):
        copy_in_order(part, other)
    x = torch.rand(3, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():  # code vectors near the encoder's output, so that many are used
        z = plain.encoder.eval()(x).movedim(1, -1).flatten(0, -2)
        plain.codebook.copy_(z[torch.randint(len(z), (256,))] + 0.1 * torch.rand(256, 16))
        model.vq.set_codebook(plain.codebook.detach())
    plain.train()
    reconstruction, indices, loss = plain(x)
    out = model(x)
    assert torch.equal(out.indices, indices) and len(indices.unique()) > 5
    torch.testing.assert_close(out.reconstruction, reconstruction)
    whole = F.mse_loss(out.reconstruction, x) + out.loss
    torch.testing.assert_close(whole, loss)
    loss.backward()
    whole.backward()
    for part, other in ((plain.encoder, model.encoder), (plain.decoder, model.decoder)):
        for p, q in zip(part.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad)
    torch.testing.assert_close(model.vq.codebook.grad, plain.codebook.grad)


def test_ruseckas_starts_kaiming_normal() -> None:
    model = VQVAE.named("ruseckas")
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is None:
            expected = (2 / (9 * conv.in_channels)) ** 0.5
            assert abs(conv.weight.std().item() / expected - 1) < 0.15
            assert conv.weight.abs().max() > 2.3 * expected  # a uniform one would end at 1.7
    assert model.vq.codebook.abs().max() <= 1 / 256
