from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.test_residual import DTYPES, LAYOUTS, books
from vqfast.functional import projected_codes, residual_codes, residual_quantize
from vqfast.ops.residual import op

OP = "residual"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_are_the_indices_of_residual_quantize(backend, layout, dtype, shared) -> None:
    z_e, channel_dim = LAYOUTS[layout](6)
    z_e, codebooks = z_e.to(dtype), books(3, 11, 6, shared).to(dtype)
    want = residual_quantize(z_e, codebooks, channel_dim=channel_dim).indices
    for given in (codebooks, list(codebooks), [codebook.T.clone().T for codebook in codebooks]):
        assert torch.equal(residual_codes(z_e, given, channel_dim=channel_dim), want)


@pytest.mark.parametrize("n, k, d", [(700, 300, 65), (150, 1030, 32), (2100, 40, 7)])
@pytest.mark.parametrize("bad", [0.0, torch.nan])
def test_codes_that_threads_and_blocks_share(backend, n, k, d, bad) -> None:
    """They are prepared once for all, by whoever comes first; a code with a NaN is nobody's."""
    z_e, codebooks = torch.randn(3, d, n), books(2, k, d)
    codebooks[1, k - 2, d - 1] += bad
    once = residual_codes(z_e, codebooks)
    torch.set_num_threads(3)
    try:
        runs = [residual_codes(z_e, codebooks) for _ in range(2)]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(run, once) for run in runs)
    assert torch.equal(once, residual_quantize(z_e, codebooks).indices)
    assert bad == 0 or not (once[..., 1] == k - 2).any()


def maps_of(stages: int, channels: int, d: int) -> list[list[Tensor]]:
    """Random ones that keep lengths."""
    into, back = torch.randn(stages, d, channels) / channels**0.5, torch.randn(stages, channels, d) / d**0.5
    biases = torch.randn(stages, d), torch.randn(stages, channels)
    return [[into[q], biases[0][q], back[q], biases[1][q]] for q in range(stages)]


def metric(unit: bool) -> str:
    return "cosine" if unit else "l2"


def check_projected(
    z_e: Tensor, codebooks: Tensor, maps: list[list[Tensor]], unit: bool, assert_nearest
) -> None:
    """Every output against its definition, given the codes; these against all distances in float64."""
    dtype, tolerance = z_e.dtype, {"rtol": 1e-9, "atol": 1e-9}
    if dtype != torch.float64:
        tolerance = {"rtol": 1e-4, "atol": 1e-4}
    indices, latents, quantized = projected_codes(
        z_e, codebooks, maps, metric=metric(unit), return_parts=True
    )
    assert (latents.dtype, quantized.dtype) == (dtype, dtype)
    residual, total = z_e.double().transpose(1, 2), 0
    for q, (codebook, stage) in enumerate(zip(codebooks, maps, strict=True)):
        given = latents.unflatten(1, (len(codebooks), -1))[:, q].transpose(1, 2)
        into, into_bias, back, back_bias = (tensor.double() for tensor in stage)
        torch.testing.assert_close(given.double(), residual @ into.T + into_bias, **tolerance)
        pair = (F.normalize(given, dim=-1), F.normalize(codebook)) if unit else (given, codebook)
        assert_nearest(indices[..., q], *pair)
        came_back = codebook.double()[indices[..., q]] @ back.T + back_bias
        residual, total = residual - came_back, total + came_back
    torch.testing.assert_close(quantized.double(), total.transpose(1, 2), **tolerance)
    assert torch.equal(projected_codes(z_e, codebooks, maps, metric=metric(unit)), indices)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "batch, channels, length, stages, k, d",
    [
        (1, 1, 1, 1, 1, 1),
        (3, 5, 7, 2, 11, 3),
        (2, 70, 45, 3, 100, 17),
        (1, 24, 130, 4, 64, 8),
        (40, 9, 1, 2, 5, 13),
    ],
)
def test_stages_between_maps(
    backend, assert_nearest, batch, channels, length, stages, k, d, dtype, unit
) -> None:
    z_e, codebooks = torch.randn(batch, channels, length).to(dtype), books(stages, k, d).to(dtype)
    maps = [[tensor.to(dtype) for tensor in stage] for stage in maps_of(stages, channels, d)]
    check_projected(z_e, codebooks, maps, unit, assert_nearest)


def test_stages_between_maps_in_any_layout_and_with_several_threads(backend, assert_nearest) -> None:
    z_e, codebooks, maps = torch.randn(2, 300, 40).transpose(1, 2), books(3, 50, 6), maps_of(3, 40, 6)
    maps[1] = [maps[1][0].T.clone().T, maps[1][1].repeat_interleave(2)[::2], *maps[1][2:]]
    torch.set_num_threads(3)
    try:
        check_projected(z_e, codebooks, maps, True, assert_nearest)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("unit", [False, True])
def test_zero_vectors_between_maps(backend, assert_nearest, unit) -> None:
    z_e, codebooks, maps = torch.zeros(2, 4, 3), books(2, 5, 3), maps_of(2, 4, 3)
    codebooks[0, 3] = 0
    for stage in maps:
        stage[1].zero_()
    assert projected_codes(z_e, codebooks, maps, metric=metric(unit))[..., 0].eq(3).all() or unit
    check_projected(z_e, codebooks, maps, unit, assert_nearest)


