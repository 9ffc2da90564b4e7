"""What holds for all modules alike: wrapping, copying, saving, compiling, restoring, reporting."""

import copy
import inspect
import io
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

import vqfast
from tests.acceleration.compare import searches, tensors
from tests.acceleration.quantisers import D, K, VectorQuantizer
from vqfast.ops import registry


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, D, 1)
        self.quantizer = VectorQuantizer()

    def forward(self, x):
        return self.quantizer(self.encoder(x))


X = torch.linspace(-1, 1, 96).view(2, 3, 4, 4)


@pytest.fixture
def model() -> Model:
    return Model()


def check(fast: nn.Module, slow: nn.Module) -> None:
    """``fast`` searches with vqfast and returns what ``slow`` does."""
    returned, searched = searches(fast, X)
    assert searched == 1
    torch.testing.assert_close(tensors(returned), tensors(slow(X)))


def test_report(model):
    report = vqfast.accelerate(model)
    assert report.accelerated == [("quantizer", "VectorQuantizer", K, D, "")]
    assert report.left_alone == []
    assert str(report) == "accelerated\n  quantizer: VectorQuantizer, K = 32, D = 8"


def test_again_changes_nothing(model):
    report = vqfast.accelerate(model)
    cls = type(model.quantizer)
    assert vqfast.accelerate(model) == report
    assert type(model.quantizer) is cls


def test_hooks_parameters_and_representation_stay(model):
    slow = copy.deepcopy(model)
    weights, text = list(model.parameters()), str(model)
    calls = []
    model.quantizer.register_forward_hook(lambda *args: calls.append(args))
    vqfast.accelerate(model)
    assert isinstance(model.quantizer, VectorQuantizer) and str(model) == text
    assert inspect.signature(model.quantizer.forward) == inspect.signature(slow.quantizer.forward)
    assert all(new is old for new, old in zip(model.parameters(), weights, strict=True))
    assert list(model.state_dict()) == list(slow.state_dict())
    check(model, slow)
    assert len(calls) == 1


def test_restore(model):
    slow = copy.deepcopy(model)
    before = set(vars(model.quantizer))
    vqfast.accelerate(model)
    assert vqfast.accelerate(model, restore=True) == ([], [], [])
    assert type(model.quantizer) is VectorQuantizer and set(vars(model.quantizer)) == before
    assert searches(model, X)[1] == 0
    vqfast.accelerate(model)
    check(model, slow)


def test_copies_are_fast_and_their_own(model):
    slow = copy.deepcopy(model)
    vqfast.accelerate(model)
    copied = copy.deepcopy(model)
    model.quantizer.embedding.weight.data.zero_()
    check(copied, slow)
    vqfast.accelerate(copied, restore=True)
    assert searches(model, X)[1] == 1


def test_saved_whole(model):
    slow = copy.deepcopy(model)
    vqfast.accelerate(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    check(loaded, slow)
    vqfast.accelerate(loaded, restore=True)
    assert type(loaded.quantizer) is VectorQuantizer


def test_weights_loaded_afterwards(model):
    slow = Model()
    vqfast.accelerate(model)
    model.load_state_dict(slow.state_dict())
    check(model, slow)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_before_and_after(model, dtype):
    early, late = copy.deepcopy(model), model.to(dtype)
    vqfast.accelerate(early)
    vqfast.accelerate(late)
    for fast in (early.to(dtype), late):
        (loss, quantized, *_), searched = searches(fast, X.to(dtype))
        assert searched == 1 and loss.dtype == quantized.dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("compiled_first", [True, False])
def test_compiled(model, compiled_first):
    torch.compiler.reset()
    slow = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if compiled_first:
        assert searches(compiled, X)[1] == 0
        vqfast.accelerate(compiled)
    else:
        vqfast.accelerate(model)
    check(compiled, slow)
    vqfast.accelerate(compiled, restore=True)
    assert searches(compiled, X)[1] == 0


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_distributed(model, wrapped_first, tmp_path):
    slow = copy.deepcopy(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        if not wrapped_first:
            vqfast.accelerate(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        if wrapped_first:
            (entry,) = vqfast.accelerate(wrapped).accelerated
            assert entry.path == "module.quantizer"
        check(wrapped, slow)
        for module in (wrapped, slow):
            module(X)[0].backward()
        for ours, theirs in zip(wrapped.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    finally:
        dist.destroy_process_group()


def test_a_forward_replaced_on_the_instance_is_left_alone(model):
    forward = model.quantizer.forward
    model.quantizer.forward = lambda x: forward(x)
    (entry,) = vqfast.accelerate(model).left_alone
    assert entry.note == "its forward was replaced in this instance"


def test_without_a_compiled_backend_all_is_left_alone(model, monkeypatch):
    monkeypatch.setenv("VQFAST_BACKEND", "reference")
    report = vqfast.accelerate(model)
    assert report.accelerated == [] and type(model.quantizer) is VectorQuantizer
    assert report.left_alone[0].note == "no compiled backend runs on cpu here"
    assert str(report).startswith(
        "left alone\n  quantizer: VectorQuantizer, K = 32, D = 8 (no compiled backend"
    )


def test_errors():
    with pytest.raises(
        ValueError, match=r"no known quantiser; want EncodecEuclideanCodebook, .*nn\.Embedding"
    ):
        vqfast.accelerate(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model is a str; want a torch\.nn\.Module"):
        vqfast.accelerate("model")
    with pytest.raises(ValueError, match="library is 'numpy'; want 'transformers', 'diffusers' or 'vector"):
        vqfast.accelerate.patch("numpy")
    with pytest.raises(TypeError, match="restore is 'yes'; want True or False"):
        vqfast.accelerate(nn.Linear(2, 2), restore="yes")


@pytest.mark.slow
def test_importing_vqfast_imports_no_other_library():
    code = (
        "import sys, vqfast, vqfast.acceleration.transformers; assert callable(vqfast.accelerate);"
        "print(*{'transformers', 'diffusers', 'vector_quantize_pytorch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_native_search_is_the_one_that_is_asked():
    assert registry.backend("nearest", torch.zeros(1, 2), 2).__name__ != "vqfast.ops.nearest.reference"
