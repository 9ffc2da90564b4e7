"""Lead a clip by actions: a prior learns what each action does to the next frame, and draws where they lead.

The codes are a room of 6 x 8 cells with a ball in one of them; with a VQ-VAE they are those of its encoder.

python examples/lead_clips.py [--steps N] [--out FILE]
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from vqfast.data.video import gif_bytes
from vqfast.priors import ClipPrior

MOVES = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])  # actions: right, down, left, up
ROOM = torch.tensor([6, 8])


def led(place: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Clips ``(N, T, 6, 8)``, 1 where the ball is: from ``place`` in the first frame; walls stop it."""
    places = [place]
    for action in actions.T[1:]:
        places.append((places[-1] + MOVES[action]).clamp(min=0).minimum(ROOM - 1))
    row, column = torch.stack(places, 1).unbind(2)
    return F.one_hot(row * 8 + column, 48).unflatten(2, (6, 8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", default="led.gif")
    options = parser.parse_args()

    torch.manual_seed(0)
    prior = ClipPrior(
        2, channels=16, num_layers=2, head_channels=32, context_channels=32, context_blocks=2, num_actions=4
    )
    adam = torch.optim.Adam(prior.parameters(), 1e-3)
    for _ in range(options.steps):
        actions = torch.randint(4, (16, 6))
        clips = led((torch.rand(16, 2) * ROOM).long(), actions)
        loss = F.cross_entropy(prior(clips, actions=actions), clips)
        adam.zero_grad()
        loss.backward()
        adam.step()
    prior.eval()

    # two given frames, then eight that the actions lead to: round a square
    lead = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 3, 3]])
    truth = led(torch.tensor([[1, 1]]), lead)
    drawn = prior.sample(1, (10, 6, 8), known=truth[:, :2], actions=lead)
    right = (drawn == truth).flatten(2).all(2)[0, 2:].sum().item()
    print(f"{right} of 8 frames are where the actions lead")

    frames = (drawn[0, ..., None] * 255).byte().repeat_interleave(16, 1).repeat_interleave(16, 2)
    Path(options.out).write_bytes(gif_bytes(frames.numpy(), rate=4))
    print(f"the clip in {options.out}")
