"""The named models are those of their sources, written here in plain torch from the sources' words."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.models import VQVAE, HierarchicalVQVAE


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
    model = HierarchicalVQVAE.named("ruseckas-hierarchical")
    assert sum(p.numel() for p in model.parameters()) == 6_834_826
    shapes = [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128)]
    assert model.code_shapes((128, 128)) == shapes
    assert [level.vq.codebook.shape for level in model.levels] == [(128, w) for w in (32, 16, 8, 4, 2, 1)]
    model = HierarchicalVQVAE.named("vqvae2")
    assert model.code_shapes((256, 256)) == [(32, 32), (64, 64)]
    assert [level.vq.extra_repr() for level in model.levels] == ["512, 64, decay=0.99"] * 2


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


def test_models_of_a_source_start_as_it_does_and_nothing_revives_their_codes() -> None:
    bounds = {"keras": 0.05, "ruseckas": 1 / 256}
    layers = [(VQVAE.named(name).vq, bound) for name, bound in bounds.items()]
    hierarchy = HierarchicalVQVAE.named("ruseckas-hierarchical", num_levels=3, image_size=16)
    layers += [(level.vq, 1 / 128) for level in hierarchy.levels]
    for vq, bound in layers:
        assert 0.9 * bound < vq.codebook.abs().max() <= bound
        before = vq.codebook.clone()
        vq(torch.randn(4, vq.embedding_dim, 3, 3))
        assert torch.equal(vq.codebook, before)
    assert VQVAE.named("keras", kmeans_init=True).vq.codebook.abs().max() <= 1 / 128  # the data replaces it


def test_images_are_computed_with_the_channels_last() -> None:
    for name, shape in {"paper": (3, 16, 16), "keras": (1, 16, 16), "ruseckas": (3, 64, 64)}.items():
        model = VQVAE.named(name, hidden_channels=64)
        out, z_e = model(torch.rand(2, *shape)), model.encoder(torch.rand(2, *shape))
        for computed in (out.reconstruction, z_e):
            assert computed.is_contiguous(memory_format=torch.channels_last)
    VQVAE.named("paper-video", hidden_channels=8)(torch.rand(1, 3, 4, 8, 8))


def test_ruseckas_starts_kaiming_normal() -> None:
    model = VQVAE.named("ruseckas")
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is None:
            expected = (2 / (9 * conv.in_channels)) ** 0.5
            assert abs(conv.weight.std().item() / expected - 1) < 0.15
            assert conv.weight.abs().max() > 2.3 * expected  # a uniform one would end at 1.7
    assert model.vq.codebook.abs().max() <= 1 / 256


class PlainHierarchy(nn.Module):
    """The notebook "Hierarchical VQ-VAE", with a level at each resolution."""

    def __init__(self, widths: tuple[int, ...], num_embeddings: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Sequential(*block(3, widths[0]))
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), *block(a, b)) for a, b in pairs)
        top_down = widths[::-1]
        self.constant = nn.Parameter(torch.full((1, top_down[0], size, size), 0.01))
        self.prior = nn.ModuleList(
            nn.Sequential(nn.ReLU(), *block(w, w), nn.Conv2d(w, num_embeddings, 1)) for w in top_down
        )
        self.to_codes = nn.ModuleList(nn.Sequential(*block(w, w // 16)[:2]) for w in top_down)
        self.codebook = nn.ParameterList(torch.randn(num_embeddings, w // 16) for w in top_down)
        self.from_codes = nn.ModuleList(nn.Sequential(*block(w // 16, w)) for w in top_down)
        self.gamma = nn.ParameterList(torch.zeros(()) for _ in top_down)
        self.up = nn.ModuleList(
            nn.Sequential(nn.UpsamplingNearest2d(scale_factor=2), *block(b, a)[:2]) for a, b in pairs[::-1]
        )
        self.last = nn.Sequential(*block(widths[0], 3)[:2], nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        features = [self.stem(x)]
        for down in self.down:
            features.append(down(features[-1]))
        state = self.constant.repeat(len(x), 1, 1, 1)
        grids, loss = [], torch.zeros((), dtype=x.dtype)
        for i, feature in enumerate(features[::-1]):
            if i:
                state = self.up[i - 1](state)
            z = self.to_codes[i](feature)
            flat = z.movedim(1, -1)
            grid = torch.cdist(flat.flatten(0, 2), self.codebook[i]).argmin(1).view(flat.shape[:-1])
            q = self.codebook[i][grid].movedim(-1, 1)
            loss = loss + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
            nats = F.cross_entropy(self.prior[i](state), grid, reduction="sum") / len(x)
            loss = loss + nats / grid[0].numel() * (grid[0].numel() / x[0].numel())
            grids.append(grid)
            state = (self.from_codes[i](z + (q - z).detach()) + self.gamma[i] * state).relu()
        return self.last(state), grids, loss

    def copy_into(self, model: HierarchicalVQVAE) -> None:
        copy_in_order(self.stem, model.encoder.stages[0])
        copy_in_order(self.last, model.decoder)
        for mine, stage in zip(self.down, model.encoder.stages[1:], strict=True):
            copy_in_order(mine, stage)
        for i, level in enumerate(model.levels):
            if i:
                copy_in_order(self.up[i - 1], level.upsample)
            else:
                level.constant.data.copy_(self.constant)
            copy_in_order(self.prior[i], level.prior)
            copy_in_order(self.to_codes[i], level.project)
            copy_in_order(self.from_codes[i], level.expand)
            level.gamma.data.copy_(self.gamma[i])
            level.vq.set_codebook(self.codebook[i].detach())


def test_ruseckas_hierarchical_is_the_notebooks_model() -> None:
    torch.manual_seed(0)
    plain = PlainHierarchy((16, 32, 64), 128, 4).double()
    model = HierarchicalVQVAE.named(
        "ruseckas-hierarchical", num_levels=3, hidden_channels=64, image_size=16, dtype=torch.float64
    )
    assert all((level.gamma == 0).all() for level in model.levels)
    torch.testing.assert_close(model.levels[0].constant.float(), torch.full((1, 64, 4, 4), 0.01))
    for gamma in plain.gamma:
        nn.init.constant_(gamma, 0.3)
    plain.copy_into(model)
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    reconstruction, grids, loss = plain(x)
    out = model(x)
    assert all(torch.equal(a, b) for a, b in zip(out.indices, grids, strict=True))
    torch.testing.assert_close(out.reconstruction, reconstruction)
    torch.testing.assert_close(out.loss, loss)
    (F.l1_loss(reconstruction, x) + loss).backward()
    (F.l1_loss(out.reconstruction, x) + out.loss).backward()
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters())
    pairs = [(plain.stem, model.encoder.stages[0]), (plain.constant, model.levels[0].constant)]
    pairs += [(plain.prior[2], model.levels[2].prior), (plain.up[0], model.levels[1].upsample)]
    for one, other in pairs:
        ours = [other] if isinstance(other, nn.Parameter) else list(other.parameters())
        theirs = [one] if isinstance(one, nn.Parameter) else list(one.parameters())
        for p, q in zip(theirs, ours, strict=True):
            torch.testing.assert_close(q.grad, p.grad)


def test_ruseckas_hierarchical_guesses_missing_levels_by_its_priors() -> None:
    torch.manual_seed(0)
    plain = PlainHierarchy((16, 32), 16, 2).eval()
    model = HierarchicalVQVAE(
        "ruseckas-hierarchical", num_levels=2, hidden_channels=32, image_size=4, num_embeddings=16
    ).eval()
    plain.copy_into(model)
    top = torch.randint(16, (3, 2, 2))
    q = plain.codebook[0][top].movedim(-1, 1)
    state = plain.up[0]((plain.from_codes[0](q) + plain.gamma[0] * plain.constant).relu())
    likely = plain.prior[1](state).argmax(1)
    torch.testing.assert_close(model.decode([top]), model.decode([top, likely]))


class PlainVQVAE2(nn.Module):
    """Two levels as in Razavi et al. 2019, with 8 hidden channels, residual blocks of 6 and D 4."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(
            *[nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 4, 2, 1), nn.ReLU()],
            *[nn.Conv2d(8, 8, 3, 1, 1), Residual(), Residual(), nn.ReLU()],
        )
        self.top = nn.Sequential(
            *[nn.Conv2d(8, 8, 4, 2, 1), nn.ReLU()],
            *[nn.Conv2d(8, 8, 3, 1, 1), Residual(), Residual(), nn.ReLU()],
        )
        self.to_top = nn.Conv2d(8, 4, 1)
        self.decode_top = nn.Sequential(
            *[nn.Conv2d(4, 8, 3, 1, 1), Residual(), Residual(), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1)]
        )
        self.to_bottom = nn.Conv2d(8 + 4, 4, 1)
        self.upsample = nn.ConvTranspose2d(4, 4, 4, 2, 1)
        self.decoder = nn.Sequential(
            *[nn.Conv2d(4 + 4, 8, 3, 1, 1), Residual(), Residual(), nn.ReLU()],
            *[nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1)],
        )

    def forward(self, x: Tensor, codebooks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        bottom = self.bottom(x)
        z_top = self.to_top(self.top(bottom))
        q_top, top = nearest(z_top, codebooks[0])
        z_bottom = self.to_bottom(torch.cat([bottom, self.decode_top(q_top)], 1))
        q_bottom, fine = nearest(z_bottom, codebooks[1])
        loss = 0.25 * (F.mse_loss(z_top, q_top) + F.mse_loss(z_bottom, q_bottom))
        return self.decoder(torch.cat([q_bottom, self.upsample(q_top)], 1)), top, fine, loss


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def nearest(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    flat = z.movedim(1, -1)
    indices = torch.cdist(flat.flatten(0, 2), codebook).argmin(1).view(flat.shape[:-1])
    return codebook[indices].movedim(-1, 1), indices


def test_vqvae2_is_the_papers_model() -> None:
    torch.manual_seed(0)
    plain = PlainVQVAE2().double()
    model = HierarchicalVQVAE.named(
        "vqvae2", hidden_channels=8, residual_channels=6, embedding_dim=4, dtype=torch.float64
    ).eval()
    top, bottom = model.levels
    pairs = [(plain.bottom, model.encoder.stages[0]), (plain.top, model.encoder.stages[1])]
    pairs += [(plain.to_top, top.project), (plain.to_bottom, bottom.project)]
    pairs += [(plain.decode_top, bottom.condition), (plain.upsample, bottom.upsample)]
    pairs += [(plain.decoder, model.decoder)]
    for one, other in pairs:
        copy_in_order(one, other)
    counted = [p.numel() for one, _ in pairs for p in one.parameters()]
    assert sum(counted) == sum(p.numel() for p in model.parameters())
    codebooks = (top.vq.codebook * 100, bottom.vq.codebook * 100)
    for level, codebook in zip(model.levels, codebooks, strict=True):
        level.vq.set_codebook(codebook)
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    reconstruction, coarse, fine, loss = plain(x, codebooks)
    out = model(x)
    assert torch.equal(out.indices[0], coarse) and torch.equal(out.indices[1], fine)
    torch.testing.assert_close(out.reconstruction, reconstruction)
    torch.testing.assert_close(out.loss, loss)
