"""Has the native library of another machine run the ops of this process: a plugin of pytest.

``pytest -p tests.ops.emulation.client`` with ``VQFAST_EMULATED="COMMAND ... LIBRARY"``, which starts
``server.cpp`` under an emulator. ``torch.ops.vqfast_native`` then sends every call there and takes the
results, so that the tests of ops and of the sampler are those of every other backend. ``VQFAST_ISA`` says
whose kernels run.

A message is a call: the op's name, the number of threads, how many results there are and how many arguments,
then these. A text has its length before it, and a tensor its dtype, sizes and strides; tensors are kinds "t",
or "m" if the op writes to them. The answer is an error's text, the written tensors' numbers, and the results.
"""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vqfast.ops import build, library

DTYPES = {  # by torch's numbers of them
    0: torch.uint8,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    15: torch.bfloat16,
}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
SPACE = torch.library.Library("vqfast_native", "DEF")
SERVER = pytest.StashKey["Server"]()


def span(tensor: Tensor) -> Tensor:
    """The memory from a tensor's first number to its last, which it may share with others."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((last + 1 if tensor.numel() else 0,), (1,))


class Server:
    """The process that runs the library."""

    def __init__(self, command: str, isa: str) -> None:
        words = shlex.split(command)
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin and self.process.stdout
        self.to, self.back = self.process.stdin, self.process.stdout
        self.to.write(self.text(isa))
        self.to.flush()
        self.chosen, self.contract = self.read_text(), self.read_text()
        self.schemas = [self.read_text() for _ in range(self.read("I"))]

    @staticmethod
    def text(value: str) -> bytes:
        return struct.pack("=I", len(value.encode())) + value.encode()

    def read_bytes(self, count: int) -> bytes:
        data = self.back.read(count)
        if len(data) < count:
            raise RuntimeError(f"the emulated library has ended: {self.process.wait()}")
        return data

    def read(self, kind: str) -> Any:
        return struct.unpack(f"={kind}", self.read_bytes(struct.calcsize(f"={kind}")))[0]

    def read_text(self) -> str:
        return self.read_bytes(self.read("I")).decode()

    def read_tensor(self) -> Tensor:
        dtype, dims = DTYPES[self.read("i")], self.read("I")
        sizes, strides = ([self.read("q") for _ in range(dims)] for _ in range(2))
        made = torch.empty_strided(sizes, strides, dtype=dtype, device="cpu")
        self.fill(made)
        return made

    def fill(self, tensor: Tensor) -> None:
        memory = span(tensor)
        data = self.read_bytes(memory.numel() * memory.element_size())
        if data:
            memory.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8).view(memory.dtype))

    def word(self, kind: str, value: Any, written: list[Tensor]) -> bytes:
        """An argument whose type in the schema is ``kind``."""
        if kind.startswith("Optional"):
            inner = kind.removeprefix("Optional[").removesuffix("]")
            return b"n" if value is None else b"o" + self.word(inner, value, written)
        if kind.startswith("List"):
            inner = kind.removeprefix("List[").removesuffix("]")
            items = (self.word(inner, item, written) for item in value)
            return b"l" + struct.pack("=I", len(value)) + b"".join(items)
        if kind != "Tensor":
            return b"w" + struct.pack({"float": "=d", "int": "=q", "bool": "=Q"}[kind], value)
        numbers = (value.dim(), *value.shape, value.dim(), *value.stride())
        layout = f"=iI{value.dim()}qI{value.dim()}q"
        data = span(value.detach()).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        code = b"m" if any(value is each for each in written) else b"t"
        return code + struct.pack(layout, NUMBERS[value.dtype], *numbers) + data

    def call(self, schema: torch.FunctionSchema, *arguments: Any) -> Any:
        defaults = (argument.default_value for argument in schema.arguments[len(arguments) :])
        named = list(zip(schema.arguments, (*arguments, *defaults), strict=True))
        written = [v for a, v in named if a.alias_info and a.alias_info.is_write and v is not None]
        sizes = struct.pack("=III", torch.get_num_threads(), len(schema.returns), len(named))
        words = [self.word(str(argument.type), value, written) for argument, value in named]
        self.to.write(self.text(schema.name.partition("::")[2]) + sizes + b"".join(words))
        self.to.flush()
        error = self.read_text()
        for tensor in written:
            self.fill(tensor)
        if error:
            raise RuntimeError(error)
        results = tuple(self.read_tensor() for _ in schema.returns)
        return results[0] if len(results) == 1 else results or None


class Library:
    """What ``vqfast.ops.library`` asks of a library that it has loaded."""

    def __init__(self, server: Server) -> None:
        self.vqfast_contract = server.contract.encode


def pytest_configure(config: pytest.Config) -> None:
    server = Server(os.environ["VQFAST_EMULATED"], os.environ.pop("VQFAST_ISA"))

    def register(path: Path, asked: str | None) -> None:
        for text in server.schemas:
            SPACE.define(text)
            name = text.partition("(")[0]
            schema = getattr(torch.ops.vqfast_native, name).default._schema
            SPACE.impl(name, partial(server.call, schema), "CPU")
        library._loaded, library._chosen = Library(server), server.chosen

    build.PREBUILT = Path("not built")
    library._compiled = lambda: Path("emulated")
    library._register = register
    config.stash[SERVER] = server


def pytest_unconfigure(config: pytest.Config) -> None:
    server = config.stash[SERVER]
    server.to.close()
    server.process.wait(60)
