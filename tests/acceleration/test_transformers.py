import ast
import copy
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import vqfast
from tests.acceleration.compare import assert_same_curve, nearest, same, searches, tensors
from tests.acceleration.foreign import CASES, DAC_STAGES, RESIDUAL, STAGES, built, has
from vqfast.acceleration import search
from vqfast.acceleration.transformers import REPLACEMENTS

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module", autouse=True)
def torchaudio():
    """Higgs Audio's file imports it; its quantiser doesn't need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
        yield


def quantiser(name: str) -> nn.Module:
    """One of ``CASES``."""
    class_name, sizes, *_ = CASES[name]
    if not has(name, class_name):
        pytest.skip(f"this version of transformers has no {class_name}")
    return built(name, class_name, sizes)


@pytest.mark.parametrize("name", CASES)
def test_quantisers(name):
    _, _, method, shape = CASES[name]
    fast = same(quantiser(name), [torch.randn(shape)] * 2, lambda module, z: getattr(module, method)(z))
    (entry,) = vqfast.accelerate(fast).accelerated
    assert entry == ("", CASES[name][0], 64, 16, "")


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_stages(name):
    class_name, shape, fewer = RESIDUAL[name]
    slow = built(name, class_name, STAGES)
    fast = same(slow, [torch.randn(shape)] * 2, lambda module, z: module.encode(z))
    x = torch.randn(shape)
    assert torch.equal(fast.encode(x, fewer), slow.encode(x, fewer))
    assert len(vqfast.accelerate(fast).accelerated) == 4


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_stages_take_one_search_unless_somebody_changed_them(name):
    class_name, shape, _ = RESIDUAL[name]
    fast, x = built(name, class_name, STAGES), torch.randn(shape)
    vqfast.accelerate(fast)
    codes, searched = searches(fast.encode, x)
    assert searched == 1
    assert searches(fast.bfloat16().encode, x.bfloat16())[1] == 4  # which round what is left
    fast = built(name, class_name, STAGES)
    vqfast.accelerate(fast)
    stage = (fast.layers if hasattr(fast, "layers") else fast.quantizers)[1]
    original = stage.codebook.quantize
    stage.codebook.quantize = lambda rows: original(rows) * 0
    codes, searched = searches(fast.encode, x)
    assert searched == 4
    assert not codes[1].any()


class Wrapped(nn.Module):
    """A stage with something around it."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.encode, self.decode, self.forward = stage.encode, stage.decode, stage.forward


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_stages_that_are_not_as_built_run_one_by_one(name):
    class_name, shape, _ = RESIDUAL[name]
    x = torch.randn(shape)
    for change in ("wrapped", "more codes", "no bias"):
        slow = built(name, class_name, STAGES)
        stages = slow.layers if hasattr(slow, "layers") else slow.quantizers
        if change == "wrapped":
            stages[1] = Wrapped(stages[1])
        elif change == "more codes":
            stages[1] = built(name, type(stages[1]).__name__, {**STAGES, "codebook_size": 128})
        elif hasattr(stages[1], "project_in"):
            stages[1].project_in.bias = None
        codes = slow.encode(x)
        vqfast.accelerate(slow)
        assert torch.equal(slow.encode(x), codes)


@pytest.mark.parametrize("codes, channels, searched", [(511, 512, 0), (512, 512, 1), (511, 511, 1)])
def test_one_vector_is_enough_unless_the_codes_are_few_and_wide(monkeypatch, codes, channels, searched):
    monkeypatch.setattr(search, "MIN_WORK", 2**20)
    sizes = {"codebook_size": codes, "codebook_dim": channels}
    fast = built("encodec", "EncodecEuclideanCodebook", sizes)
    vqfast.accelerate(fast)
    assert searches(fast.encode, torch.randn(1, channels))[1] == searched


def dac_stages() -> nn.Module:
    class_name = next(name for name in DAC_STAGES if has("dac", name))
    return built("dac", class_name, {**STAGES, "codebook_dim": 8})


def dac_calls(module: nn.Module, x: torch.Tensor, *args) -> tuple[object, int]:
    """What it returns, and how often it projected into a stage by itself."""
    calls = []
    conv = type(module.quantizers[0].in_proj)
    with pytest.MonkeyPatch.context() as patch:
        forward = conv.forward
        patch.setattr(conv, "forward", lambda self, x: calls.append(self) or forward(self, x))
        return module(x, *args), len(calls)


@pytest.mark.parametrize("stages", [None, 1, 3, 9])
def test_stages_of_dac(stages):
    fast = same(dac_stages(), [torch.randn(2, 24, 30)] * 2, lambda module, z: module(z, stages))
    assert dac_calls(fast.eval(), torch.randn(2, 24, 30), stages)[1] == 0
    assert len(vqfast.accelerate(fast).accelerated) == 4


def test_stages_of_dac_without_gradients_do_what_they_do_with_them():
    module, x = dac_stages().eval(), torch.randn(2, 24, 30)
    returned = module(x)
    vqfast.accelerate(module)
    with torch.no_grad():
        ours = module(x)
    torch.testing.assert_close(ours, tuple(tensor.detach() for tensor in returned))
    assert not any(tensor.requires_grad for tensor in ours)


