from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from vqfast.priors.base import CausalPrior

GRIDS = {
    "gated": [(6, 9), (9, 6), (1, 4), (3, 2)],
    "residual": [(5, 8), (8, 5), (3, 2)],
    "wavenet": [(25,), (3,)],
    "snail": [(5, 8), (3, 2)],
}
CASES = [(kind, grid) for kind, grids in GRIDS.items() for grid in grids]
Offsets = set[tuple[int, int]]


def seen(prior: CausalPrior, codes: Tensor) -> Tensor:
    """``(P, P)`` booleans: which codes (columns) have a gradient into which position's logits (rows)."""
    inputs = []

    def leaf(value: Tensor) -> Tensor:
        inputs.append(value.detach().requires_grad_())
        return inputs[0]

    if hasattr(prior, "embedding"):
        hook = prior.embedding.register_forward_hook(lambda module, args, output: leaf(output))
        logits = prior(codes).flatten(2)
        hook.remove()
    else:  # the convolution of one-hot codes, which ``embed`` replaces
        vectors = torch.eye(prior.num_embeddings, dtype=torch.float64)
        prior.first.embed = lambda codes: prior.first(leaf(vectors[codes]).movedim(-1, 1))
        logits = prior(codes).flatten(2)
        del prior.first.embed
    mix = torch.randn(logits.shape[:2], dtype=torch.float64)
    rows = []
    for position in range(logits.shape[2]):
        (grad,) = torch.autograd.grad((logits[:, :, position] * mix).sum(), inputs, retain_graph=True)
        rows.append(grad.abs().sum((0, -1)).flatten() > 0)  # over batch and channels
    return torch.stack(rows)


def reachable(grid: tuple[int, int], layers: list[Offsets]) -> Tensor:
    """What ``seen`` returns if layer ``i`` reads its input at the offsets ``layers[i]``."""
    positions = list(product(range(grid[0]), range(grid[1])))
    matrix = torch.eye(len(positions))
    for offsets in layers:
        step = [[(y - v, x - u) in offsets for y, x in positions] for v, u in positions]
        matrix = torch.tensor(step, dtype=torch.float32) @ matrix
    return matrix > 0


def square(radius: int, mask_type: str) -> Offsets:
    """The offsets that a square kernel's mask keeps: all before the centre, and the centre for mask B."""
    reach = range(-radius, radius + 1)
    return {offset for offset in product(reach, reach) if offset < (0, mask_type == "B")}


def gated(num_layers: int, first_kernel_size: int, kernel_size: int) -> Offsets:
    """The offsets without a blind spot: all earlier positions within the sum of the layers' radii."""
    return square(first_kernel_size // 2 + (num_layers - 1) * (kernel_size // 2), "A")


@pytest.mark.parametrize(("kind", "grid"), CASES)
def test_no_logit_has_a_gradient_to_its_own_or_a_later_code(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    kind: str,
    grid: tuple[int, ...],
) -> None:
    prior = make_prior(kind)
    matrix = seen(prior, random_codes(prior, 8, grid))
    assert not matrix.triu().any()
    assert matrix.diagonal(-1).any()


@pytest.mark.parametrize("grid", GRIDS["gated"])
@pytest.mark.parametrize("sizes", [(1, 3, 3), (3, 3, 3), (2, 5, 3), (2, 3, 5), (1, 7, 3)])
def test_gated_pixelcnn_has_no_blind_spot(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    grid: tuple[int, int],
    sizes: tuple[int, int, int],
) -> None:
    num_layers, first, other = sizes
    prior = make_prior("gated", num_layers=num_layers, first_kernel_size=first, kernel_size=other)
    assert torch.equal(seen(prior, random_codes(prior, 8, grid)), reachable(grid, [gated(*sizes)]))


@pytest.mark.parametrize("grid", GRIDS["residual"])
@pytest.mark.parametrize("first", [3, 5])
def test_residual_pixelcnn_sees_what_its_masks_leave(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    grid: tuple[int, int],
    first: int,
) -> None:
    prior = make_prior("residual", first_kernel_size=first, channels=24)  # so many that some pass each ReLU
    expected = reachable(grid, [square(first // 2, "A"), square(1, "B"), square(1, "B")])
    assert torch.equal(seen(prior, random_codes(prior, 32, grid)), expected)


def test_pixelsnail_sees_what_any_earlier_position_sees(
    make_prior: Callable[..., CausalPrior], random_codes: Callable[..., Tensor]
) -> None:
    prior = make_prior("snail", channels=24, num_heads=2, num_blocks=1, first_kernel_size=3)
    convolved = reachable((5, 8), [square(1, "A"), square(1, "B"), square(1, "B")])
    expected = torch.ones(40, 40).tril() @ convolved.float() > 0
    assert torch.equal(seen(prior, random_codes(prior, 8, (5, 8))), expected)


@pytest.mark.parametrize(
    ("num_layers", "cycle", "lags"),
    [
        (1, 10, [1, 2]),
        (2, 1, [1, 2, 3]),
        (4, 10, range(1, 17)),
        (4, 2, range(1, 8)),  # 1 + subsets of 1, 2, 1, 2
    ],
)
def test_wavenet_sees_one_step_back_and_every_sum_of_dilations(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    num_layers: int,
    cycle: int,
    lags: list[int],
) -> None:
    prior = make_prior("wavenet", num_layers=num_layers, dilation_cycle=cycle)
    expected = reachable((1, 25), [{(0, -lag) for lag in lags}])
    assert torch.equal(seen(prior, random_codes(prior, 32, (25,))), expected)


@pytest.mark.parametrize(("kind", "grid"), CASES)
def test_changing_a_code_changes_only_later_logits(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    conditioning: Callable[..., dict[str, Tensor]],
    kind: str,
    grid: tuple[int, ...],
) -> None:
    prior = make_prior(kind, num_classes=3, condition_channels=2)
    codes = random_codes(prior, 1, grid)
    size = codes.numel()
    changed = codes.flatten(1).repeat(size, 1)
    changed.diagonal().copy_((codes.flatten() + 1) % prior.num_embeddings)  # row p differs at position p
    given = {
        name: value.expand(size, *value.shape[1:]) for name, value in conditioning(prior, 1, grid).items()
    }
    with torch.no_grad():
        before = prior(codes.expand(size, *grid), **given).flatten(2)
        after = prior(changed.view(size, *grid), **given).flatten(2)
    differs = (before != after).any(1)  # of code p, at position q
    assert not differs.tril().any()
    assert differs[:-1].any(1).all()


@pytest.mark.parametrize(
    ("kind", "grid"), [(kind, grid) for kind, grid in CASES if grid in ((6, 9), (5, 8), (25,))]
)
def test_labels_reach_every_position_and_the_map_its_own(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    kind: str,
    grid: tuple[int, ...],
) -> None:
    prior = make_prior(kind, num_classes=2, condition_channels=1)
    codes = random_codes(prior, 8, grid)
    middle = codes[0].numel() // 2
    zero, one = torch.zeros(8, dtype=torch.int64), torch.ones(8, dtype=torch.int64)
    flat = torch.zeros(8, 1, *grid, dtype=torch.float64)
    bump = flat.clone()
    bump.flatten(1)[:, middle] = 1
    with torch.no_grad():
        logits = prior(codes, zero, flat)
        by_label = (prior(codes, one, flat) != logits).flatten(2).any(0).any(0)
        by_map = (prior(codes, zero, bump) != logits).flatten(2).any(0).any(0)
    assert by_label.all()
    assert by_map[middle] and not by_map[:middle].any()
