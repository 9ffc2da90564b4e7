"""What may stand in place of a good file: damage, hostile values, false claims and what is no file at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HOSTILE: list[Any] = [
    *(-1, 0, 1, 2, 15.0, 1.5, -0.0, 10**7, 2**31, 2**62, 2**63, 10**400, 1e308, float("nan"), float("inf")),
    *("", "15", "digits", "x" * 10_000, "\0", "\ud800", "../../x", "/dev/zero", None, True, False, [], {}),
    *([1, 2, 3], {"a": 1}, [[]] * 1000),
]


def bytes_of(rng: random.Random, data: bytes) -> bytes:
    """Damage that needs to know nothing: flips, cuts, insertions, repetitions."""
    kind, copy, place = rng.randrange(7), bytearray(data), rng.randrange(len(data) + 1)
    if kind < 2:
        for _ in range(rng.choice((1, 2, 16))):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
        return bytes(copy)
    if kind == 2:  # the head is where the claims are
        copy[rng.randrange(min(64, len(copy)))] = rng.choice((0, 255, rng.randrange(256)))
        return bytes(copy)
    noise = rng.randbytes(rng.choice((1, 8, 1000)))
    return {
        3: data[:place],
        4: data[:place] + noise + data[place:],
        5: data + data,
        6: rng.choice((b"", noise, b"\0" * len(data), b"PK\x05\x06" + bytes(18))),
    }[kind]


def json_of(rng: random.Random, data: bytes) -> bytes:
    """A value replaced, removed or added; a key twice; text that no parser likes."""
    kind, value = rng.randrange(10), json.loads(data)
    nodes: list[Any] = [value]
    for node in nodes:
        nodes += [inner for inner in node.values() if isinstance(inner, dict)]
    node = rng.choice(nodes)
    key = rng.choice(sorted(node)) if node else "a"
    if kind < 6:
        node[key] = rng.choice(HOSTILE)
    elif kind == 6:
        node.pop(key, None)
    elif kind == 7:
        node[rng.choice(("unknown", "", "../x", "\0"))] = rng.choice(HOSTILE)
    elif kind == 8:
        return rng.choice(
            (
                b"[" * 100_000,
                b'{"a":' * 900 + b"1" + b"}" * 900,
                b"9" * 5000,
                b"\xff\xfe",
                b"[" + b"{}," * 99_999,
            )
        )
    else:
        text = json.dumps(value)
        return text.replace("{", '{"class": 1, "stages": {}, ', 1).encode()
    return json.dumps(value).encode()


def safetensors_of(rng: random.Random, data: bytes) -> bytes:
    """The header's claims, or the values."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind, name = rng.randrange(6), rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    if kind == 0:
        entry["shape"] = rng.choice(
            ([], [0], [2**62], [2**31, 2**31], [-1], [1.5], entry["shape"][::-1], "x", [10**30])
        )
    elif kind == 1:
        entry["dtype"] = rng.choice(
            ("F16", "BF16", "F64", "I32", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", 3)
        )
    elif kind == 2:
        entry["data_offsets"] = rng.choice(([0, 0], [0, 2**62], [-1, 4], [4, 0], [0, len(body)], [], "x"))
    elif kind == 3:
        header[rng.choice(("more", "model.more", "adam.x.y", "adam.99.step", "progress"))] = header.pop(name)
    elif kind == 4:
        values = np.frombuffer(body[: len(body) // 4 * 4], np.float32).copy()
        values[rng.randrange(len(values))] = rng.choice((np.nan, np.inf, -np.inf, 3e38))
        body = values.tobytes() + body[len(body) // 4 * 4 :]
    else:
        return rng.choice((2**63, 50 << 20, size + 1, 0, len(data))).to_bytes(8, "little") + data[8:]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def npy_of(rng: random.Random, data: bytes) -> bytes:
    """Another dtype or shape, or a header that claims one."""
    array = np.load(io.BytesIO(data))
    if rng.randrange(2):
        return _npy(_other(rng, array))
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    key, value = rng.choice(
        (
            (
                "shape",
                rng.choice(((10**11,), (2**62,), (10**6, 10**5), (0,), (-1, 8), (2**31, 2**31, 2**31), ())),
            ),
            (
                "descr",
                rng.choice(("|O", "<f8", ">u2", "|S0", "|V0", "<M8[s]", "<c16", "<U9", "x", [("a", "<i4")])),
            ),
            ("fortran_order", rng.choice((True, "x"))),
            ("more", 1),
        )
    )
    header[key] = value
    text = repr(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data[128:]


def npz_of(rng: random.Random, data: bytes) -> bytes:
    """Arrays of other kinds, or a zip that isn't what it says."""
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    kind, name, buffer = rng.randrange(7), rng.choice(sorted(arrays)), io.BytesIO()
    if kind == 0:
        np.savez(buffer, **{**arrays, name: _other(rng, arrays[name])})
    elif kind == 1:
        arrays.pop(name)
        np.savez(buffer, **arrays)
    elif kind == 2:
        np.savez(buffer, **{**arrays, rng.choice(("more", "labels", "indices", "images")): arrays[name]})
    elif kind == 3:  # a bomb: some megabytes of zeros a kilobyte
        np.savez_compressed(buffer, **{**arrays, name: np.zeros((rng.choice((10**6, 3 * 10**8)),), np.uint8)})
    else:
        members = {f"{key}.npy": _npy(array) for key, array in arrays.items()}
        if kind == 4:
            members[f"{name}.npy"] = npy_of(rng, members[f"{name}.npy"])
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name that comes twice
            for key, member in members.items():
                for _ in range(1 + (kind == 5)):  # each twice
                    file.writestr(key if kind != 6 else rng.choice(("../x", "/x.npy", "x", key[:-4])), member)
    return buffer.getvalue()


def idx_of(rng: random.Random, data: bytes) -> bytes:
    """Other dimensions or another magic; zipped, and zipped too far."""
    zipped = data[:2] == b"\x1f\x8b"
    data = gzip.decompress(data) if zipped else data
    place = 4 * rng.randrange(data[3] + 1)
    word = rng.choice((0, 1, 2**31, 2**32 - 1, 0x00000803, 0x00000D03, rng.randrange(2**32)))
    data = data[:place] + struct.pack(">I", word) + data[place + 4 :]
    if rng.randrange(8) == 0:
        data += bytes(3 * 10**8)
        zipped = True
    return gzip.compress(data, 1) if zipped else data


def png_of(rng: random.Random, data: bytes) -> bytes:
    """Another width, height, depth or colour in the head, with a checksum that is right."""
    head = bytearray(data[16:29])
    place, value = rng.choice(
        ((0, 2**31 - 1), (0, 30_000), (4, 30_000), (4, 0), (8, 16), (8, 3), (9, 6), (9, 3))
    )
    head[place : place + (4 if place < 8 else 1)] = value.to_bytes(4 if place < 8 else 1, "big")
    if rng.randrange(2):
        head[0:8] = struct.pack(">II", 30_000, 30_000)
    return data[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[33:]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _other(rng: random.Random, array: np.ndarray) -> np.ndarray:
    kind = rng.randrange(7)
    if kind == 0:
        return array.astype(
            rng.choice((np.float32, np.float64, np.int64, np.uint16, np.bool_, np.complex64, "U9"))
        )
    if kind == 1:
        return np.full(array.shape, rng.choice((np.nan, -1, 1e30, 0.5)))
    if kind == 2:
        return np.full(array.shape, rng.choice((-1, 2**62, -(2**63), 255)), np.int64)
    if kind == 3:
        return array[: rng.randrange(len(array))]
    if kind == 4:
        return np.concatenate([array, array])
    return [array[..., None], array.reshape(-1)][kind - 5]


def no_file(rng: random.Random, path: Path) -> None:
    """A folder, FIFO or link in place of the file."""
    path.unlink()
    target = rng.choice(("folder", "FIFO", "/dev/zero", "/dev/full", "none", path.name, "."))
    if target == "folder":
        path.mkdir()
    elif target == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(target)


KINDS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": json_of,
    ".safetensors": safetensors_of,
    ".npy": npy_of,
    ".npz": npz_of,
    ".png": png_of,
    "": idx_of,
    ".gz": idx_of,
}


def mutate(rng: random.Random, path: Path, others: list[Path]) -> None:
    """Puts something else in place of a good file: mostly damage of its own kind; or one of ``others``."""
    chance, own = rng.random(), KINDS.get(path.suffix)
    if chance < 0.06:
        no_file(rng, path)
    elif chance < 0.12:
        path.write_bytes(rng.choice(others).read_bytes())
    else:
        path.write_bytes((own if own and chance < 0.7 else bytes_of)(rng, path.read_bytes()))
