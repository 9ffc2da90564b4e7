"""A user's program, which ``mypy --strict`` accepts: each result has the type that is written here."""

from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import vqfast
from vqfast import functional

z = torch.randn(2, 8, 4, 4)

layer = vqfast.VQLayer(32, 8, decay=0.99, metric="cosine", kmeans_init=True, revive_below=0.5)
output = assert_type(layer(z), vqfast.VQOutput)
output, parts = assert_type(layer(z, return_parts=True), tuple[vqfast.VQOutput, vqfast.LossParts])
loss: Tensor = output.loss + parts.commitment + parts.codebook
codes = assert_type(layer.encode(z), Tensor)
assert_type(layer.decode(codes), Tensor)
assert_type(layer.codebook, Tensor)
layer.set_codebook(torch.randn(32, 8))
layer.freeze()

residual = vqfast.ResidualVQLayer(32, 8, 3, quantize_dropout=True, beta=0.5)
assert_type(residual(z), vqfast.VQOutput)
assert_type(residual(z, return_parts=True)[1], vqfast.LossParts)
assert_type(residual.encode(z), Tensor)

conv = vqfast.MaskedConv2d(8, 8, 3, mask_type="A", stack="full")
assert_type(conv(z), Tensor)

assert_type(functional.nearest_code(torch.randn(5, 8), layer.codebook), Tensor)
assert_type(
    functional.nearest_code(torch.randn(5, 8), layer.codebook, return_distances=True), tuple[Tensor, Tensor]
)
assert_type(functional.quantize(z, layer.codebook), functional.Quantized)
assert_type(functional.perplexity(codes, 32), Tensor)
assert_type(functional.residual_codes(z, [layer.codebook]), Tensor)

model = vqfast.VQVAE(hidden_channels=16)
reconstruction = assert_type(model(torch.randn(1, 3, 16, 16)), vqfast.VQVAEOutput)
assert_type(model.encode(torch.randn(1, 3, 16, 16)), Tensor)
assert_type(vqfast.load_model("run", "model"), nn.Module)
vqfast.load_model(Path("run"), "prior")

prior = vqfast.PixelCNN(32, num_classes=10)
assert_type(prior(codes), Tensor)
assert_type(prior.sample(4, (4, 4), labels=torch.arange(4), temperature=0.9, seed=1), Tensor)
assert_type(prior.bits_per_code(codes, labels=3), Tensor)
vqfast.WaveNet(32).sample(1, (64,))
vqfast.ResidualPixelCNN(32).sample(1, (4, 4))


class Autoencoder(nn.Module):
    """A model of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.vq = vqfast.VQLayer(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Straight through."""
        return self.vq(x).quantized


report = assert_type(vqfast.accelerate(Autoencoder()), vqfast.Report)
assert_type(report.accelerated[0].path, str)
assert_type(vqfast.accelerate.patch("vector_quantize_pytorch"), list[str])
vqfast.accelerate.patch("vector_quantize_pytorch", restore=True)
