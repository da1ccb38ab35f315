"""Cut the passages of `kvist eval` from the novels in the Debian package r-cran-janeaustenr.

apt-get download r-cran-janeaustenr && dpkg-deb -x r-cran-janeaustenr_*.deb DIR
python scripts/make_eval_passages.py DIR/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb

The novels are in the public domain (Jane Austen, 1811 to 1817; texts of Project Gutenberg). The file is a row of objects,
each four bytes of length and a zlib stream; a novel is a vector of strings, a line each.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "src" / "kvist" / "eval" / "passages"
STRING = bytes.fromhex("00040009")  # the head of an ASCII string, before four bytes of length
LENGTH = 16_000  # characters, then on to the end of the paragraph
PLACE = 0.4  # of a novel: the first chapter behind it is taken


def objects(data: bytes) -> Iterator[bytes]:
    """The unpacked objects of a database."""
    while data:
        unpacking = zlib.decompressobj()
        yield unpacking.decompress(data[4:])
        data = unpacking.unused_data


def lines(novel: bytes) -> Iterator[str]:
    """The strings of a vector."""
    place = 0
    while (place := novel.find(STRING, place)) >= 0:
        start, (length,) = place + 8, struct.unpack(">i", novel[place + 4 : place + 8])
        yield novel[start : start + length].decode("ascii")
        place = start + length


def passage(text: str) -> str:
    """A chapter's beginning from the middle of a novel."""
    headings = [match.start() for match in re.finditer(r"^chapter [ivxlc\d]+\.?$", text, re.MULTILINE | re.IGNORECASE)]
    start = next(heading for heading in headings if heading > PLACE * len(text))
    return text[start : text.index("\n\n", start + LENGTH)].rstrip() + "\n"


if __name__ == "__main__":
    for novel in objects(Path(sys.argv[1]).read_bytes()):
        text = list(lines(novel))
        name = text[0].lower().replace(" ", "-")
        (FOLDER / f"{name}.txt").write_text(passage("\n".join(text)))
        print(name)
