"""The models and data of test_vq_distributed.py, and as a program one of its ranks.

Every case trains an encoder and a quantiser for some steps, by DistributedDataParallel or alone. A batch is
cut at its ``SPLITS``; the loss is weighted by the share, as for any mean over unequal batches.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from vqfast.models import VQVAE
from vqfast.nn import ResidualVQLayer, VQLayer
from vqfast.nn.sharded import gathered

WORLD = 3  # neither sizes nor codes can all be shared evenly
# where the ranks' shares of 8 samples begin and end: unequal, the first or the last empty, all in one
SPLITS = ((0, 3, 5, 8), (0, 2, 8, 8), (0, 8, 8, 8), (0, 0, 1, 8), (0, 3, 4, 8))
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
    "residual": lambda: ResidualVQLayer(9, 6, 3, quantize_dropout=True, **COMMON),
    "shared stages": lambda: ResidualVQLayer(9, 6, 3, decay=0.9, shared_codebook=True, **COMMON),
    "compiled": lambda: VQLayer(9, 6, decay=0.9, **COMMON),
    "loaded": lambda: VQLayer(9, 6, decay=0.9, **COMMON),  # by the first rank only, from a checkpoint
    "empty first": lambda: VQLayer(9, 6, **COMMON),
}
SHARDED = ("gradient", "ema", "cosine heads", "projected", "residual")  # by FSDP2 too


class Model(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder, self.vq = nn.Conv1d(4, 6, 1), CASES[name]()

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        out = self.vq(self.encoder(x), mask)
        return out.quantized, out.loss


def train(name: str, rank: int | None, sharded: bool = False) -> dict[str, Tensor]:
    """The state after some steps, and codes; ``rank=None`` is one process on the joined batch."""
    torch.manual_seed(7)
    model = run = Model(name).double()
    batches = torch.randn(len(SPLITS), 8, 4, 5, dtype=torch.float64)
    masks = torch.rand(len(SPLITS), 8, 5) < 0.6
    world = 1 if rank is None else WORLD
    if name == "loaded" and not rank:
        trained = CASES[name]()
        trained.set_codebook(torch.randn(9, 6))
        model.vq.load_state_dict(trained.state_dict())
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    elif rank is not None:
        run = DistributedDataParallel(model)
        if name == "compiled":
            model.vq.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank or 0)  # ranks of different seeds have to agree all the same
    splits = ((0, 0, 4, 8), *SPLITS[1:]) if name == "empty first" else SPLITS
    for x, mask, split in zip(batches, masks, splits, strict=True):
        mine = slice(None) if rank is None else slice(split[rank], split[rank + 1])
        shown = mask if name == "masked" else torch.ones_like(mask)
        quantized, loss = run(x[mine], mask[mine] if name == "masked" else None)
        share = shown[mine].sum() / shown.sum()
        total = quantized.square().sum() / shown.sum() + share * loss
        optimizer.zero_grad()
        (world * total).backward()
        optimizer.step()
    with torch.no_grad():
        indices = model.vq.encode(batches[0, :, :2].repeat(1, 3, 1))
        decoded = model.vq.decode(indices)
    state = {name: gathered(value) for name, value in model.state_dict().items()}
    return {**state, "indices": indices, "decoded": decoded}


def vqvae(sharded: str = "") -> dict[str, Tensor]:
    """What the methods of a VQ-VAE beside ``forward`` give after a step; sharded as a whole or by parts."""
    torch.manual_seed(7)
    sizes = {"in_channels": 1, "hidden_channels": 8, "embedding_dim": 4, "num_embeddings": 8}
    # all ranks have the same batch: a start from the joined one would differ
    model = VQVAE("paper", **sizes, kmeans_init=False, revive_below=0).double()
    x = torch.rand(2, 1, 8, 8).double()
    parts = (model.encoder, model.vq, model.decoder) if sharded == "parts" else ()
    for part in (*parts, model) if sharded else ():
        fully_shard(part, mesh=init_device_mesh("cpu", (WORLD,)))
    model(x).loss.backward()
    indices = model.encode(x)
    image = model.decode(indices)
    image.sum().backward()  # through the parts
    gradient = next(model.decoder.parameters()).grad
    codes = torch.rand(8, 4).double()
    model.vq.set_codebook(codes)
    result = {"indices": indices, "image": image.detach(), "gradient": gathered(gradient)}
    return {**result, "codes": gathered(model.vq.codebook.detach())}


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    init = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD)
    states = {name: train(name, rank) for name in CASES}
    states |= {f"{name} sharded": train(name, rank, sharded=True) for name in SHARDED}
    states |= {f"vqvae {sharded}": vqvae(sharded) for sharded in ("all", "parts")}
    torch.save(states, folder / f"{rank}.pt")
    dist.barrier()  # a rank that leaves early breaks the others' last message
    dist.destroy_process_group()
