"""Where the modules of an op are: the one place that maps names to packages."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_PACKAGES = {"sampler": "vqfast.sampling.executors"}  # imported by name: ops are below sampling


def module(op: str, name: str) -> ModuleType:
    """The module ``name`` of ``op``: a backend, the reference or its ``probe``."""
    path = f"{_PACKAGES.get(op, f'vqfast.ops.{op}')}.{name}"
    return sys.modules.get(path) or importlib.import_module(path)
