"""Accelerate a codec of transformers, and see that its codes stay the same: Encodec with random weights.

python examples/accelerate_codec.py [--seconds N]
"""

import argparse
import time

import torch
from transformers import EncodecConfig, EncodecModel

import vqfast


def timed(model: EncodecModel, audio: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """The codes of ``audio``, and the best of three times of the model and of its quantiser alone, in ms."""
    times: dict[str, list[float]] = {"whole model": [], "quantiser": []}
    with torch.inference_mode():
        embeddings = model.encoder(audio)
        for _ in range(3):
            began = time.perf_counter()
            codes = model.encode(audio, bandwidth=24.0).audio_codes
            times["whole model"].append(1e3 * (time.perf_counter() - began))
            began = time.perf_counter()
            model.quantizer.encode(embeddings, bandwidth=24.0)
            times["quantiser"].append(1e3 * (time.perf_counter() - began))
    return codes, {name: min(found) for name, found in times.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0, help="of audio")
    seconds = parser.parse_args().seconds

    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig()).eval()  # a trained one: EncodecModel.from_pretrained(...)
    for codebook in (layer.codebook.embed for layer in model.quantizer.layers):
        codebook.normal_()  # random weights leave them zero
    audio = torch.randn(1, 1, int(seconds * model.config.sampling_rate))

    before, slow = timed(model, audio)
    report = vqfast.accelerate(model)
    after, fast = timed(model, audio)

    print(f"accelerated: {len(report.accelerated)} quantisers, left alone: {len(report.left_alone)}")
    for entry in report.left_alone:
        print(f"  {entry}")
    print(f"codes that differ: {(before != after).sum().item()} of {before.numel()}")
    for name in slow:
        print(f"{name}: {slow[name]:.1f} ms before, {fast[name]:.1f} ms after")
