"""Waiting for another process: said after a while, with its rank, and ended after a bounded time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

# Rank 1 is late once, then stops; each lets the other wait in a message of its own and in a model's.
SCRIPT = """
import os, signal, sys, time
import torch
from vqfast.nn.ranks import total
from vqfast.pipeline import ranks, watch

watch.BEAT_SECONDS, watch.SAY_SECONDS, ranks.LIMIT_SECONDS = 0.1, 1.0, 4.0
try:
    with ranks.joined("cpu") as joined:
        joined.works_at("the first work")
        if not joined.first:
            time.sleep(2)
        joined.barrier()
        joined.works_at("the second work")
        if not joined.first:
            os.kill(os.getpid(), signal.SIGSTOP)
        total(torch.ones(3))
except TimeoutError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_rank_that_is_late_and_one_that_has_stopped() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, second = (
        subprocess.Popen([sys.executable, "-c", SCRIPT], env={**environment, "RANK": rank}, **pipes)
        for rank in "01"
    )
    try:
        out, err = first.communicate(timeout=300)
    finally:
        second.send_signal(signal.SIGKILL)
        second.communicate()
    late = "vqfast: rank 0 has waited 1 s at the first work for rank 1, which still works"
    stopped = "at the second work for rank 1, which has stopped"
    said = [line for line in err.splitlines() if line.startswith("vqfast")]
    assert said == [late, f"vqfast: rank 0 has waited 1 s {stopped}"]
    assert first.returncode == 0 and out == f"waited {4 / 60:g} minutes {stopped}\n"
