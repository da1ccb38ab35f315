"""Text to measure on: what lies on every machine with Python, and a few passages that come with kvist.

| domain | what |
|---|---|
| prose | a chapter's beginning from six novels of Jane Austen (1811 to 1817, in the public domain) |
| manual | the topics of Python's own help |
| code | modules of the standard library |
| packages | descriptions of the installed Python packages: often younger than the model |
| changes | change logs of the installed Debian packages, as young |
| licences | licence texts that Debian installs |

A domain that a machine lacks is left out. Within a domain the order is that of a digest of the names, so it is the same
every time and follows no alphabet; documents are taken from the domains in turn. The report names them all.

The novels are Project Gutenberg's texts as the Debian package r-cran-janeaustenr 1.0.0-1 carries them, cut by
`scripts/make_eval_passages.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata, resources
from itertools import chain, cycle, islice, zip_longest
from pathlib import Path

import numpy as np

from kvist.errors import UsageError

SHORTEST = 512
"""A document has at least a quarter of the positions asked for, and at least this many or all of them."""

CHARACTERS = 12
"""Read of a text for each token at most; no prose and no program has so many."""

Source = tuple[str, Callable[[], str]]


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids to read one by one. All but the last are read; each predicts the next."""

    domain: str
    name: str
    ids: tuple[int, ...]

    @property
    def positions(self) -> int:
        """How many predictions there are."""
        return len(self.ids) - 1

    @property
    def digest(self) -> str:
        """Of the token ids."""
        return hashlib.sha256(np.array(self.ids, np.int64).tobytes()).hexdigest()


def documents(encode: Callable[[str], list[int]], count: int, tokens: int) -> tuple[Document, ...]:
    """`count` documents of up to `tokens` positions each; fewer where the machine has no more.

    Raises UsageError where there is none.
    """
    least = min(tokens, max(SHORTEST, tokens // 4))
    streams = [_domain(domain, list(sources()), encode, tokens, least) for domain, sources in DOMAINS.items()]
    found: list[Document] = []
    for turn in zip_longest(*streams):
        found += [document for document in turn if document is not None]
        if len(found) >= count:
            break
    if not found:
        raise UsageError(f"no text on this machine is {least} tokens long: ask for fewer tokens")
    return tuple(found[:count])


def digest(documents: Sequence[Document]) -> str:
    """Of all token ids, in order."""
    return hashlib.sha256("".join(document.digest for document in documents).encode()).hexdigest()


def running(documents: Sequence[Document], tokens: int) -> list[int]:
    """So many token ids of the documents one after another, and again from the first where they are too few."""
    return list(islice(cycle(chain.from_iterable(document.ids for document in documents)), tokens))


def _domain(
    domain: str, sources: list[Source], encode: Callable[[str], list[int]], tokens: int, least: int
) -> Iterator[Document]:
    for name, read in sorted(sources, key=lambda source: hashlib.sha256(source[0].encode()).digest()):
        ids = encode(read()[: CHARACTERS * tokens])[: tokens + 1]
        if len(ids) > least:
            yield Document(domain, name, tuple(ids))


def _prose() -> Iterator[Source]:
    for file in resources.files("kvist.eval").joinpath("passages").iterdir():
        yield file.name.removesuffix(".txt"), file.read_text


def _manual() -> Iterator[Source]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        return  # a distribution may leave Python's help out
    for name in topics:
        yield name, partial(topics.__getitem__, name)


def _code() -> Iterator[Source]:
    for file in Path(os.__file__).parent.glob("*.py"):
        yield file.stem, partial(file.read_text, "utf-8", "replace")


def _packages() -> Iterator[Source]:
    every: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        every.setdefault(distribution.metadata["Name"], distribution)  # the one that an import would find
    for name, distribution in every.items():
        yield f"{name} {distribution.version}", partial(_description, distribution)


def _changes() -> Iterator[Source]:
    folder = Path("/usr/share/doc")
    for file in chain(folder.glob("*/changelog.gz"), folder.glob("*/NEWS.gz")):
        if not file.is_symlink() and not file.parent.is_symlink():
            yield f"{file.parent.name} {file.stem}", partial(_unpacked, file)


def _licences() -> Iterator[Source]:
    for file in Path("/usr/share/common-licenses").glob("*"):
        if not file.is_symlink() and file.is_file():
            yield file.name, partial(file.read_text, "utf-8", "replace")


def _description(distribution: metadata.Distribution) -> str:
    """What follows the fields of a package's metadata."""
    return (distribution.read_text("METADATA") or "").partition("\n\n")[2]


def _unpacked(file: Path) -> str:
    with gzip.open(file, "rt", encoding="utf-8", errors="replace") as text:
        return text.read()


DOMAINS: dict[str, Callable[[], Iterator[Source]]] = {
    "prose": _prose,
    "manual": _manual,
    "code": _code,
    "packages": _packages,
    "changes": _changes,
    "licences": _licences,
}
