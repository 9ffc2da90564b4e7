"""What only the Triton executor has: tiles, groups and launches; interpreted, or on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.interpreter import assert_passes, interpreted
from vqfast.ops import probe, registry
from vqfast.priors.base import CausalPrior
from vqfast.sampling.executors import triton as executor
from vqfast.sampling.executors.probe import Part
from vqfast.sampling.executors.triton_tunings import Launch, Tuning

MakePrior = Callable[..., CausalPrior]
Conditioning = Callable[..., dict[str, Tensor]]
SAMPLING = Path(__file__).parents[1]
ROOT = SAMPLING.parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
BOTH = {"num_classes": 3, "condition_channels": 2}
here = pytest.mark.skipif(
    not (torch.cuda.is_available() or registry.interpreted()),
    reason="run in the interpreter by the last test",
)
# The part of the matrix that is quick enough for an interpreter.
# All of it: `TRITON_INTERPRET=1 pytest tests/sampling`.
QUICK = [
    "test_executor_runs_what",
    "test_logits_that_say and residual and not temperature and not top",
    "test_logits_that_are_minus and residual and temperature",
    "test_known_codes_need",
    "test_one_code_with",
    "test_traced_network_draws and conditioned",
    "test_known_codes and residual",
    "greedy and residual and temperature",
]


@pytest.fixture(autouse=True)
def interpreter_knows_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrects Triton's interpreter, which multiplies bits of bfloat16 as integers and truncates float32."""
    if not registry.interpreted():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    cut_off, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert(data: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return cut_off(data, source, target, mode)
        return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.uint16).numpy()

    def multiply(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = (
            interpreter.TensorHandle(
                torch.from_numpy(each.data.view(np.int16)).view(torch.bfloat16).float().numpy(), tl.float32
            )
            if each.dtype.scalar == tl.bfloat16
            else each
            for each in (a, b)
        )
        return dot(builder, *wide, *rest)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", multiply)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tuning], None]:
    """``use(tuning)`` makes every batch use the tuning."""
    return lambda tuning: monkeypatch.setattr(executor, "tunings_of", lambda weight: {1 << 30: tuning})


# images, members, rows, columns, depth, warps, stages
SUMMED = Launch(2, 1, 4, 32, 16, 4, 1)
MULTIPLIED = Launch(4, 1, 16, 32, 32, 4, 1)
OVERLAPPED = Launch(2, 1, 16, 64, 16, 4, 2)


@here
@pytest.mark.parametrize(
    ("row", "position", "dtype"),
    [
        (SUMMED, SUMMED, torch.float64),
        (OVERLAPPED, MULTIPLIED, torch.float32),
        (MULTIPLIED, OVERLAPPED, torch.bfloat16),
        (OVERLAPPED, SUMMED, torch.float16),
    ],
)
def test_any_tile_draws_the_same(
    make_prior: MakePrior,
    conditioning: Conditioning,
    use: Callable,
    kind: str,
    row: Launch,
    position: Launch,
    dtype: torch.dtype,
) -> None:
    """Channels and codes fill no tile, images fill no group."""
    prior = make_prior(kind, channels=18, num_embeddings=21, num_layers=2, **BOTH)
    shape = (2, 3) if prior.ndim == 2 else (6,)
    options = conditioning(prior, 3, shape) | {"numbers": torch.tensor([2**62, 2**32, 0])}
    expected = prior.sample(3, shape, method="torch", **options)
    use(Tuning(row, position))
    given = {name: value.to(DEVICE) for name, value in options.items()}
    drawn = prior.to(DEVICE, dtype).sample(3, shape, method="triton", **given)
    differ = (drawn.cpu() != expected).sum()
    assert differ <= (0 if dtype in (torch.float64, torch.float32) else 4)  # wrong kernels: 17 of 18 differ


@here
@pytest.mark.parametrize("first", [False, True])
def test_tiles_whose_columns_come_first_draw_the_same(
    make_prior: MakePrior, use: Callable, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """As Triton 3.6 has them; their products are summed over the same depth."""
    constants = executor.constants
    monkeypatch.setattr(executor, "constants", lambda *given: {**constants(*given), "FIRST": first})
    use(Tuning(SUMMED, SUMMED))
    prior = make_prior("gated", channels=18, num_embeddings=21, num_layers=1).to(DEVICE)
    expected = prior.sample(3, (2, 3), method="torch")
    assert torch.equal(prior.sample(3, (2, 3), method="triton"), expected)


@here
def test_members_share_out_the_tiles_of_each_job(
    make_prior: MakePrior, use: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job has a launch of its own, since blocks can't wait for each other in the interpreter."""
    launch = executor.Sampling.launch

    def one_by_one(
        self: Any, tables: Any, begin: int, end: int, first: int, iterations: int, columns: int
    ) -> None:
        for moment in range(first, first + iterations):
            for job in range(begin, end):
                launch(self, tables, job, job + 1, moment, 1, columns)

    monkeypatch.setattr(executor.Sampling, "launch", one_by_one)
    monkeypatch.setattr(executor, "members_of", lambda *_: 3)
    use(Tuning(Launch(2, 3, 4, 16, 16, 4, 2), Launch(2, 3, 2, 16, 16, 4, 1)))
    prior = make_prior("gated", channels=18, num_embeddings=40, num_layers=2).to(DEVICE)
    expected = prior.sample(2, (2, 2), method="torch")
    assert torch.equal(prior.sample(2, (2, 2), method="triton"), expected)


@here
@pytest.mark.parametrize("stride", [1, 3])
def test_sequence_longer_than_a_block(
    make_prior: MakePrior, use: Callable, monkeypatch: Any, stride: int
) -> None:
    """The columns of a cache are a ring."""
    monkeypatch.setattr("vqfast.sampling.program._BLOCK_COLUMNS", 4)
    use(Tuning(SUMMED, SUMMED))
    prior = make_prior("wavenet", num_layers=3, condition_channels=2, condition_stride=stride).to(DEVICE)
    condition = torch.randn(2, 2, -(-11 // stride), dtype=torch.float64, device=DEVICE)
    expected = prior.sample(2, (11,), method="torch", condition=condition)
    assert torch.equal(prior.sample(2, (11,), method="triton", condition=condition), expected)


@here
def test_attention_to_more_positions_than_a_block_of_keys_has(
    make_prior: MakePrior, use: Callable, monkeypatch: Any
) -> None:
    """Heads are padded so much that a block has 16."""
    monkeypatch.setattr(executor, "head_channels", lambda program: 128)
    use(Tuning(SUMMED, SUMMED))
    prior = make_prior("snail", channels=4, num_embeddings=5, num_blocks=1, num_layers=1).to(DEVICE)
    expected = prior.sample(2, (2, 9), method="torch")
    assert torch.equal(prior.sample(2, (2, 9), method="triton"), expected)


@here
@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.7}, {"seed": 2**64 - 1}], ids=str)
def test_other_draws(make_prior: MakePrior, use: Callable, options: dict[str, Any]) -> None:
    use(Tuning(SUMMED, SUMMED))
    prior = make_prior("gated", num_embeddings=21, num_layers=2).to(DEVICE)
    known = torch.full((2, 2, 3), -1, device=DEVICE)
    known[0, 0, 1] = known[1, 1, 1] = 3
    options |= {"known": known, "num": 2, "shape": (2, 3)}
    assert torch.equal(prior.sample(method="triton", **options), prior.sample(method="torch", **options))


@pytest.mark.parametrize("size", [2, 4])
def test_batches_from_5_to_320_give_at_least_100_of_132_multiprocessors_work(monkeypatch, size) -> None:
    """In each launch, at a step of 256 columns on a grid with 32."""
    from types import SimpleNamespace

    from vqfast.sampling.executors.triton_tunings import SAMPLING

    h100 = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h100)
    lines = SAMPLING[size]["sm_90"]
    for batch in range(5, 321):
        tuning = lines[min(images for images in lines if batch <= images)]
        largest = max(launch.images for launch in tuning)
        for launch, columns in zip(tuning, (32, 1), strict=True):
            groups = -(-batch // largest) * largest // launch.images
            members = executor.members_of(launch, groups, torch.device("cuda"))
            tiles = -(-256 // launch.columns) * -(-columns * launch.images // launch.rows)
            assert groups * members <= 132
            assert groups * min(members, tiles) >= 100, (batch, launch)


# The guard


@here
@pytest.mark.parametrize("dtype", DTYPES[:1] if DEVICE == "cpu" else DTYPES)
@pytest.mark.parametrize(
    "part",
    [
        Part(4),
        Part(4, 32, 2, mixture=True, strided=True),
        pytest.param(Part(4, rows=4), marks=pytest.mark.every),
    ],
    ids=str,
)
def test_the_probe_accepts_kernels_that_are_right(
    monkeypatch: pytest.MonkeyPatch, use: Callable, part: Part, dtype: torch.dtype
) -> None:
    """On a GPU with its tunings and every dtype."""
    monkeypatch.setattr(probe, "_verdicts", {})
    if DEVICE == "cpu":
        use(Tuning(OVERLAPPED, MULTIPLIED))
    assert probe.verdict("sampler", "triton", torch.device(DEVICE), dtype, 1, part) is None


@pytest.mark.parametrize("broken", ["wrong", "raises"])
def test_auto_falls_back_with_one_warning_where_the_probe_fails(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    pytest.importorskip("triton")

    def draw(self: Any) -> Tensor:
        if broken == "raises":
            raise RuntimeError("out of resource: shared memory")
        return torch.zeros_like(self.request.known)

    cpu = torch.device("cpu")
    monkeypatch.setattr(probe, "_verdicts", {})
    monkeypatch.setattr(executor.Sampling, "draw", draw)
    with pytest.warns(
        RuntimeWarning, match=r"triton sampler failed its probe on cpu.*falling back"
    ) as warned:
        reason = probe.verdict("sampler", "triton", cpu, torch.float64, 1, Part(4))
    assert len(warned) == 1
    assert ("codes are wrong" if broken == "wrong" else "out of resource") in reason
    assert (
        probe.verdict("sampler", "triton", cpu, torch.float64, 1, Part(4)) == reason
    )  # a second warning would be an error


def test_it_is_refused_where_it_cannot_run(make_prior: MakePrior) -> None:
    with pytest.raises(RuntimeError, match=r"triton sampler runs on .*cuda, not on meta"):
        make_prior("gated").to("meta").sample(1, (2, 2), method="triton")


@pytest.mark.slow
def test_sampling_on_a_cpu_does_not_import_triton() -> None:
    code = "import sys, vqfast; vqfast.WaveNet(4, 4, 2).sample(1, (3,)); assert 'triton' not in sys.modules"
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=clean)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=interpreted)
        for name in (
            "executors/test_triton",
            "executors/test_triton_front",
            "test_samples",
            "test_program",
            "test_attention",
            "trace/test_networks",
        )
    ],
)
def test_matrix_passes_in_the_interpreter(name) -> None:
    quick = " or ".join(f"({each})" for each in QUICK)
    alternate = (
        "any_tile and ((snail or residual) and (row0 or row3) or (gated or wavenet) and (row1 or row2))"
    )
    assert_passes([SAMPLING / f"{name}.py"], f"(test_triton or triton and ({quick})) and not ({alternate})")
