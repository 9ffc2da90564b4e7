"""Prebuilds the native library where torch and a compiler are at hand; else it is compiled on first use."""

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "vqfast" / "ops"))

try:
    import library
except Exception as error:  # no torch here, or one that can't be loaded
    print(f"native library left for the first use: {error}")
    library = None


class BuildNative(build_ext):
    """Builds beside the sources; an editable install compiles on first use, as its sources change."""

    def run(self) -> None:
        if self.editable_mode or self.inplace:
            return
        target = Path(self.build_lib, "vqfast", "csrc", library.PREBUILT.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            library.build(target, library.find_compiler())
        except (OSError, RuntimeError) as error:
            print(f"native library left for the first use: {error}")

    def get_outputs(self) -> list[str]:
        return []


setup(
    packages=[*find_packages(include=["vqfast*"]), "vqfast.csrc"],
    package_dir={"vqfast.csrc": "csrc"},
    package_data={"vqfast": ["py.typed"], "vqfast.ops": ["records/*.json"], "vqfast.csrc": ["*.cpp", "*.h"]},
    ext_modules=[Extension("vqfast.native", [])] if library else [],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if library else {},
)
