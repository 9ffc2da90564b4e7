"""Classes of other versions than the known ones are left alone, and the report says why."""

import ast
import importlib
import inspect
from functools import wraps

import pytest
import torch
from torch import nn

import vqfast
from tests.acceleration.compare import searches
from tests.acceleration.foreign import LIBRARIES
from vqfast.acceleration import REPLACEMENTS, replacement
from vqfast.acceleration.replacement import Replacement

X = torch.randn(2, 30, 16)


def left(module: nn.Module) -> set[str]:
    """Why all quantisers in a module were left alone."""
    report = vqfast.accelerate(module)
    assert report.accelerated == []
    return {entry.note for entry in report.left_alone}


def built(name: str, library: str = "vector-quantize-pytorch") -> nn.Module:
    pytest.importorskip(library.replace("-", "_"), reason=f"{library} is not installed")
    return LIBRARIES[library][name].build()


def decorated(method):
    @wraps(method)
    def wrapper(*args, **kwargs):
        return method(*args, **kwargs)

    return wrapper


class Base(nn.Module):
    """Has what a replacement may need: as a buffer, a property, a parameter, or in a parent."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.zeros(4, 2))

    @property
    def width(self):
        return self.inner

    @decorated
    def forward(self, x, mask=None):
        return self.quantize(x, self.given)

    def quantize(self, x, extra):
        return x


class Kept(Base):
    pass


class Around(Base):
    def forward(self, x, mask=None):
        return x


def same(original, self, x, extra):
    return x


def first_of(original, self, x, *args):
    return x


def other(original, self, vectors):
    return vectors


@pytest.mark.parametrize(
    ("cls", "methods", "needs", "reason"),
    [
        (Kept, {"quantize": same}, ("codes", "width", "inner", "given", "mask"), ""),
        (Kept, {"quantize": first_of}, (), ""),
        (Kept, {"quantize": other}, (), "this version's Kept.quantize takes other arguments"),
        (Kept, {"quantize": same}, ("codes", "scale", "beta"), "this version's Kept has no scale, beta"),
        (Kept, {"encode": same}, (), "this version's Kept has no encode"),
        (Around, {"quantize": same}, (), "this version's Around.forward doesn't call quantize"),
    ],
)
def test_attributes_that_a_replacement_needs_of_a_class(cls, methods, needs, reason):
    wanted = Replacement(methods, lambda module: (4, 2), needs, callers=("forward",))
    assert replacement.mismatch(cls, wanted) == reason
    patched = Replacement({"forward": first_of}, lambda module: (4, 2))
    replacement.patch(Base, patched)
    try:
        assert replacement.mismatch(cls, wanted) == reason  # the same when its forward is replaced
    finally:
        replacement.unpatch(Base, patched)


@pytest.mark.parametrize("library", ["transformers", "diffusers", "vector_quantize_pytorch"])
def test_replacements_declare_all_that_they_read_of_a_module(library):
    tree = ast.parse(inspect.getsource(importlib.import_module(f"vqfast.acceleration.{library}")))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "residual")
        and isinstance(node.ctx, ast.Load)
    }
    known = [each for name, each in REPLACEMENTS.items() if name.startswith(library)]
    declared = {name for each in known for name in (*each.needs, *each.methods)}
    assert {name for name in read if not hasattr(nn.Module(), name)} <= declared


@pytest.mark.parametrize(("cls", "need"), [("Codebook", "vq_bridge"), ("VectorQuantize", "gumbel_sample")])
def test_a_version_without_what_is_needed_is_left_alone_and_not_patched(monkeypatch, cls, need):
    module, names = built("ResidualVQ"), replacement._names
    without = {need}
    monkeypatch.setattr(
        replacement, "_names", lambda of: names(of) - (without if of.__name__ == cls else set())
    )
    assert left(module) == {f"this version's {cls} has no {need}"}
    try:
        patched = vqfast.accelerate.patch("vector_quantize_pytorch")
        assert not any(name.endswith(".VectorQuantize") for name in patched)
        assert searches(module, X)[1] == 0
    finally:
        vqfast.accelerate.patch("vector_quantize_pytorch", restore=True)


def test_a_part_that_is_not_the_librarys_is_left_alone_with_the_whole():
    module = built("VectorQuantize")
    module._codebook.forward = module._codebook.forward
    assert left(module) == {"its forward was replaced in this instance"}
    module = built("VectorQuantize")
    codebook = module._codebook
    module._codebook = nn.Module()
    module._codebook.embed = codebook.embed
    assert left(module) == {"its _codebook is a Module"}


def test_stages_that_are_asked_for_more_than_a_search():
    assert left(built("ResidualVQ of beams")) == {"the residual quantiser uses beam search"}
    report = vqfast.accelerate(built("ResidualVQ, implicit codebooks"))
    assert [entry.path for entry in report.accelerated] == ["layers.0"]
    assert {(entry.path, entry.note) for entry in report.left_alone} == {
        (f"layers.{q}", "a network computes its codebook for each vector") for q in (1, 2)
    }


def test_a_replaced_encode_is_left_alone():
    module = built("EncodecEuclideanCodebook", "transformers")
    module.encode = lambda x: x
    assert left(module) == {"its encode was replaced in this instance"}
    base = type(built("EncodecEuclideanCodebook", "transformers"))
    module = built("EncodecEuclideanCodebook", "transformers")
    module.__class__ = type("Own", (base,), {"encode": lambda self, x: x})
    assert left(module) == {"its class has its own encode"}


def test_an_offloaded_codebook():
    module = built("DacVectorQuantize", "transformers")
    module.codebook._hf_hook = object()
    assert left(module) == {"its codebook is offloaded"}
