"""Wheel and sdist, each in an environment of its own that shares only the dependencies with this one."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from vqfast.ops import build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FOLDERS = ("vqfast", "csrc", "tests", "benchmarks", "docs", "examples", ".ci")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt", "LICENSE")
FEW_TESTS = (
    "tests/test_functional.py",
    "tests/test_floors.py",
    "tests/test_readme.py",
    "tests/ops/test_contract.py",
)
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def run(command: list[object], cwd: Path, **environment: str) -> str:
    """The output of a command that has nothing of this checkout on its path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VQFAST_BACKEND", "CXX")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all packaged files, with the record of a GPU, to build in."""
    folder, built = (
        tmp_path_factory.mktemp("source"),
        shutil.ignore_patterns("__pycache__", "*.so", "*.sha256"),
    )
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    for name in (*FILES, *PAGES):
        shutil.copy(ROOT / name, folder)
    records = folder / "vqfast" / "ops" / "records"
    records.mkdir(exist_ok=True)
    (records / "a-gpu.json").write_text('{"device": "a GPU", "passed": {"triton": ["nearest"]}}')
    return folder


def environment(folder: Path) -> Path:
    """A new virtual environment's Python; the dependencies come from this environment, but not vqfast."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    # paths from a .pth file come last, and the .pth files in them (editable installs) aren't read
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def install(python: Path, *package: object, **variables: str) -> None:
    """Downloads nothing."""
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", *options, *package]
    run(pip, python.parent, **variables)


USE = """
import warnings
from pathlib import Path
import torch, vqfast
from vqfast.ops import build, records, registry
from vqfast.pipeline.pages.html import page

assert b"color-scheme" in page("a page")  # its style is a file beside the code
assert records.passed("nearest", "triton", "a GPU")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        codes = vqfast.functional.nearest_code(torch.eye(3) * 2, torch.eye(3))
    quantized, indices, loss = vqfast.VQLayer(8, 4)(torch.randn(2, 4, 5, requires_grad=True))
    loss.backward()
    sample = vqfast.PixelCNN(8, 8, 2).sample(2, (3, 3), seed=0)
