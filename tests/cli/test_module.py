"""``python -m vqfast``."""

import subprocess
import sys

import vqfast


def test_python_m_vqfast() -> None:
    command = [sys.executable, "-m", "vqfast", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert vqfast.__version__ in done.stdout