def test_vector_with_a_nan_gives_nan_and_leaves_the_others(backend) -> None:
    z_e, codebooks, maps = torch.randn(2, 40, 45), books(2, 50, 6), maps_of(2, 40, 6)
    clean = projected_codes(z_e, codebooks, maps, return_parts=True)
    z_e[1, 3, 7] = torch.nan
    indices, latents, _ = projected_codes(z_e, codebooks, maps, return_parts=True)
    assert indices[1, 7].tolist() == [0, 0]
    assert latents[1, :, 7].isnan().all()
    others = torch.ones(2, 45, dtype=torch.bool)
    others[1, 7] = False
    assert torch.equal(indices[others], clean[0][others])
    assert torch.equal(latents.transpose(1, 2)[others], clean[1].transpose(1, 2)[others])


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)])
def test_no_vectors(backend, shape) -> None:
    z_e, codebooks, maps = torch.zeros(shape), books(2, 5, 3), maps_of(2, 4, 3)
    indices, latents, quantized = projected_codes(z_e, codebooks, maps, return_parts=True)
    assert (
        indices.shape == (shape[0], shape[2], 2) == residual_codes(torch.zeros(shape), books(2, 5, 4)).shape
    )
    assert latents.shape == (shape[0], 6, shape[2])
    assert quantized.shape == shape


@pytest.mark.parametrize("details", [False, True])
def test_opcheck(backend, details) -> None:
    codebooks, maps = list(books(2, 5, 3)), [tensor for stage in maps_of(2, 4, 3) for tensor in stage]
    torch.library.opcheck(op.projected_codes, (torch.randn(2, 4, 7), codebooks, maps, True, details))
    torch.library.opcheck(op.residual_codes, (torch.randn(2, 3, 4, 5), codebooks, 1))


def test_compiles_into_one_graph_for_any_length(backend) -> None:
    torch.compiler.reset()
    codebooks, maps = list(books(2, 5, 3)), maps_of(2, 3, 3)

    def call(z_e):
        return residual_codes(z_e, codebooks), *projected_codes(z_e, codebooks, maps, return_parts=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for length in (4, 7, 9):
        z_e = torch.randn(2, 3, length)
        torch.testing.assert_close(compiled(z_e), call(z_e))


def test_vmap(backend) -> None:
    z_e, codebooks, maps = torch.randn(4, 2, 3, 5), torch.randn(4, 2, 6, 3), maps_of(2, 3, 3)

    def call(z_e, codebooks):
        return residual_codes(z_e, codebooks), *projected_codes(z_e, codebooks, maps, return_parts=True)

    for dims in ((0, 0), (0, None), (None, 0)):
        given = [each if dim == 0 else each[0] for each, dim in zip((z_e, codebooks), dims, strict=True)]
        runs = [
            call(*(each[i] if dim == 0 else each for each, dim in zip(given, dims, strict=True)))
            for i in range(4)
        ]
        want = tuple(torch.stack(each) for each in zip(*runs, strict=True))
        torch.testing.assert_close(torch.vmap(call, dims)(*given), want)


def test_outputs_have_no_gradient(backend) -> None:
    z_e, codebooks = torch.randn(2, 4, 7, requires_grad=True), books(2, 5, 3).requires_grad_()
    outputs = projected_codes(z_e, codebooks, maps_of(2, 4, 3), return_parts=True)
    assert not any(output.requires_grad for output in outputs)


def test_maps_may_be_read_once(backend) -> None:
    z_e, codebooks, maps = torch.randn(2, 4, 7), books(2, 5, 3), maps_of(2, 4, 3)
    once = projected_codes(z_e, iter(codebooks), (iter(stage) for stage in maps))
    assert torch.equal(once, projected_codes(z_e, codebooks, maps))


@pytest.mark.parametrize(
    "codebooks, error, message",
    [
        ([], ValueError, "codebooks is empty; want one or more"),
        (torch.zeros(2, 0, 3), ValueError, "codebooks are .0, 3. torch.float32, .*; want all"),
        ([torch.zeros(4, 3), torch.zeros(5, 3)], ValueError, "codebooks are .4, 3. .*, .5, 3. .*; want"),
        ([torch.zeros(4, 3), torch.zeros(4, 3).double()], ValueError, "all .K, D. of one dtype"),
        ([torch.zeros(4, 3).long()], TypeError, r"codebooks\[0\] has dtype torch.int64"),
        ([torch.zeros(4, 5)], ValueError, "z_e has 3 channels .* want embedding_dim = 5"),
    ],
)
def test_bad_codebooks_are_named(codebooks, error, message) -> None:
    with pytest.raises(error, match=message):
        residual_codes(torch.zeros(2, 3, 4), codebooks)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"z_e": torch.zeros(2, 4)}, ValueError, "z_e has shape .2, 4.; want .B, C, T."),
        ({"z_e": [0.0]}, TypeError, "z_e is a list"),
        ({"z_e": torch.zeros(2, 5, 7)}, ValueError, "maps have shapes"),
        ({"z_e": torch.zeros(2, 4, 7).double()}, ValueError, "dtypes .*float32.*float64.*; want one"),
        ({"maps": maps_of(1, 4, 3)}, ValueError, "maps have shapes .* want 2 times"),
        ({"maps": [[None] * 4] * 2}, TypeError, r"maps\[0\]\[0\] is a NoneType"),
        (
            {"codebooks": books(2, 5, 3).to("meta")},
            ValueError,
            r"codebooks\[0\] is on meta; want .* z_e, cpu",
        ),
    ],
)
def test_bad_maps_are_named(change, error, message) -> None:
    arguments = {"z_e": torch.zeros(2, 4, 7), "codebooks": books(2, 5, 3), "maps": maps_of(2, 4, 3)}
    with pytest.raises(error, match=message):
        projected_codes(**(arguments | change))
