"""Server-sent events out of bytes that have arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def events(arrivals: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The data of each event, and when its last byte came. An event that never ends is none."""
    rest, data = b"", list[bytes]()
    for at, piece in arrivals:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif not field and not value and data:
                yield at, b"\n".join(data)
                data = []
