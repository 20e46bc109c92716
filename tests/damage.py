"""Damage: what a disk, a copy that was cut short or a mixed-up folder makes of a file."""

import re
from collections.abc import Iterator


def truncated(content: bytes, other: bytes) -> Iterator[bytes]:
    """Cut short: by half, by a few bytes, to nothing."""
    yield from (content[: len(content) // 2], content[:-3], b"")


def one_bit(content: bytes, other: bytes) -> Iterator[bytes]:
    """One bit of a byte flipped: near the beginning, within, near the end; in JSON that of a digit, which then is another."""
    digits = [found.start() for found in re.finditer(rb"\d", content)] if content.startswith(b"{") else []
    places = digits or range(2, len(content) - 7)
    for number, place in enumerate((places[0], places[len(places) // 2], places[-1])):
        flipped = bytearray(content)
        flipped[place] ^= 1 if digits else (1, 16, 64)[number]
        yield bytes(flipped)


def swapped(content: bytes, other: bytes) -> Iterator[bytes]:
    """The same file of something else."""
    yield other


HARMS = {"truncated": truncated, "one bit": one_bit, "swapped": swapped}