def test_second_derivatives_of_dac():
    slow = dac_stages().eval().double()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x, penalties = torch.randn(2, 24, 30).double(), []
    for module in (fast, slow):
        z = x.clone().requires_grad_()
        out, _, latents, commitment, _ = module(z)
        first = torch.autograd.grad((out * latents.sum()).sum() + commitment.sum(), z, create_graph=True)[0]
        first.square().sum().backward()
        weights = module.quantizers[1]
        penalties.append([first.detach(), z.grad, weights.in_proj.weight.grad, weights.out_proj.weight.grad])
    torch.testing.assert_close(*penalties)


def test_forward_mode_of_dac_without_gradients():
    slow = dac_stages().eval().double()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = torch.randn(2, 2, 24, 30).double()
    with torch.no_grad():
        ours, theirs = (
            torch.func.jvp(lambda z, module=module: module(z)[0], (x[0],), (x[1],)) for module in (fast, slow)
        )
    torch.testing.assert_close(ours, theirs)


def test_stages_of_dac_give_the_codes_of_float64():
    slow = dac_stages().eval()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = torch.randn(2, 24, 2000)
    truth = copy.deepcopy(slow).double()(x.double())
    ours, theirs = fast(x), slow(x)
    assert (ours[1] != truth[1]).sum() <= 2 + 2 * (theirs[1] != truth[1]).sum()  # at near ties
    torch.testing.assert_close(fast.double()(x.double()), truth)


@pytest.mark.parametrize("change", ["hook", "replaced", "subclass", "kernel", "no bias", "half"])
def test_stages_of_dac_that_somebody_changed_run_one_by_one(change):
    slow, x = dac_stages().eval(), torch.randn(2, 24, 30)
    conv = slow.quantizers[1].in_proj
    if change == "hook":
        conv.register_forward_hook(lambda module, inputs, output: output + 1)
    elif change == "replaced":
        forward = conv.forward
        conv.forward = lambda x: forward(x) + 1
    elif change == "subclass":
        slow.quantizers[1].out_proj = nn.Sequential(slow.quantizers[1].out_proj)
    elif change == "kernel":
        slow.quantizers[1].in_proj = nn.Conv1d(24, 8, 3, padding=1)
    elif change == "no bias":
        conv.bias = None
    else:
        slow, x = slow.bfloat16(), x.bfloat16()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    ours, convolutions = dac_calls(fast, x)
    assert convolutions > 0
    if change != "half":
        torch.testing.assert_close(ours, slow(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_stages_compile(name):
    torch.compiler.reset()
    class_name, shape, _ = RESIDUAL[name]
    module, x = built(name, class_name, STAGES), torch.randn(shape)
    codes = module.encode(x)
    vqfast.accelerate(module)
    assert torch.equal(torch.compile(module.encode, backend="aot_eager", fullgraph=True)(x), codes)


@pytest.mark.slow
def test_stages_of_dac_compile():
    torch.compiler.reset()
    module, x = dac_stages().eval(), torch.randn(2, 24, 30)
    returned = module(x)
    vqfast.accelerate(module)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), returned)


@pytest.mark.parametrize("name", CASES)
def test_half_precision(name):
    _, _, method, shape = CASES[name]
    slow = quantiser(name).bfloat16()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = torch.randn(shape).bfloat16()
    ours, theirs = (tensors(getattr(module, method)(x)) for module in (fast, slow))
    assert [(y.dtype, y.shape) for y in ours] == [(y.dtype, y.shape) for y in theirs]


def test_codes_are_those_of_float64_where_float32_products_cancel():
    slow = quantiser("encodec")
    slow.embed += 100
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = torch.randn(4096, 16) + 100
    truth = nearest(x, slow.embed)
    assert torch.equal(fast.quantize(x), truth)
    assert (slow.quantize(x) != truth).sum() > 10  # the library errs


def test_glm_image_without_gradients_does_what_it_does_with_them():
    slow, z = quantiser("glm_image"), torch.randn(3, 16, 4, 5)
    slow.embedding.weight.data[7] = 0
    z[1, :, 2, 3] = torch.nan
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    with torch.no_grad():
        ours, theirs = fast(z), slow(z)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert torch.equal(ours[2], theirs[2])


def test_ten_steps_give_the_same_curve():
    module = quantiser("chameleon")
    assert_same_curve(module, lambda out, z: (out[0] - z).square().mean() + out[1], (4, 16, 4, 5))


def test_accelerating_fills_no_cache_of_a_mimi_that_gets_its_weights_later():
    fast = quantiser("mimi")
    vqfast.accelerate(fast)
    other = quantiser("mimi")
    fast.load_state_dict(other.state_dict())
    x = torch.randn(30, 16)
    assert torch.equal(fast.quantize(x), other.quantize(x))


