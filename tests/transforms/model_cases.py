"""Each layer and model, small, with an input."""

from __future__ import annotations

import torch

import vqfast
from tests.transforms.plain import codes, draw

STILL = {"kmeans_init": False, "revive_below": 0.0}  # learns by gradients alone
LAYER = {"num_embeddings": 5, "embedding_dim": 4, **STILL}
SHOWN = torch.tensor([[True, True, False], [True, False, True]])
MODELS = {
    "vq": lambda: (vqfast.VQLayer(**LAYER), draw(2, 4, 3)),
    "vq_cosine": lambda: (vqfast.VQLayer(**LAYER, metric="cosine"), draw(2, 4, 3)),
    "vq_rotation": lambda: (vqfast.VQLayer(**LAYER, gradient="rotation"), draw(2, 4, 3)),
    "vq_heads": lambda: (vqfast.VQLayer(**LAYER, heads=2, separate_codebooks=True), draw(2, 4, 3)),
    "vq_projected": lambda: (vqfast.VQLayer(**LAYER, codebook_dim=2, heads=2), draw(2, 4, 3)),
    "vq_ema": lambda: (vqfast.VQLayer(**{**LAYER, "decay": 0.9, "revive_below": 1}).eval(), draw(2, 4, 3)),
    "residual": lambda: (vqfast.ResidualVQLayer(**LAYER, num_quantizers=3), draw(2, 4, 3)),
    "residual_cosine": lambda: (
        vqfast.ResidualVQLayer(**LAYER, num_quantizers=2, metric="cosine"),
        draw(2, 4, 3),
    ),
    "residual_rotation": lambda: (
        vqfast.ResidualVQLayer(**LAYER, num_quantizers=2, shared_codebook=True, gradient="rotation"),
        draw(2, 4, 3),
    ),
    "vqvae": lambda: (
        vqfast.VQVAE(in_channels=1, hidden_channels=4, num_downsamplings=1, num_residual_blocks=1, **LAYER),
        draw(1, 1, 4, 4),
    ),
    "pixelcnn": lambda: (
        vqfast.PixelCNN(5, 4, 2, num_classes=2, condition_channels=2, first_kernel_size=3, head_channels=4),
        codes(1, 3, 3),
    ),
    "residual_pixelcnn": lambda: (vqfast.ResidualPixelCNN(5, 4, 1, 1, first_kernel_size=3), codes(1, 3, 3)),
    "wavenet": lambda: (vqfast.WaveNet(5, 4, 2), codes(1, 6)),
}
