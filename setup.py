"""Packages the native library. That needs a compiler, else it is compiled on first use, and no torch.

``VQFAST_PURE=1`` leaves the library out, for a wheel that fits every system and brings the sources alone.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

spec = spec_from_file_location("build_native", Path(__file__).parent / "vqfast" / "ops" / "build.py")
build = module_from_spec(spec)
spec.loader.exec_module(build)

try:
    if os.environ.get("VQFAST_PURE") == "1":
        raise RuntimeError("VQFAST_PURE is 1")
    COMPILER = build.find_compiler()
except RuntimeError as error:
    print(f"native library left for the first use: {error}", file=sys.stderr)
    COMPILER = None


class BuildNative(build_ext):
    """Puts the library beside its sources. In an editable install these change: it compiles on first use."""

    def run(self) -> None:
        if self.editable_mode or self.inplace:
            return
        target = Path(self.build_lib, "vqfast", "csrc", build.PREBUILT.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            for name, reason in build.build(target, COMPILER).items():
                print(f"native library without {name}: {reason}", file=sys.stderr)
        except (OSError, RuntimeError) as error:
            print(f"native library left for the first use: {error}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return []


# What manylinux_2_28 allows: its glibc, and the libraries of its GCC 8.
MANYLINUX = "manylinux_2_28"
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7,)}


class Wheel(bdist_wheel):
    """A wheel for every Python of a platform, as the native library uses none of Python.

    Without the library, it is one for every platform.
    """

    def get_tag(self) -> tuple[str, str, str]:
        library = Path(self.bdist_dir, "vqfast", "csrc", build.PREBUILT.name)
        if not library.exists():
            self.root_is_pure = True
            return "py3", "none", "any"
        platform = super().get_tag()[2]
        asked = build.symbol_versions(library)
        if platform.startswith("linux_") and all(asked[name] <= NEWEST[name] for name in asked):
            platform = platform.replace("linux", MANYLINUX, 1)
        return "py3", "none", platform


class Editable(editable_wheel):
    """An editable install is a path to the root, as type checkers follow no import hooks."""

    def finalize_options(self) -> None:
        self.distribution.packages.remove("vqfast.csrc")  # build.py finds the sources in the checkout
        self.distribution.package_dir = {"": "."}
        super().finalize_options()


CSRC = [path.relative_to(build.SOURCES).as_posix() for path in build.sources()]
setup(
    packages=[*find_packages(include=["vqfast*"]), "vqfast.csrc"],
    package_dir={"vqfast.csrc": "csrc"},
    package_data={
        "vqfast": ["py.typed"],
        "vqfast.ops": ["records/*.json"],
        "vqfast.pipeline.pages": ["page.css"],
        "vqfast.csrc": CSRC,
    },
    ext_modules=[Extension("vqfast.native", [])] if COMPILER else [],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel, "editable_wheel": Editable},
)
