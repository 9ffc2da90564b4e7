"""Nearest code of float32 vectors.

Floor: 2 N K D operations at the float32 peak. More than 100 % of it is possible where the CPU multiplies int8
or bf16. Peers use all threads. Building faiss's index is timed, because a codebook changes with every step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import core
from benchmarks.core import AbsentError, Call, Case, Contenders, Floor, Outputs
from benchmarks.machine import DEVICE
from vqfast.functional import nearest_code

Data = tuple[Tensor, Tensor]
OFFSETS = (0, 100, 1000)


def eager(x: Tensor, codebook: Tensor) -> Tensor:
    """The search that circulates: ``x² + e² - 2xe`` and its argmin."""
    distances = x.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * x @ codebook.T
    return distances.argmin(-1)


def of_pair(search: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """``search`` as a call of one argument, the pair of vectors and codebook."""
    return lambda data: search(*data)


def compiled() -> Call:
    """The eager search, through torch.compile."""
    return of_pair(core.compiled(eager, dynamic=True))


def cdist() -> Call:
    """``torch.cdist`` and an argmin."""
    return of_pair(lambda x, codebook: torch.cdist(x, codebook).argmin(-1))


def faiss() -> Call:
    """faiss's exact index."""
    import faiss

    _on_cpu("faiss-cpu")
    faiss.omp_set_num_threads(torch.get_num_threads())

    def search(x: Tensor, codebook: Tensor) -> Tensor:
        index = faiss.IndexFlatL2(codebook.shape[1])
        index.add(codebook.numpy())
        _, indices = index.search(x.numpy(), 1)
        return torch.from_numpy(indices[:, 0])

    return of_pair(search)


def scikit_learn() -> Call:
    """scikit-learn's argmin of distances."""
    from sklearn.metrics import pairwise_distances_argmin

    _on_cpu("scikit-learn")

    def search(x: Tensor, codebook: Tensor) -> Tensor:
        return torch.from_numpy(pairwise_distances_argmin(x.numpy(), codebook.numpy()))

    return of_pair(search)


def flash_kmeans() -> Call:
    """flash-kmeans' assignment kernel."""
    if DEVICE.type != "cuda":
        raise AbsentError("flash-kmeans runs on a GPU only")
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    def search(x: Tensor, codebook: Tensor) -> Tensor:
        indices: Tensor = euclid_assign_triton(x[None], codebook[None], x.square().sum(-1)[None])
        return indices[0].long()

    return of_pair(search)


def _on_cpu(name: str) -> None:
    if DEVICE.type != "cpu":
        raise AbsentError(f"{name} runs on a CPU only")


PEERS: Contenders = {
    "vqfast": lambda: of_pair(nearest_code),
    "eager": lambda: of_pair(eager),
    "compiled": compiled,
    "cdist": cdist,
    "faiss": faiss,
    "scikit-learn": scikit_learn,
    "flash-kmeans": flash_kmeans,
}
SWEPT = {name: PEERS[name] for name in ("vqfast", "eager", "faiss", "flash-kmeans")}


def exact_distances(z_e: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances in float64, from differences: ``(N, K)``."""
    return torch.cdist(z_e.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def check(data: Data, outputs: Outputs) -> None:
    """No chosen code is farther than the nearest in float64: vqfast by 1e-6, peers by 1e-3 (TF32 on GPUs)."""
    exact = exact_distances(data[0][:256], data[1])
    for name, indices in outputs.items():
        chosen = exact.gather(1, indices[: len(exact), None])[:, 0]
        allowed = 1e-6 if name == "vqfast" else 1e-3
        assert (chosen <= exact.amin(1) * (1 + allowed) + allowed).all(), f"{name} finds wrong codes"


def search(n: int, k: int, d: int, peers: Contenders = PEERS, sweep: str | None = None) -> Case:
    """``n`` vectors of ``d`` channels, ``k`` code vectors."""
    return Case(
        name=f"N {n}, K {k}, D {d}",
        shape={"N": n, "K": k, "D": d},
        contenders=peers,
        data=lambda: (torch.randn(n, d, device=DEVICE), torch.randn(k, d, device=DEVICE)),
        check=check,
        floor=Floor(2.0 * n * k * d, 4.0 * (n * d + k * d) + 8.0 * n),
        sweep=sweep,
        slow=["vqfast"] if n * k > 2e8 and DEVICE.type == "cpu" else (),
    )


SHAPES = [(32768, 512, 64), (32768, 1024, 256), (32768, 8192, 256), (32768, 1024, 8), (32768, 16384, 8)]
SHAPES += [(32768, 4096, 4), (32768, 8192, 16)]
SMALL = [(n, k, d) for n in (1, 4, 16, 64) for k, d in ((512, 64), (1024, 256), (1024, 8), (2048, 256))]
CASES = [search(*shape) for shape in SHAPES + SMALL]
CASES += [search(n, 1024, 64, SWEPT, "N") for n in (64, 512, 4096, 32768, 262144)]
CASES += [search(8192, k, 64, SWEPT, "K") for k in (16, 128, 1024, 8192, 65536)]
CASES += [search(8192, 1024, d, SWEPT, "D") for d in (2, 8, 32, 128, 512)]


def findings(**_: object) -> dict[str, dict[str, dict[str, int]]]:
    """How many of 8192 vectors each contender gives another code than float64 does.

    Vectors whose two nearest codes are within 1e-6 of each other, relative, don't count.
    """
    counts: dict[str, dict[str, int]] = {}
    for offset in OFFSETS:
        torch.manual_seed(0)
        data = (torch.randn(8192, 64, device=DEVICE) + offset, torch.randn(512, 64, device=DEVICE) + offset)
        best = exact_distances(*data).topk(2, largest=False)
        clear = best.values[:, 1] > best.values[:, 0] * (1 + 1e-6)
        for name, build in PEERS.items():
            try:
                found = build()(data)
            except (AbsentError, ImportError):
                continue
            wrong = int(((found != best.indices[:, 0]) & clear).sum())
            counts.setdefault(name, {})[f"shifted by {offset}"] = wrong
    return {"wrong codes of 8192": counts}
