"""A text far longer than the context, read in constant memory: perplexity along it, beside the bytes it holds.

Documents of all domains are cut into stretches and mixed, so that no part of the stream is harder than another. They
are read in one sequence, in chunks: by the contract the logits are those of one token a step. What a part's perplexity
should be is not known for a text of this length; *fresh* is that of the same text where the model starts anew every so
many tokens as a method sees at once, which a window without sinks falls far behind, and one with sinks does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, pairwise, zip_longest
from typing import Any

import numpy as np

from kvist.cache.policy import policy
from kvist.divergence import log_probabilities
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.errors import CapacityError, UsageError
from kvist.eval.method import Method
from kvist.eval.text import documents
from kvist.llm import LLM

Json = dict[str, Any]

PARTS = 10
STRETCH = 2048
CHUNK = 64
"""Positions a step runs; as many sequences are allowed for, since a step has room for so many rows of logits."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the stream: where it ends, its perplexity, the same where the model starts anew, live bytes at its end.

    pages: live pages at its end.
    """

    end: int
    perplexity: float
    fresh: float
    live_bytes: int
    pages: int


def stream_ids(llm: LLM, tokens: int) -> list[int]:
    """`tokens` + 1 token ids, stretches of documents in turn. Raises UsageError where the machine has less text."""
    found = documents(llm.tokenizer.encode, 4 * (tokens // STRETCH + 1), 4 * STRETCH)
    cut = [[d.ids[at : at + STRETCH] for at in range(0, d.positions, STRETCH)] for d in found]
    mixed = chain.from_iterable(part for turn in zip_longest(*cut) for part in turn if part is not None)
    ids = list(islice(mixed, tokens + 1))
    if len(ids) <= tokens:
        raise UsageError(f"this machine has text of {len(ids) - 1} tokens to read: ask for at most so many")
    return ids


def streams(
    llm: LLM, model: str, methods: Sequence[Method], tokens: int, report: Callable[[str, int, int], None]
) -> Json:
    """Read the same stream under each method; the report. Raises UsageError where a method keeps all pages."""
    for method in methods:
        _seen(method)
    ids, done = stream_ids(llm, tokens), 0

    def advanced(positions: int) -> None:
        nonlocal done
        done += positions
        report("reading the stream, percent", 100 * done // (2 * tokens * len(methods)), 100)

    found = [(method, streamed(llm, method, ids, advanced)) for method in methods]
    return {
        "model": model, "weights": llm.model.weights, "tokens": tokens,
        "methods": [
            {"codec": method.codec, "policy": method.policy, "parts": [asdict(part) for part in parts]}
            for method, parts in found
        ],
    }  # fmt: skip


def stream_lines(found: Json) -> Iterator[str]:
    """The report for people."""
    yield f"{'read to':>10}" + "".join(
        f"{Method(one['codec'], one['policy']).name:>26}{'fresh':>10}{'pages':>7}{'MB':>7}" for one in found["methods"]
    )
    for rows in zip(*(one["parts"] for one in found["methods"]), strict=True):
        cells = (
            f"{row['perplexity']:>26.3f}{row['fresh']:>10.3f}{row['pages']:>7}{row['live_bytes'] / 1e6:>7.2f}"
            for row in rows
        )
        yield f"{rows[0]['end']:>10,}" + "".join(cells)
    yield (
        f"{found['model']}, {found['weights']} weights: perplexity of each part of {found['tokens']:,} tokens; fresh: "
        "where the model starts anew whenever the window is full"
    )


def streamed(
    llm: LLM, method: Method, ids: Sequence[int], advanced: Callable[[int], None] = lambda positions: None
) -> list[Part]:
    """Read all of `ids` but the last under one method. `advanced` is told of positions that were read."""
    seen, count = _seen(method), len(ids) - 1
    sizes = {"max_num_seqs": CHUNK, "max_num_batched_tokens": CHUNK, "enable_prefix_caching": False}
    own, held = np.empty(count), list[tuple[int, int, int]]()
    with method.engine(llm, **sizes, max_model_len=count + 1) as engine:
        for end, logs in _read(engine, ids):
            own[end - len(logs) : end] = logs
            stats = engine.manager.stats()
            held.append((end, stats.live_bytes, stats.live))
            advanced(len(logs))
    fresh = np.empty(count)
    with Method(method.codec).engine(llm, **sizes, max_model_len=seen + 1) as engine:
        for start in range(0, count, seen):
            for end, logs in _read(engine, ids[start : start + seen + 1]):
                fresh[start + end - len(logs) : start + end] = logs
                advanced(len(logs))
    edges = [count * part // PARTS for part in range(PARTS + 1)]
    return [
        Part(
            end, float(np.exp(-own[start:end].mean())), float(np.exp(-fresh[start:end].mean())),
            *next(size for at, *size in held if at >= end),
        )
        for start, end in pairwise(edges)
    ]  # fmt: skip


def _seen(method: Method) -> int:
    """Positions that a token sees at most."""
    span = policy(method.policy).span(None)
    if span.window is None:
        raise UsageError(f"policy {method.policy}: a stream needs one that lets go of pages, as window:1024+4 does")
    return span.window + span.sinks


def _read(engine: Engine, ids: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Read one sequence in chunks: how far it is read, and the log-probabilities of the tokens that came."""
    manager, count = engine.manager, len(ids) - 1
    table = manager.open()
    try:
        for start in range(0, count, CHUNK):
            tokens = list(ids[start : min(start + CHUNK, count)])
            if not manager.reserve(table, len(tokens)):
                raise CapacityError("the pages of the stream do not fit: give a smaller window")
            logits = engine.runner.forward([Piece(table, tokens, start, "all")])
            end = start + len(tokens)
            yield end, log_probabilities(logits, ids[start + 1 : end + 1])
    finally:
        manager.release(table)
