"""Measure methods on one model: documents, passkeys, steps; what a store has already is not measured again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kvist.assemble import available_memory
from kvist.cache.policy import policy
from kvist.cache.policy.evict import Evict
from kvist.errors import UsageError
from kvist.eval.force import CHUNK, force
from kvist.eval.method import REFERENCE, Method
from kvist.eval.passkey import retrieved
from kvist.eval.plan import Plan
from kvist.eval.report import Report, Result
from kvist.eval.scores import Scores
from kvist.eval.speed import STEADY, Turns
from kvist.eval.steps import BUDGET, Progress, texts, timed
from kvist.eval.store import Store, key_of, model_digest, source_digest
from kvist.eval.text import Document, digest, documents
from kvist.llm import LLM

SIDE_BY_SIDE = 16
"""Documents in a step at most: more make a step hardly any faster by the token."""

FEW = 4
"""Fewer documents side by side than this are worth measuring the methods in two halves."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a method keeps of a position: bytes, for so many numbers of K and V."""

    bytes_per_token: int
    values: int


class Evaluation:
    """One run: a model, methods, a plan. Results come from the store as far as it has them, the others go into it."""

    def __init__(self, llm: LLM, path: Path, methods: Sequence[Method], plan: Plan, store: Store, report: Progress):
        """path: where the model's files are, which the results depend on. report: told what is measured."""
        self._llm, self._methods, self._store, self._report = llm, tuple(methods), store, report
        for method in methods:
            _check_length(method, plan.tokens)
        self.documents = documents(llm.tokenizer.encode, plan.documents, plan.tokens)
        self._longest = max(document.positions for document in self.documents)  # some rotary embeddings go by it
        self._identity = identity(llm, path)
        self._kept = {method: self._sizes(method) for method in methods}
        largest = max(size.bytes_per_token for size in self._kept.values())
        fitting = tuple(c for c in plan.contexts if (c + 2 * STEADY * len(plan.contexts)) * largest <= room())
        self._plan = replace(plan, contexts=fitting)

    def run(self, model: str) -> Report:
        """Measure all. model: what the report calls it."""
        self._read({method: size.bytes_per_token for method, size in self._kept.items()})
        found = {method: self._passkeys(method, i) for i, method in enumerate(self._methods)}
        turns = self._steps()
        results = [
            Result(
                method, self._kept[method].bytes_per_token, self._kept[method].values,
                [Scores.from_json(self._store.get(self._key(method, document))) for document in self.documents],
                found[method], turns[i],
            )
            for i, method in enumerate(self._methods)
        ]  # fmt: skip
        circumstances = {
            "model": model, "weights": self._llm.model.weights, "threads": self._llm.backend.threads,
                        "page_size": self._llm.config.page_size, "float_type": self._llm.model.float_type,
            "kv_cache_skip_layers": self._llm.config.kv_cache_skip_layers, "plan": asdict(self._plan),
        }  # fmt: skip
        return Report(circumstances, self.documents, results, self._plan.contexts)

    def _key(self, method: Method, document: Document) -> str:
        return key_of("document", self._identity, method.key, document.digest, self._longest)

    def _sizes(self, method: Method) -> Sizes:
        with method.engine(self._llm, max_num_seqs=1, max_model_len=self._longest) as engine:
            layouts = [group.layout for group in engine.manager.groups if not group.exact]
            specs = [spec for layout in layouts for spec in layout.layers if spec is not None]
            values = sum(2 * spec.kv_heads * spec.head_dim for spec in specs)
            return Sizes(engine.manager.bytes_per_token, values)

    def _read(self, costs: Mapping[Method, int]) -> None:
        """Read all documents under all methods."""
        done, total = 0, len(self._methods) * sum(document.positions for document in self.documents)

        def advanced(positions: int) -> None:
            nonlocal done
            done += positions
            self._report("reading documents, percent", 100 * done // total, 100)

        ordered = sorted(self.documents, key=lambda document: document.positions)
        slots = self._longest + self._llm.config.page_size
        for methods, side in rounds(self._methods, {m: slots * cost for m, cost in costs.items()}, room()):
            for first in range(0, len(ordered), side):
                batch = ordered[first : first + side]
                missing = [
                    method for method in methods if any(self._store.get(self._key(method, d)) is None for d in batch)
                ]
                advanced((len(methods) - len(missing)) * sum(document.positions for document in batch))
                if missing:
                    self._force(missing, batch, advanced)

    def _force(self, methods: Sequence[Method], batch: Sequence[Document], advanced: Callable[[int], None]) -> None:
        common = {"max_num_seqs": len(batch), "max_model_len": self._longest, "enable_prefix_caching": False}
        with ExitStack() as stack:
            reference = stack.enter_context(
                REFERENCE.engine(self._llm, **common, max_num_batched_tokens=CHUNK * len(batch))
            )
            engines = [stack.enter_context(method.engine(self._llm, **common)) for method in methods]
            for method, scores in zip(methods, force(reference, engines, batch, advanced), strict=True):
                for document, one in zip(batch, scores, strict=True):
                    self._store.put(self._key(method, document), one.as_json())

    def _passkeys(self, method: Method, number: int) -> list[bool]:
        """Of every length, seed and depth, in this order, whether the key was told."""
        longest = max(self._plan.lengths, default=0)
        depths = self._plan.depths
        cells = [(length, seed) for length in self._plan.lengths for seed in range(self._plan.seeds)]
        keys = [key_of("passkey", self._identity, method.key, cell, depths, longest) for cell in cells]
        if any(self._store.get(key) is None for key in keys):
            sizes = {"max_num_seqs": 2, "max_model_len": longest, "max_num_batched_tokens": BUDGET}
            with method.engine(self._llm, **sizes, enable_prefix_caching=True) as engine:
                for i, (key, (length, seed)) in enumerate(zip(keys, cells, strict=True)):
                    self._report("finding pass keys", number * len(keys) + i, len(self._methods) * len(keys))
                    if self._store.get(key) is None:
                        self._store.put(key, retrieved(engine, self._llm.tokenizer, length, depths, seed, BUDGET))
        return [bool(told) for key in keys for told in self._store.get(key)]

    def _steps(self) -> list[Turns]:
        """Of every method the turns of one sequence's steps; all of them again if a method is new."""
        contexts, threads = self._plan.contexts, self._llm.backend.threads
        if not contexts:
            return [np.empty((0, 1)) for _ in self._methods]
        read, methods = texts(self._llm, contexts), [method.key for method in self._methods]
        key = key_of("steps", self._identity, threads, methods, contexts, digest(read))
        if self._store.get(key) is None:
            found = timed(self._llm, self._methods, contexts, (1,), read, self._report)
            self._store.put(key, [turns.tolist() for (turns,) in found])
        return [np.array(turns) for turns in self._store.get(key)]


def _check_length(method: Method, tokens: int) -> None:
    """Refuse documents whose first half is too short for entries of it to be evicted: nothing would be measured."""
    rule, half = policy(method.policy), tokens // 2
    if isinstance(rule, Evict) and rule.kept(half) == half:
        raise UsageError(
            f"policy {rule.name} leaves the first half of {tokens} tokens as it is: give --tokens 1000 or more"
        )


def identity(llm: LLM, path: Path) -> list[Any]:
    """All that results depend on besides methods and texts. path: where the model's files are."""
    config = llm.config
    return [source_digest(), model_digest(path), llm.model.weights, config.page_size, config.kv_cache_skip_layers]


def room() -> int:
    """Bytes that the pages of all documents side by side may take."""
    return available_memory() // 4


def rounds(methods: Sequence[Method], costs: Mapping[Method, int], room: int) -> Iterator[tuple[Sequence[Method], int]]:
    """Which methods to measure together, and how many documents side by side. costs: bytes of a document's pages.

    Together they share the reference's work; where too few documents would fit, they are measured in two halves.
    """
    side = min(SIDE_BY_SIDE, room // (costs[REFERENCE] + sum(costs[method] for method in methods)))
    if side >= FEW or len(methods) == 1:
        yield methods, max(side, 1)
    else:
        middle = len(methods) // 2
        yield from rounds(methods[:middle], costs, room)
        yield from rounds(methods[middle:], costs, room)
