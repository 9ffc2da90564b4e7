"""flash-kmeans' kernel that assigns vectors to centres, compiled ahead of time as vqfast's search is.

Its private names are those of version 0.3.1.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import compiled


def counts(n: int, k: int, d: int) -> dict[str, Any]:
    """Of float16 vectors on an H100, with the block sizes that it picks there: instructions of a score.

    Raises:
        ImportError: flash-kmeans isn't installed.
    """
    from flash_kmeans import assign_euclid_triton as peer

    sizes = peer._heuristic_euclid_config_h100_smallD(n, k, d, torch.float16)
    strides = {"x_b": n * d, "x_n": d, "x_d": 1, "c_b": k * d, "c_k": d, "c_d": 1}
    strides |= {"xsq_b": n, "xsq_n": 1, "csq_b": k, "csq_k": 1, "out_b": n, "out_n": 1}
    constants = {"B": 1, "N": n, "K": k, "D": d, **{f"stride_{name}": s for name, s in strides.items()}}
    constants |= {"BLOCK_N": sizes["BLOCK_N"], "BLOCK_K": sizes["BLOCK_K"], "D_PAD": peer._pad_d(d)}
    pointers = {
        "x_ptr": "*fp16",
        "c_ptr": "*fp16",
        "x_sq_ptr": "*fp32",
        "c_sq_ptr": "*fp32",
        "out_ptr": "*i32",
    }
    warps, stages = sizes["num_warps"], sizes["num_stages"]
    kernel = compiled.build(peer._euclid_assign_kernel, "sm_90", constants, warps, stages, pointers)
    scores = sizes["BLOCK_N"] * sizes["BLOCK_K"] / (32 * warps)
    return compiled.of_a_score(compiled.search_loop(kernel), scores) | {"vectors": sizes["BLOCK_N"]}
