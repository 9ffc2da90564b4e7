from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.models import CONFIGS, VQVAE
from vqfast.models.batch_norm import BatchNorm2d

SMALL: dict[str, dict[str, Any]] = {
    name: {"hidden_channels": 32 if name == "ruseckas" else 16, "num_embeddings": 32} for name in CONFIGS
}
SIZES = {  # for each configuration, some inputs' spatial shapes with their codes'
    "paper": [((4, 4), (1, 1)), ((12, 20), (3, 5)), ((32, 32), (8, 8))],
    "paper-speech-mirrored": [((64,), (1,)), ((192,), (3,))],
    "paper-video": [((1, 4, 4), (1, 1, 1)), ((5, 8, 12), (5, 2, 3))],
    "paper-video-halved": [((4, 4, 4), (1, 1, 1)), ((4, 8, 12), (1, 2, 3))],
    "keras": [((28, 28), (7, 7)), ((4, 12), (1, 3))],
    "ruseckas": [((128, 128), (4, 4)), ((32, 64), (1, 2))],
}


def small(name: str, **overrides: Any) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE.named(name, **{**SMALL[name], **overrides})


def batch(
    model: VQVAE, spatial: tuple[int, ...], size: int = 2, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Smooth waves in 0 to 1, another phase for each sample and channel."""
    grid = sum(
        torch.linspace(0, 3 + i, n).view(-1, *[1] * (len(spatial) - 1 - i)) for i, n in enumerate(spatial)
    )
    phase = torch.rand(size, model.config["in_channels"], *[1] * len(spatial)) * 6
    return ((grid + phase).sin() / 2 + 0.5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "name, spatial, codes", [(name, *shapes) for name, cases in SIZES.items() for shapes in cases]
)
def test_shapes_and_consistency(
    name: str, spatial: tuple[int, ...], codes: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = small(name).to(dtype).eval()
    for size in (1, 3):
        x = batch(model, spatial, size, dtype)
        with torch.no_grad():
            out = model(x)
            decoded = model.decode(out.indices)
        assert out.reconstruction.shape == x.shape and out.reconstruction.dtype == dtype
        assert out.indices.shape == (size, *codes) and out.indices.dtype == torch.int64
        assert out.loss.ndim == 0
        assert model.code_shape(spatial) == codes
        assert torch.equal(model.encode(x), out.indices)
        torch.testing.assert_close(decoded, out.reconstruction)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("overrides", [{}, {"num_downsamplings": 3, "decay": 0.99}])
def test_config_rebuilds_the_model(name: str, overrides: dict[str, Any]) -> None:
    model = small(name, **overrides)
    again = VQVAE(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert list(again.state_dict()) == list(model.state_dict())
    assert again.config == model.config and again.stride == model.stride
    assert overrides.items() <= model.config.items()


@pytest.mark.parametrize(
    "name, encoder, decoder",
    [
        (
            "paper",
            (3 * 16 * 256 + 256)
            + (256 * 16 * 256 + 256)
            + 2 * (256 * 9 * 256 + 256 + 256 * 256 + 256)
            + (256 * 64 + 64),
            (64 * 9 * 256 + 256)
            + 2 * (256 * 9 * 256 + 256 + 256 * 256 + 256)
            + (256 * 16 * 256 + 256)
            + (256 * 16 * 3 + 3),
        ),
        (
            "keras",
            (9 * 32 + 32) + (32 * 9 * 64 + 64) + (64 * 16 + 16),
            (16 * 9 * 64 + 64) + (64 * 9 * 32 + 32) + (32 * 9 + 1),
        ),
    ],
)
def test_parameter_counts(name: str, encoder: int, decoder: int) -> None:
    model = VQVAE.named(name)
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder


def test_keras_padding() -> None:
    """Keras' "same" with stride 2 pads, and crops, the far end only."""
    model = VQVAE.named("keras")
    x = torch.zeros(1, 1, 8, 8)
    x[..., 0, 0] = 1  # with a tap at the near end padded, the kernel's centre would see it
    pad, conv = model.encoder[:2]
    torch.testing.assert_close(conv(pad(x))[0, :, 0, 0], conv.weight[:, 0, 0, 0] + conv.bias)
    up, crop = model.decoder[:2]
    torch.testing.assert_close(
        crop(up(torch.ones(1, 16, 1, 1))), up.weight.sum(0)[None, :, :2, :2] + up.bias[:, None, None]
    )


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("name", CONFIGS)
def test_training_lowers_the_loss(name: str, decay: float | None) -> None:
    # codes that k-means starts on so few vectors have no gradient in the first step
    model = small(name, decay=decay, kmeans_init=False)
    x = batch(model, {1: (256,), 2: (64, 64), 3: (8, 8, 8)}[model.config["ndim"]], size=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step in range(15):
        out = model(x)
        error = F.mse_loss(out.reconstruction, x)
        optimizer.zero_grad()
        (error + out.loss).backward()
        if step == 0:
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None and parameter.grad.any(), key
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < 0.9 * losses[0], losses


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"architecture": "resnet"}, r"architecture is 'resnet'; want 'paper', 'keras' or 'ruseckas'$"),
        ({"ndim": 4}, r"ndim is 4; want an integer in 1\.\.3"),
        ({"ndim": 0}, r"ndim is 0; want an integer in 1\.\.3"),
        ({"architecture": "keras", "ndim": 1}, r"ndim is 1; want 2 with architecture 'keras'"),
        ({"architecture": "ruseckas", "ndim": 3}, r"ndim is 3; want 2 with architecture 'ruseckas'"),
        (
            {"architecture": "keras", "num_residual_blocks": 2},
            r"num_residual_blocks is 2; want None with architecture 'keras'",
        ),
        ({"in_channels": 0}, r"in_channels is 0; want a positive integer"),
        ({"hidden_channels": -1}, r"hidden_channels is -1; want a positive integer"),
        ({"num_residual_blocks": -1}, r"num_residual_blocks is -1; want an integer, 0 or more"),
        (
            {"architecture": "keras", "hidden_channels": 3},
            r"hidden_channels is 3; want a multiple of .* = 2$",
        ),
        ({"architecture": "ruseckas", "hidden_channels": 8}, r"hidden_channels is 8; want .* = 32$"),
        ({"num_downsamplings": 63}, r"num_downsamplings is 63; want an integer in 1..62"),
        ({"architecture": "keras", "num_downsamplings": 10**9}, r"want an integer in 1..62"),
        ({"hidden_channels": 10**400}, r"hidden_channels is 10*; want a positive integer, below 2\^63"),
        ({"num_embeddings": 10**400}, r"num_embeddings is 10*; want a positive integer, below 2\^63"),
        ({"num_embeddings": 0}, r"num_embeddings is 0"),
        ({"embedding_dim": 0}, r"embedding_dim is 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQVAE(**arguments)


def test_bad_argument_types() -> None:
    for name in ("in_channels", "hidden_channels", "num_downsamplings", "num_residual_blocks"):
        with pytest.raises(TypeError, match=f"{name} is 1.5; want .*integer"):
            VQVAE(**{name: 1.5})


def test_unknown_name() -> None:
    with pytest.raises(
        ValueError, match=r"name is 'imagenet'; want 'paper', 'paper-speech-mirrored', .* or 'ruseckas'$"
    ):
        VQVAE.named("imagenet")


def test_bad_inputs() -> None:
    model = small("paper")
    for call in (model, model.encode):
        for shape in [(3, 8, 8), (1, 3, 8, 8, 8), (1, 1, 8, 8), (0, 3, 8, 8)]:
            with pytest.raises(ValueError, match=r"x has shape \(.*\); want \(B, 3, H, W\), not empty"):
                call(torch.zeros(shape))
        for shape in [(1, 3, 8, 6), (1, 3, 0, 8)]:
            with pytest.raises(
                ValueError, match=r"spatial is \(.*\); want 2 positive multiples of the stride 4"
            ):
                call(torch.zeros(shape))
        with pytest.raises(TypeError, match=r"x has dtype torch\.uint8; want a floating-point one"):
            call(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
        with pytest.raises(TypeError, match="x is a list; want a tensor"):
            call([0.0])
    for spatial in [(8,), (8, 8, 8), (8, 2), (-4, 8)]:
        with pytest.raises(ValueError, match=r"spatial is \(.*\); want 2 positive multiples of the stride 4"):
            model.code_shape(spatial)
    for sizes in (8, "88", (8.0, 8), (True, 8), None):
        with pytest.raises(TypeError, match=r"spatial is .*; want 2 positive multiples of the stride 4"):
            model.code_shape(sizes)
    for shape in [(4, 4), (1, 1, 4, 4), (0, 4, 4), (1, 0, 4)]:
        with pytest.raises(ValueError, match=r"indices has shape \(.*\); want \(B, H, W\), not empty"):
            model.decode(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"has values 0\.\.32; want -1\.\.31"):
        model.decode(torch.tensor([[[0, 32]]]))
    with pytest.raises(TypeError, match="want an integer"):
        model.decode(torch.zeros(1, 4, 4))


def test_residual_blocks_are_optional() -> None:
    model = small("paper", num_residual_blocks=0, num_downsamplings=1)
    assert model(torch.zeros(1, 3, 6, 10)).reconstruction.shape == (1, 3, 6, 10)


WORKER = """
import sys
import torch
import torch.distributed as dist
from vqfast.models.batch_norm import BatchNorm2d

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
case = torch.load(f"{folder}/case.pt")
share = slice(0, 2) if rank == 0 else slice(2, 7)
norm = BatchNorm2d(3).double()
norm.load_state_dict(case["state"])
x = case["x"][share].requires_grad_()
y = norm(x)
(y * case["weight"][share]).sum().backward()
result = {"y": y.detach(), "x.grad": x.grad}
result |= {f"{key}.grad": p.grad.clone() for key, p in norm.named_parameters()}
result |= {key: value.clone() for key, value in norm.state_dict().items()}
result["far"] = norm.float()(x.detach().float() + 1000)
result["bfloat16"] = norm(x.detach().bfloat16())
torch.save(result, f"{folder}/{rank}.pt")
dist.barrier()  # a rank that leaves early breaks the other's last message
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_batch_norm_joins_the_ranks(tmp_path: Path) -> None:
    """Two processes with unequal shares are one process with the joined batch."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 7, 3, 4, 5, dtype=torch.float64) + 2
    norm = BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    torch.save({"x": x, "weight": weight, "state": norm.state_dict()}, tmp_path / "case.pt")

    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER]
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(2)]
    try:
        assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    x.requires_grad_()
    y = norm(x)
    (y * weight).sum().backward()
    joined = {key: torch.cat([rank[key] for rank in ranks]) for key in ("y", "x.grad", "bfloat16", "far")}
    exact = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(joined["y"], y.detach(), **exact)
    torch.testing.assert_close(joined["x.grad"], x.grad, **exact)
    for key in ("weight", "bias"):  # each rank has its own loss's
        torch.testing.assert_close(
            sum(rank[f"{key}.grad"] for rank in ranks), norm.get_parameter(key).grad, **exact
        )
    for rank in ranks:
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(rank[key], value, **exact)
    assert joined["bfloat16"].dtype == torch.bfloat16
    torch.testing.assert_close(joined["bfloat16"].double(), y.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(joined["far"].double(), y.detach(), rtol=0, atol=2e-3)  # no cancellation


def test_a_seed_draws_the_weights_that_it_drew_in_0_1_0() -> None:
    torch.manual_seed(0)
    state = VQVAE(hidden_channels=8, num_embeddings=16, embedding_dim=4).state_dict()
    assert state["encoder.2.bias"].tolist()[:2] == [0.027523934841156006, 0.04433798789978027]
    assert state["decoder.6.bias"].tolist() == [
        -0.026098668575286865,
        0.0943211168050766,
        0.008175731636583805,
    ]


def test_batch_norm_of_one_process_equals_torchs() -> None:
    norm, plain = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(norm(x), plain(x))
    assert torch.equal(norm.eval()(x), plain.eval()(x))
