"""Whether a video file ends before its container says: decoders give what is left without a word."""

from __future__ import annotations

import os
from typing import BinaryIO

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # of Matroska and WebM


def is_cut_off(file: BinaryIO) -> bool:
    """Whether MP4, QuickTime, AVI, Matroska, WebM or GIF says that there should be more bytes.

    Args:
        file: at any place, which it keeps.

    >>> import io
    >>> is_cut_off(io.BytesIO(b"RIFF" + (100).to_bytes(4, "little") + b"AVI "))
    True
    """
    place = file.tell()
    try:
        return _cut_off(file)
    finally:
        file.seek(place)


def _cut_off(file: BinaryIO) -> bool:
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little") > end
    if head[:3] == b"GIF":
        file.seek(max(0, end - 256))
        return not file.read().rstrip(b"\0").endswith(b";")  # its last byte, maybe with zeros behind it
    if head[:4] == EBML:
        file.seek(4)
        file.seek(_number(file) or 0, os.SEEK_CUR)
        is_segment, size = file.read(4) == SEGMENT, _number(file)
        return is_segment and size is not None and file.tell() + size > end
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return _boxes_end(file) > end
    return False


def _boxes_end(file: BinaryIO) -> int:
    """Where the last box of an MP4 file should end."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # the size follows, in 64 bits
            size = int.from_bytes(head[8:], "big")
        if len(head) < 8 or size < 8:  # the end; or 0, for a box that goes on to the end
            return place
        place += size


def _number(file: BinaryIO) -> int | None:
    """A size of EBML: the zeros before its first 1 are its bytes but one. None stands for unknown, all 1."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big") - (1 << 7 * length)
    return None if value == (1 << 7 * length) - 1 else value
