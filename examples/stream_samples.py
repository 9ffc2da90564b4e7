"""Stream a million samples: each batch is used as it comes, and nothing grows with their number.

python examples/stream_samples.py [--num N]
"""

import argparse
import resource
import time

import torch

import vqfast


def memory() -> float:
    """The most that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--num", type=int, default=1_000_000)
    num = parser.parse_args().num

    torch.manual_seed(0)
    prior = vqfast.PixelCNN(32, channels=8, num_layers=2, num_classes=10, head_channels=16).eval()
    counts = torch.zeros(32, dtype=torch.long)

    def labels(samples: range) -> torch.Tensor:
        """The classes take turns; asked for a batch at a time."""
        return torch.arange(samples.start, samples.stop) % 10

    began, done = time.perf_counter(), 0
    for indices in prior.sample_batches(num, (4, 4), labels=labels, seed=0, batch_size=4096):
        counts += indices.flatten().bincount(minlength=32)
        if done == 0:
            first, held = indices[:4], memory()
        done += len(indices)
    seconds = time.perf_counter() - began
    print(f"{done} samples of 4x4 codes in {seconds:.1f} s, {done / seconds:.0f} a second")
    print(f"memory: {held:.0f} MB after the first batch, {memory():.0f} MB at the end")
    print(f"most frequent code: {counts.argmax().item()}, {counts.max().item() / counts.sum().item():.1%}")

    again = prior.sample(1, (4, 4), labels=3, seed=0, numbers=torch.tensor([3]))
    print(f"sample 3 drawn alone is the same: {torch.equal(again[0], first[3])}")
