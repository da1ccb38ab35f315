"""Text: the same documents every time, of all domains that there are."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

import pytest

from kvist.errors import UsageError
from kvist.eval import text
from kvist.eval.text import DOMAINS, Document, Source, digest, documents


def encode(string: str) -> list[int]:
    """Four characters a token."""
    return [sum(map(ord, string[i : i + 4])) for i in range(0, len(string), 4)]


def test_documents_come_from_the_domains_in_turn_and_are_the_same_every_time() -> None:
    found = documents(encode, 12, 100)
    assert [document.domain for document in found[:4]] == ["prose", "manual", "code", "packages"]
    assert all(document.positions == 100 for document in found)
    assert len({document.name for document in found}) == len({document.digest for document in found}) == 12
    again = documents(encode, 12, 100)
    assert again == found and digest(again) == digest(found) != digest(found[:-1])
    assert documents(encode, 5, 100) == found[:5]


def test_a_full_run_has_its_64_documents_of_many_lengths() -> None:
    found = documents(encode, 64, 8000)
    assert len(found) == 64
    assert all(2000 < document.positions <= 8000 for document in found)
    assert sum(document.positions == 8000 for document in found) > 10


def sources(**texts: str) -> dict[str, object]:
    def give() -> Iterator[Source]:
        for name, string in texts.items():
            yield name, string.__str__

    return {"only": give}


def test_what_is_too_short_is_left_out_and_what_is_longer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "DOMAINS", sources(short="x" * 400, right="y" * 404, long="z" * 4000))
    found = documents(encode, 9, 100)
    assert sorted((document.name, document.positions) for document in found) == [("long", 100), ("right", 100)]
    assert {len(document.ids) for document in found} == {101}


def test_no_document_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "DOMAINS", sources(short="x" * 400))
    with pytest.raises(UsageError, match="100 tokens long"):
        documents(encode, 9, 100)


def test_the_passages_are_small_and_plain() -> None:
    files = list(resources.files("kvist.eval").joinpath("passages").iterdir())
    assert len(files) == 6 == len(list(DOMAINS["prose"]()))
    assert sum(len(file.read_bytes()) for file in files) < 100_000
    assert all(file.read_bytes().isascii() for file in files)


def test_a_document_predicts_each_token_but_the_first() -> None:
    assert Document("a", "b", (1, 2, 3)).positions == 2
