"""The named models of ``VQVAE`` and ``SpeechVQVAE``: what each has in place of the default arguments."""

from typing import Any

from vqfast.models.quantizers import RANDOM_START

CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {"architecture": "paper"},
    "paper-speech-mirrored": {"architecture": "paper", "in_channels": 1, "ndim": 1, "num_downsamplings": 6},
    "paper-video": {"architecture": "paper", "ndim": 3, "frame_by_frame": True},
    "paper-video-halved": {"architecture": "paper", "ndim": 3},
    "keras": {
        "architecture": "keras",
        "in_channels": 1,
        "num_embeddings": 128,
        "embedding_dim": 16,
        **RANDOM_START,
    },
    "ruseckas": {
        "architecture": "ruseckas",
        "num_embeddings": 256,
        "embedding_dim": 16,
        "loss_weight": 0.1,
        **RANDOM_START,
    },
}

SPEECH_CONFIGS: dict[str, dict[str, Any]] = {
    # Vectors have a fixed variance, so that commitment isn't needed for their scale. Before the WaveNet uses
    # the codes it would only pull them together, to a few that tell nothing.
    "paper-speech": {"encoder_strides": (2,) * 6, "decay": 0.95, "beta": 0.02},
    "mel-speech": {
        "encoder_strides": (160, 2, 2),
        "num_mels": 80,
        "mel_weight": 10.0,
        "num_embeddings": 128,
    },
}
