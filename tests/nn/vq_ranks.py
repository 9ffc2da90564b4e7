"""The models and data of test_vq_distributed.py, and as a program one of its two ranks.

Every case trains an encoder and a quantiser for some steps, by DistributedDataParallel or alone. A batch is
cut in two at its ``SPLITS``; the loss is weighted by the share, as for any mean over unequal batches.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqfast.nn import ResidualVQLayer, VQLayer

SPLITS = (5, 2, 8, 0, 3)  # samples of 8 that rank 0 has: unequal, all, none
COMMON = {"kmeans_init": True, "revive_below": 1.5}
CASES = {
    "gradient": lambda: VQLayer(9, 6, **COMMON),
    "ema": lambda: VQLayer(9, 6, decay=0.9, **COMMON),
    "ema without extras": lambda: VQLayer(9, 6, decay=0.9),
    "masked": lambda: VQLayer(9, 6, decay=0.9, **COMMON),
    "cosine heads": lambda: VQLayer(
        5, 6, decay=0.9, heads=2, separate_codebooks=True, metric="cosine", **COMMON
    ),
    "projected": lambda: VQLayer(9, 6, codebook_dim=3, gradient="rotation", **COMMON),
    "residual": lambda: ResidualVQLayer(3, 9, 6, quantize_dropout=True, **COMMON),
    "shared stages": lambda: ResidualVQLayer(3, 9, 6, decay=0.9, shared_codebook=True, **COMMON),
    "compiled": lambda: VQLayer(9, 6, decay=0.9, **COMMON),
    "loaded": lambda: VQLayer(9, 6, decay=0.9, **COMMON),  # by the first rank only, from a checkpoint
    "empty first": lambda: VQLayer(9, 6, **COMMON),
}


class Model(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder, self.vq = nn.Conv1d(4, 6, 1), CASES[name]()

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        out = self.vq(self.encoder(x), mask)
        return out.quantized, out.loss


def train(name: str, rank: int | None) -> dict[str, Tensor]:
    """The state after some steps; ``rank=None`` is one process on the joined batch."""
    torch.manual_seed(7)
    model = run = Model(name).double()
    batches = torch.randn(len(SPLITS), 8, 4, 5, dtype=torch.float64)
    masks = torch.rand(len(SPLITS), 8, 5) < 0.6
    world = 1 if rank is None else 2
    if name == "loaded" and rank != 1:
        trained = CASES[name]()
        trained.set_codebook(torch.randn(9, 6))
        model.vq.load_state_dict(trained.state_dict())
    if rank is not None:
        run = DistributedDataParallel(model)
        if name == "compiled":
            model.vq.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank or 0)  # ranks of different seeds have to agree all the same
    splits = (0, *SPLITS[1:]) if name == "empty first" else SPLITS
    for x, mask, split in zip(batches, masks, splits, strict=True):
        mine = {None: slice(None), 0: slice(split), 1: slice(split, None)}[rank]
        shown = mask if name == "masked" else torch.ones_like(mask)
        quantized, loss = run(x[mine], mask[mine] if name == "masked" else None)
        share = shown[mine].sum() / shown.sum()
        total = quantized.square().sum() / shown.sum() + share * loss
        optimizer.zero_grad()
        (world * total).backward()
        optimizer.step()
    return model.state_dict()


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    init = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    torch.save({name: train(name, rank) for name in CASES}, folder / f"{rank}.pt")
    dist.barrier()  # a rank that leaves early breaks the other's last message
    dist.destroy_process_group()
