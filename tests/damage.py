"""Damage: what a disk, a copy that was cut short or a mixed-up folder makes of a file."""

from collections.abc import Iterator


def truncated(content: bytes, other: bytes) -> Iterator[bytes]:
    """Cut short: by half, by a few bytes, to nothing."""
    yield from (content[: len(content) // 2], content[:-3], b"")


def one_bit(content: bytes, other: bytes) -> Iterator[bytes]:
    """One bit of a byte flipped: at the beginning, within, near the end."""
    for place in (2, len(content) // 2, len(content) - 8):
        flipped = bytearray(content)
        flipped[place] ^= 1
        yield bytes(flipped)


def swapped(content: bytes, other: bytes) -> Iterator[bytes]:
    """The same file of something else."""
    assert content != other
    yield other


HARMS = {"truncated": truncated, "one bit": one_bit, "swapped": swapped}
