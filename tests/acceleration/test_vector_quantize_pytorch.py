import copy

import pytest
import torch
from torch import nn

import vqfast
from tests.acceleration.compare import assert_same_curve, nearest, same, searches, step

library = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
EVAL = (False,)
LEARNABLE = {"learnable_codebook": True, "ema_update": False}


def layer(**options) -> nn.Module:
    return library.VectorQuantize(dim=16, codebook_size=64, **options)


def batches(*shape: int) -> list[torch.Tensor]:
    return [torch.randn(shape) for _ in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation_trick": False},
        {"use_cosine_sim": True},
        {"threshold_ema_dead_code": 2},
        {"codebook_dim": 4},
        {"heads": 4, "codebook_dim": 4},
        {"heads": 4, "codebook_dim": 4, "separate_codebook_per_head": True},
        {"heads": 4, "codebook_dim": 4, "separate_codebook_per_head": True, "use_cosine_sim": True},
        {"affine_param": True},
        {"manual_ema_update": True},
        {"freeze_codebook": True},
        {"orthogonal_reg_weight": 1.0, "ema_update": False},
        {"directional_reparam": True, "threshold_ema_dead_code": 2},
        {"sync_update_v": 0.2, **LEARNABLE},
        {"vq_bridge": nn.Linear(16, 16)},
        {"channel_last": False},
    ],
    ids=str,
)
def test_modes_that_end_in_a_search(options):
    shape = (2, 16, 30) if "channel_last" in options else (2, 30, 16)
    same(layer(**options), batches(*shape))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kmeans_starts_from_the_same_vectors():
    same(layer(kmeans_init=True), batches(2, 100, 16))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"codebook_diversity_loss_weight": 0.1}, "a diversity loss"),
        ({"commitment_use_cross_entropy_loss": True}, "a cross-entropy loss"),
        ({"stochastic_sample_codes": True}, "codes are sampled at random"),
        (
            {"stochastic_sample_codes": True, "straight_through": True, "rotation_trick": False},
            "codes are sampled at random",
        ),
    ],
)
def test_training_keeps_the_distances_where_they_are_needed(options, reason):
    fast = same(layer(**options), batches(2, 30, 16), modes=EVAL)
    (entry,) = vqfast.accelerate(fast).accelerated
    assert entry.note == f"training keeps the library's code, which computes all distances: {reason}"


def test_the_codebook_learns_by_its_own_optimizer():
    options = {"in_place_codebook_optimizer": lambda weights: torch.optim.SGD(weights, lr=0.1)}
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(layer(**options, **LEARNABLE))
    vqfast.accelerate(made[0])
    for z in batches(2, 30, 16):
        torch.testing.assert_close(*(step(module, lambda module, z: module(z), z) for module in made))


@pytest.mark.parametrize("rotation_trick", [True, False])
def test_sim_vq(rotation_trick):
    options = {"codebook_size": 64, "rotation_trick": rotation_trick}
    same(library.SimVQ(dim=16, **options), batches(2, 30, 16))
    same(library.SimVQ(dim=16, channel_first=True, **options), batches(2, 16, 4, 5))
    same(library.ResidualSimVQ(dim=16, num_quantizers=3, **options), batches(2, 30, 16))


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"affine_param": True}], ids=str)
def test_masks(options):
    mask = torch.rand(2, 30) > 0.3
    same(layer(**options), batches(2, 30, 16), lambda module, z: module(z, mask=mask))


def test_images_and_maps_of_three_dimensions():
    same(layer(accept_image_fmap=True), batches(2, 16, 4, 5))
    same(layer(accept_3d_fmap=True), batches(2, 16, 2, 3, 4))


def test_one_token_each():
    same(layer(), batches(1, 16))
    same(layer(), batches(20, 16))


def test_no_tokens():
    same(layer(commitment_weight=0.0), [torch.randn(2, 0, 16)], modes=(True, False))


def test_options_of_a_call():
    same(layer(), batches(2, 30, 16), lambda module, z: module(z, freeze_codebook=True))
    same(layer(), batches(2, 30, 16), lambda module, z: module(z, ema_update=False))
    same(layer(), batches(2, 30, 16), lambda module, z: module(z, ema_update_weight=torch.full((1, 64), 0.5)))
    same(layer(), batches(2, 30, 16), lambda module, z: module(z, return_loss_breakdown=True))


def test_topk_of_one_is_the_nearest_code():
    same(layer(), batches(2, 30, 16), lambda module, z: module(z, topk=1))
    fast = layer()
    vqfast.accelerate(fast)
    assert torch.equal(fast(torch.ones(2, 30, 16), topk=1)[1][..., 0], fast(torch.ones(2, 30, 16))[1])


