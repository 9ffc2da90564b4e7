"""The library for aarch64, cross-compiled and run by an emulator: tests of ops and of the sampler pass there.

Nothing is timed: an emulator says nothing of speed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vqfast.ops import build

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("VQFAST_CROSS_CXX", "aarch64-linux-gnu-g++")
EMULATOR = os.environ.get("VQFAST_EMULATOR", "qemu-aarch64-static -L /usr/aarch64-linux-gnu")
MISSING = [words for words in (COMPILER, EMULATOR) if not shutil.which(shlex.split(words)[0])]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"there is no {' and no '.join(MISSING)}"),
]
FILES = [
    "tests/ops/test_nearest.py",
    "tests/ops/test_few_vectors.py",
    "tests/ops/test_residual.py",
    "tests/ops/test_residual_codes.py",
    "tests/ops/test_masked_conv.py",
    "tests/ops/test_masked_conv_fused.py",
    "tests/ops/test_masked_conv_embed.py",
    "tests/sampling/executors/test_same_draws.py",
    "tests/sampling/executors/test_precision.py",
]
CHOSEN = (  # of each kernel; all would take long
    "odd_sizes or lowest_index or any_strides or one_hot or ordinary or gate_equals or stages_between"
    " or odd_models or draw_alike"
)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command that runs the library's server (``emulation/server.cpp``) in the emulator."""
    folder = tmp_path_factory.mktemp("aarch64")
    compiler, native, server = shlex.split(COMPILER), folder / "native.so", folder / "server"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "INSTRUCTION_SETS", build.instruction_sets("aarch64"))
        assert build.build(native, compiler, ["neon"], foreign=True) == {}
    source = Path(__file__).parent / "emulation" / "server.cpp"
    flags = ["-std=c++20", "-O2", f"-I{build.SOURCES}", "-pthread"]
    subprocess.run([*compiler, *flags, source, "-o", server, "-ldl"], check=True)
    return shlex.join([*shlex.split(EMULATOR), str(server), str(native)])


def test_neon_kernels_pass_the_tests_of_the_ops_and_the_sampler(emulated: str, tmp_path: Path) -> None:
    plugins = ["-p", "tests.ops.emulation.client", "-p", "no:cacheprovider", "--tb=short", "--maxfail=5"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *FILES, "-k", f"native and ({CHOSEN})"],
        cwd=ROOT,
        env={**os.environ, "VQFAST_EMULATED": emulated, "VQFAST_ISA": "neon"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_library_asks_for_no_newer_glibc_than_torch(emulated: str) -> None:
    versions = build.symbol_versions(Path(shlex.split(emulated)[-1]))
    assert versions["GLIBC"] <= (2, 28)
    assert versions["GLIBCXX"] <= (3, 4, 24)
