import copy

import numpy as np
import pytest
import torch

import vqfast
from tests.acceleration.compare import assert_same_curve, same

pytest.importorskip("diffusers", reason="diffusers is not installed")


def quantiser(**options) -> torch.nn.Module:
    from diffusers.models.autoencoders.vae import VectorQuantizer

    made = VectorQuantizer(64, 16, beta=0.25, **options)
    torch.nn.init.normal_(made.embedding.weight)
    return made


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("sane_index_shape", [True, False])
def test_quantiser(legacy, sane_index_shape):
    module = quantiser(legacy=legacy, sane_index_shape=sane_index_shape)
    fast = same(module, [torch.randn(2, 16, 4, 5) for _ in range(2)])
    assert vqfast.accelerate(fast).accelerated == [("", "VectorQuantizer", 64, 16, "")]


@pytest.mark.parametrize("unknown", ["random", "extra", 3])
@pytest.mark.parametrize("sane_index_shape", [True, False])
def test_remap(tmp_path, unknown, sane_index_shape):
    np.save(tmp_path / "used.npy", np.arange(0, 64, 2))
    module = quantiser(remap=tmp_path / "used.npy", unknown_index=unknown, sane_index_shape=sane_index_shape)
    same(module, [torch.randn(2, 16, 4, 5)])


def test_ten_steps_give_the_same_curve():
    assert_same_curve(quantiser(), lambda out, z: (out[0] - z).square().mean() + out[1], (4, 16, 4, 5))


def test_a_whole_model():
    from diffusers import VQModel

    slow = VQModel(block_out_channels=(32,), num_vq_embeddings=64, vq_embed_dim=4, latent_channels=4).eval()
    fast = copy.deepcopy(slow)
    (entry,) = vqfast.accelerate(fast).accelerated
    assert entry[:4] == ("quantize", "VectorQuantizer", 64, 4)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(fast(x).sample, slow(x).sample)


def test_a_pipeline_is_accelerated_as_its_modules_are():
    from diffusers import DDIMScheduler, DiffusionPipeline, VQModel

    class Tokenise(DiffusionPipeline):
        def __init__(self, vqvae, scheduler):
            super().__init__()
            self.register_modules(vqvae=vqvae, scheduler=scheduler)

        def __call__(self, images):
            return self.vqvae.quantize(self.vqvae.encode(images).latents)[2][2]

    sizes = {"block_out_channels": (8,), "norm_num_groups": 4, "num_vq_embeddings": 64, "latent_channels": 4}
    pipeline, images = Tokenise(VQModel(**sizes).eval(), DDIMScheduler()), torch.randn(1, 3, 8, 8)
    expected = pipeline(images)
    report = vqfast.accelerate(pipeline)
    assert report.accelerated == [("vqvae.quantize", "VectorQuantizer", 64, 4, "")]
    torch.testing.assert_close(pipeline(images), expected, rtol=0, atol=0)
