"""Complete images: a prior of handwritten digits draws the lower halves of digits that it hasn't seen.

The codes are the digits' pixels themselves, 17 greys on 8x8; with a VQ-VAE they are those of its encoder.

python examples/complete_images.py [--steps N] [--out FILE]
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

import vqfast

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="completed.png")
    options = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    indices, labels = torch.tensor(digits.images).long(), torch.tensor(digits.target)
    unseen, known_labels = indices[-10:], labels[-10:]
    indices, labels = indices[:-200], labels[:-200]

    prior = vqfast.PixelCNN(17, channels=32, num_layers=4, num_classes=10, head_channels=64)
    adam = torch.optim.Adam(prior.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, options.steps)
    for _ in range(options.steps):
        chosen = torch.randint(len(indices), (64,))
        loss = F.cross_entropy(prior(indices[chosen], labels[chosen]), indices[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()

    prior.eval()
    with torch.inference_mode():
        bits = prior.bits_per_code(unseen, known_labels).mean().item()
    print(f"{bits:.2f} bits a code on unseen digits, of {np.log2(17):.2f} without a model")

    known = unseen.clone()
    known[:, 4:] = -1  # draw the lower half
    draws = [prior.sample(10, (8, 8), labels=known_labels, known=known, seed=seed) for seed in range(4)]
    kept = sum((draw[:, :4] == unseen[:, :4]).all().item() for draw in draws)
    print(f"upper halves kept in {kept} of {len(draws)} sheets")

    lines = [torch.cat([*F.pad(line, (1, 1, 1, 1))], dim=1) for line in (unseen, *draws)]  # originals first
    sheet = (torch.cat(lines) * 255 // 16).to(torch.uint8).numpy()
    Image.fromarray(sheet).resize((sheet.shape[1] * 6, sheet.shape[0] * 6), Image.Resampling.NEAREST).save(
        options.out
    )
    print(f"originals and completions in {options.out}")