print(Path(vqfast.__file__).parent)
print(build.PREBUILT.exists())
print(codes.tolist(), indices.shape, sample.shape)
print(registry.refusal("nearest", "native", torch.zeros(1)))
print([str(w.message) for w in caught if "vqfast" in str(w.message)])
"""


def use(python: Path, folder: Path) -> list[str]:
    """The lines that ``USE`` prints where there is no compiler, but the first."""
    nothing = folder / "nothing"
    nothing.mkdir()
    lines = run([python, "-c", USE], folder, PATH=str(nothing), XDG_CACHE_HOME=str(folder / "cache"))
    where, *rest = lines.splitlines()
    assert Path(where).is_relative_to(python.parents[1])
    return rest


def check_contents(source: Path, wheel: Path) -> None:
    """The library without symbols, its digest and sources, and every file of the package; nothing else.

    One wheel is for every Python, free-threaded ones too, and for every Linux since glibc 2.28.
    """
    machine = platform.machine()
    assert wheel.name.endswith(f"-py3-none-manylinux_2_28_{machine}.whl")
    archive = zipfile.ZipFile(wheel)
    native = archive.read("vqfast/csrc/native.so")
    digest = hashlib.sha256(native).hexdigest()
    assert archive.read("vqfast/csrc/native.sha256").decode() == f"{digest}  native.so\n"
    assert b".dynsym" in native and b".symtab" not in native and b".debug" not in native
    for library, newest in (("GLIBC_2", 28), ("GLIBCXX_3.4", 24), ("CXXABI_1.3", 11)):  # as manylinux_2_28
        versions = re.findall(rb"\0%s\.(\d+)" % library.encode(), native)
        assert max(map(int, versions), default=0) <= newest
    package = {path.relative_to(source) for path in (source / "vqfast").rglob("*") if path.is_file()}
    sources = {path.relative_to(source) for path in (source / "csrc").rglob("*.*")}
    wanted = {path.as_posix() for path in package if path.suffix != ".pyc"}
    wanted |= {
        f"vqfast/{path.as_posix()}" for path in sources if path.suffix in (".cpp", ".h", ".def", ".md")
    }
    found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found - wanted == {"vqfast/csrc/native.so", "vqfast/csrc/native.sha256"}
    assert wanted <= found


def test_wheel_without_a_library_is_for_every_platform(source: Path, tmp_path: Path) -> None:
    command = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    run([sys.executable, "-c", command], source, VQFAST_PURE="1")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert "vqfast/csrc/host/library.cpp" in names and not any(name.endswith(".so") for name in names)
    (about,) = [name for name in names if name.endswith("/WHEEL")]
    assert "Root-Is-Purelib: true" in archive.read(about).decode()


@pytest.mark.first
def test_wheel_works_without_a_compiler(source: Path, tmp_path: Path, keeper: str) -> None:
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", tmp_path]
    no_torch = tmp_path / "no torch"
    no_torch.mkdir()
    (no_torch / "torch.py").write_text("raise ImportError('the build needs none')")
    pip = [sys.executable, "-m", "pip", "wheel", source, *options]
    run(pip, tmp_path, PYTHONPATH=str(no_torch), CXX=keeper)
    (wheel,) = tmp_path.glob("*.whl")
    check_contents(source, wheel)
    python = environment(tmp_path / "environment")
    install(python, wheel)
    built, results, refusal, warned = use(python, tmp_path)
    assert built == "True"
    assert results == "[0, 1, 2] torch.Size([2, 5]) torch.Size([2, 3, 3])"
    assert refusal == "None"
    assert warned == "[]"
    assert not list((tmp_path / "cache").rglob("*.so"))
    command = python.with_name("vqfast")
    for isa in build.own_instruction_sets():  # the wheel has all of them
        said = run([command, "info"], tmp_path, PATH="", VQFAST_ISA=isa)
        assert f"native kernels: {isa} (VQFAST_ISA)" in said and "native     runs" in said
    assert f"native kernels: {isa}\n" in run([command, "info"], tmp_path, PATH="")
    # the wheel, not this checkout: the working directory isn't the root
    tests = [python, "-m", "pytest", "-p", "no:cacheprovider", ROOT / "tests" / "test_functional.py"]
    said = run(tests, tmp_path, PATH="", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert " passed" in said


def test_sdist_falls_back_without_a_compiler(source: Path, tmp_path: Path) -> None:
    command = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run([sys.executable, "-c", command], source)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    files = [path for folder in FOLDERS for path in (source / folder).rglob("*") if path.is_file()]
    assert {str(path.relative_to(source)) for path in files if path.suffix != ".pyc"} <= packed
    assert packed >= {*FILES, *PAGES}
    unpacked, pytest = sdist.with_name(sdist.name.removesuffix(".tar.gz")), [sys.executable, "-m", "pytest"]
    assert "no tests" not in run([*pytest, "-p", "no:cacheprovider", "--collect-only"], unpacked)
    assert " passed" in run([*pytest, "-p", "no:cacheprovider", *FEW_TESTS], unpacked)
    python = environment(tmp_path / "environment")
    install(python, sdist, PATH="")
    built, results, refusal, warned = use(python, tmp_path)
    assert built == "False"
    assert results == "[0, 1, 2] torch.Size([2, 5]) torch.Size([2, 3, 3])"
    assert refusal.startswith("native nearest can't run here: no C++ compiler")
    assert warned.count("vqfast runs plain PyTorch") == 1


def test_editable_install_is_a_path(source: Path, tmp_path: Path) -> None:
    """Type checkers follow paths, but no import hooks."""
    python = environment(tmp_path / "environment")
    install(python, "-e", source)
    (site,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    (path,) = site.glob("__editable__*vqfast*.pth")
    assert path.read_text().strip() == str(source)
