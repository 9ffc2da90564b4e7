"""Time to the first result: a new process, its imports and one small call, with warm and with empty caches.

With empty caches vqfast compiles its native library, unless the package came with one, and torch.compile its
graph. Floor: none; compare with the eager contender, which imports PyTorch and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial

from benchmarks import layer, nearest
from benchmarks.core import Call, Case, Outputs
from benchmarks.machine import DEVICE, ROOT

CALLS = {
    "vqfast": "from vqfast.functional import nearest_code; print(nearest_code(x, codes).tolist())",
    "eager": "from benchmarks.nearest import eager; print(eager(x, codes).tolist())",
    "compiled": "from benchmarks.nearest import compiled; print(compiled()((x, codes)).tolist())",
    "faiss": "from benchmarks.nearest import faiss; print(faiss()((x, codes)).tolist())",
    "vector-quantize-pytorch": (
        "from vector_quantize_pytorch import VectorQuantize; layer = VectorQuantize(dim=2, codebook_size=2)\n"
        "layer._codebook.embed.copy_(codes[None]); print(layer.eval()(x[None])[1][0].tolist())"
    ),
}
PEERS: dict[str, Callable[[], Call]] = {  # raise where a peer isn't there
    "faiss": nearest.faiss,
    "vector-quantize-pytorch": partial(layer.peer, 2, 2, 0.5),
}
CACHES = ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def starter(contender: str, cold: bool) -> Call:
    """Starts a process that prints the codes of two vectors."""
    program = f"import torch; x = torch.eye(2, device={DEVICE.type!r}) * 3; codes = x * 1.0\n"
    if contender in PEERS:
        PEERS[contender]()

    def run(_: None) -> str:
        with tempfile.TemporaryDirectory() as empty:
            own = dict.fromkeys(CACHES, empty) if cold else {}
            path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            command = [sys.executable, "-c", program + CALLS[contender]]
            done = subprocess.run(
                command, env=os.environ | path | own, capture_output=True, text=True, check=True
            )
        return done.stdout

    return run


def check(_: None, outputs: Outputs) -> None:
    """Each vector is a code vector, and must get its index."""
    for name, printed in outputs.items():
        assert printed.split("\n")[-2] == "[0, 1]", f"{name} prints {printed!r}"


def first(cold: bool, contenders: tuple[str, ...]) -> Case:
    """Imports and one search."""
    return Case(
        name=f"import to first code, {'empty caches' if cold else 'warm caches'}",
        shape={"N": 2, "K": 2, "D": 2},
        contenders={name: partial(starter, name, cold) for name in contenders},
        data=lambda: None,
        check=check,
        slow=["compiled"],
        once=cold,
        memory=False,  # another process's
    )


CASES = [first(False, tuple(CALLS)), first(True, ("vqfast", "compiled"))]
