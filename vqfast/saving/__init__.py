"""Models as files: weights in safetensors, the arguments of the model's class in JSON."""

from vqfast.saving.pretrained import Pretrained

__all__ = ["Pretrained"]