def models() -> dict[str, tuple[nn.Module, int]]:
    """Small ones, and how many codebooks each has."""
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    encodec = EncodecConfig(num_filters=4, hidden_size=16, codebook_size=64, target_bandwidths=[4.5])
    dac = DacConfig(encoder_hidden_size=8, decoder_hidden_size=16, n_codebooks=3, codebook_size=64)
    return {"encodec": (EncodecModel(encodec), 10), "dac": (DacModel(dac), 3)}


@pytest.mark.parametrize("name", ["encodec", "dac"])
def test_whole_models(name):
    slow, codebooks = models()[name]
    for key, codes in slow.state_dict().items():
        if key.endswith((".embed", "codebook.weight")):
            codes.normal_()
    fast = copy.deepcopy(slow.eval())
    assert len(vqfast.accelerate(fast).accelerated) == codebooks
    x = torch.randn(1, 1, 16384)
    ours, searched = searches(torch.no_grad()(fast.encode), x)
    assert searched == 1  # for all stages
    assert torch.equal(ours.audio_codes, slow.encode(x).audio_codes)


LEAST = re.compile(r"argmin\(|cdist\(|dist\.max\(")
NO_CODES = {
    "owlvit.OwlViTForObjectDetection": "the box that is most unlike the others",
    "inkling.plan_out_scales": "patch sizes",
    "esm.EsmCategoricalMixture": "the bin of a number",
    "esmfold2.EsmFold2ConfidenceHead": "distances between atoms",
}


def searching(file: Path) -> set[str]:
    """``model.Name`` of each class or function in a file that takes a least distance."""
    source = file.read_text(encoding="utf-8")
    parts = ast.parse(source).body if LEAST.search(source) else []
    parts = [part for part in parts if isinstance(part, (ast.ClassDef, ast.FunctionDef))]
    return {
        f"{file.parent.name}.{part.name}"
        for part in parts
        if LEAST.search(ast.get_source_segment(source, part))
    }


def test_every_class_that_searches_a_codebook_is_known():
    folder = Path(importlib.import_module("transformers").__file__).parent / "models"
    found = set().union(*(searching(file) for file in folder.glob("*/modeling_*.py")))
    known = {f"{name.split('.')[2]}.{name.rpartition('.')[2]}" for name in REPLACEMENTS}
    assert found - known == NO_CODES.keys()
    assert len(found & known) == sum(has(name, class_name) for name, (class_name, *_) in CASES.items())


def test_saved_and_loaded_by_the_library(tmp_path):
    slow, _ = models()["encodec"]
    fast = copy.deepcopy(slow.eval())
    vqfast.accelerate(fast)
    fast.save_pretrained(tmp_path)
    loaded = type(slow).from_pretrained(tmp_path).eval()
    assert type(loaded.quantizer.layers[0].codebook) is type(slow.quantizer.layers[0].codebook)
    x = torch.randn(1, 1, 8192)
    assert torch.equal(loaded.encode(x).audio_codes, fast.encode(x).audio_codes)


@pytest.mark.parametrize("name", ["encodec", "dac"])
def test_restored_whole(name):
    model, _ = models()[name]
    before = [(type(module), set(vars(module))) for module in model.modules()]
    vqfast.accelerate(model)
    vqfast.accelerate(model, restore=True)
    assert [(type(module), set(vars(module))) for module in model.modules()] == before


def test_patch_reaches_models_built_later():
    names = vqfast.accelerate.patch("transformers")
    try:
        classes = (name.rpartition(".")[::2] for name in REPLACEMENTS)
        assert names == [f"{file}.{name}" for file, name in classes if has(file.split(".")[2], name)]
        model, _ = models()["encodec"]
        assert searches(model.eval().encode, torch.randn(1, 1, 16384))[1] == 1  # for all stages
    finally:
        vqfast.accelerate.patch("transformers", restore=True)
    assert searches(model.encode, torch.randn(1, 1, 16384))[1] == 0


def test_a_pipeline_is_accelerated_as_its_model_is():
    from transformers import EncodecConfig, EncodecModel, Pipeline

    class Tokenise(Pipeline):
        """Waveforms to codes; transformers has no such pipeline, so users write it."""

        def _sanitize_parameters(self, **options):
            return {}, {}, {}

        def preprocess(self, waveform):
            return {"input_values": waveform}

        def _forward(self, inputs):
            return self.model.encode(inputs["input_values"], return_dict=True)

        def postprocess(self, outputs):
            return outputs.audio_codes

    config = EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=64)
    config.upsampling_ratios, config.num_lstm_layers = [4, 2], 1
    model = EncodecModel(config)
    for _, buffer in model.named_buffers():
        if buffer.dim() == 2:
            buffer.normal_()
    pipeline, wave = Tokenise(model=model), torch.randn(1, 1, 800)
    expected = pipeline(wave)
    report = vqfast.accelerate(pipeline)
    codes, found = searches(pipeline, wave)
    torch.testing.assert_close(codes, expected)
    assert found and report.accelerated[0].path == "model.quantizer.layers.0.codebook"
    assert vqfast.accelerate(pipeline, restore=True) == ([], [], [])
