"""The structs of int64 and the enums that cross to the native library.

They are declared in ``csrc/shared/contract.def`` alone. The library carries their names, so that Python fills
structs by the names of their fields and finds the numbers of enums by the names of their values.
"""

from __future__ import annotations


class Contract:
    """The structs and enums of a library.

    Args:
        text: a line for each, ``struct Name field ...`` or ``enum Name value=number ...``.
    """

    def __init__(self, text: str) -> None:
        self.structs: dict[str, tuple[str, ...]] = {}
        self.enums: dict[str, dict[str, int]] = {}
        self._fields: dict[str, set[str]] = {}
        for line in text.splitlines():
            kind, name, *members = line.split()
            if kind == "struct":
                self.structs[name] = tuple(members)
                self._fields[name] = set(members)
            else:
                pairs = (member.split("=") for member in members)
                self.enums[name] = {value: int(number) for value, number in pairs}

    def record(self, struct: str, **fields: int) -> list[int]:
        """The fields of a struct, in the order of its memory.

        Raises:
            TypeError: other fields are given than the struct has.
        """
        names = self.structs[struct]
        if fields.keys() != self._fields[struct]:
            differ = ", ".join(sorted(fields.keys() ^ self._fields[struct]))
            raise TypeError(f"{struct} of the native library has other fields than Python fills: {differ}")
        return [fields[name] for name in names]

    def number(self, enum: str, value: str) -> int:
        """The number of an enum's value.

        Raises:
            KeyError: the library has no such value.
        """
        return self.enums[enum][value]