def test_calls_that_need_the_distances_keep_them():
    wanted = torch.randint(64, (2, 30))
    same(layer(), batches(2, 30, 16), lambda module, z: module(z, indices=wanted), modes=())
    same(layer(), batches(2, 30, 16), lambda module, z: module(z, topk=2), modes=())
    fast = layer()
    vqfast.accelerate(fast)
    assert fast._codebook(torch.randn(2, 30, 16))[2].shape == (1, 2, 30, 64)


def test_the_averages_gather_over_calls_and_by_given_indices():
    def call(module, z):
        if module.training:
            module(z, accum_ema_update=True)
            module.update_indices(z, torch.arange(60).view(2, 30))
        return module(z)

    same(layer(), batches(2, 30, 16), call)


def test_a_step_in_two_parts_ends_with_the_same_bits():
    mask, (x,) = torch.rand(2, 30) > 0.3, batches(2, 30, 16)[:1]
    whole = layer()
    vqfast.accelerate(whole)
    parts = copy.deepcopy(whole)
    whole(x, mask=mask)
    indices = parts(x, mask=mask, ema_update=False)[1]
    parts.update_indices(x, indices, mask=mask)
    for ours, theirs in zip(parts.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_codebook": True},
        {"quantize_dropout": True},
        {"use_cosine_sim": True},
        {"codebook_dim": 8},
        {"diveq": True},
        {"implicit_neural_codebook": True},
    ],
    ids=str,
)
def test_residual(options):
    residual = library.ResidualVQ(dim=16, num_quantizers=3, codebook_size=32, **options)
    same(residual, batches(2, 30, 16))


def test_beam_search_keeps_its_own():
    residual = library.ResidualVQ(dim=16, num_quantizers=3, codebook_size=32, beam_size=2)
    same(residual, batches(2, 30, 16), modes=())


def test_layers_made_of_it():
    same(library.GroupedResidualVQ(dim=16, groups=2, num_quantizers=2, codebook_size=32), batches(2, 30, 16))
    random = library.RandomProjectionQuantizer(dim=16, num_codebooks=4, codebook_dim=8, codebook_size=32)
    same(random, batches(2, 30, 16))
    levels = library.HierarchicalVQ(dim=16, codebook_size=32, scales=(1, 4, 8), kmeans_init=False)
    same(levels, batches(2, 16, 8))


def test_ten_steps_give_the_same_curve():
    layer = library.ResidualVQ(dim=16, num_quantizers=3, codebook_size=32)
    assert_same_curve(layer, lambda out, z: (out[0] - z).square().mean() + out[2].sum(), (2, 100, 16))


@pytest.mark.parametrize("cosine", [False, True])
def test_codes_are_those_of_float64(cosine):
    torch.manual_seed(3)
    original = library.VectorQuantize(dim=16, codebook_size=256, use_cosine_sim=cosine).eval()
    x = torch.randn(1, 4096, 16)
    if not cosine:  # an offset, at which float32 products cancel
        original.codebook = original.codebook + 100
        x = x + 100
    fast = copy.deepcopy(original)
    vqfast.accelerate(fast)
    seen = original._codebook.transform_input(x)
    if cosine:  # the largest product, whatever the lengths of the codes
        truth = (seen.double() @ original.codebook.double().T).argmax(-1)
    else:
        truth = nearest(seen, original.codebook)
    theirs, ours = original(x)[1], fast(x)[1]
    assert torch.equal(ours, truth)
    assert cosine or (theirs != truth).sum() > 40  # the library errs


def test_restore():
    made = layer()
    before = set(vars(made)), set(vars(made._codebook))
    vqfast.accelerate(made)
    assert searches(made, torch.randn(2, 30, 16))[1] == 1
    vqfast.accelerate(made, restore=True)
    assert (set(vars(made)), set(vars(made._codebook))) == before
    assert type(made) is library.VectorQuantize and searches(made, torch.randn(2, 30, 16))[1] == 0


def test_patch_reaches_every_layer_built_and_is_taken_back():
    forward = library.VectorQuantize.forward
    before = layer()
    assert searches(before, torch.randn(2, 30, 16))[1] == 0
    names = vqfast.accelerate.patch("vector_quantize_pytorch")
    try:
        assert [name.rpartition(".")[2] for name in names] == ["VectorQuantize", "Codebook", "SimVQ"]
        for module in (before, layer(), library.ResidualVQ(dim=16, num_quantizers=1, codebook_size=32)):
            assert searches(module, torch.randn(2, 30, 16))[1] == 1
        vqfast.accelerate.patch("vector_quantize_pytorch")
        (entry,) = vqfast.accelerate(before).accelerated
        assert entry[1:4] == ("VectorQuantize", 64, 16) and type(before) is library.VectorQuantize
    finally:
        vqfast.accelerate.patch("vector_quantize_pytorch", restore=True)
    assert library.VectorQuantize.forward is forward
    assert searches(before, torch.randn(2, 30, 16))[1] == 0
