"""JSON and safetensors files: nothing is pickled, so reading one never runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqfast.files import open_file, read_file, write_file

JSON_BYTES = 32 << 20  # which take less than 1 GB as Python objects
JSON_DEPTH = 16
HEADER_BYTES = 8 << 20  # of a safetensors file, enough for some 100,000 tensors


def write_json(path: Path, value: object) -> None:
    """Writes ``value`` as readable JSON."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a file of ``write_json``.

    Raises:
        ValueError: the file isn't JSON, has a key twice, or is larger than ``JSON_BYTES`` or deeper than
            ``JSON_DEPTH``.
    """
    data = read_file(path, JSON_BYTES)
    try:
        value = json.loads(data, object_pairs_hook=_with_each_key_once)
        _check_depth([value], JSON_DEPTH)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file of vqfast: {error}") from error
    return value


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("it has a key twice")
    return value


def _check_depth(value: dict[str, Any] | list[Any], depth: int) -> None:
    if depth < 0:
        raise ValueError(f"it is nested more than {JSON_DEPTH} deep")
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            _check_depth(inner, depth - 1)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file."""
    from safetensors.torch import save

    write_file(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        ValueError: the file is no safetensors file, or truncated, or its header is larger than
            ``HEADER_BYTES``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with open_file(path) as file:
        header = int.from_bytes(file.read(8), "little")
        # by its descriptor, as safetensors takes no name that isn't UTF-8
        name = f"/dev/fd/{file.fileno()}" if Path("/dev/fd").exists() else path
        try:
            if header > HEADER_BYTES:
                raise ValueError(f"its header has {header} bytes; want {HEADER_BYTES} at most")
            return load_file(name, device=str(device))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error
