"""The attention of one layer and head, as the running model has it: who looks at whom, and how much.

Attention itself keeps no weights. So an engine of its own (see `apart`) runs the model's program up to the layer in
question and keeps the queries and keys it would look with, turned and rounded as they are; the weights are
softmax(scale q K^T), as `Attend` defines them::

    ops of the model   Embed | layer 0 ... | q, k, v of the layer | RotaryStore | Attend ... | ... | head
    what is run        Embed | layer 0 ... | q, k, v of the layer | RotaryStore | Copy q, Copy k   | head, of no rows
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvist.assemble import assemble
from kvist.cache.codec import Codec, Packed
from kvist.cache.codec.factors import asked
from kvist.cache.policy import policy
from kvist.cache.policy.evict import Evict
from kvist.cache.pool import PagePool, sealed_of
from kvist.cache.table import GONE, PageTable
from kvist.engine.batch import Piece
from kvist.errors import CapacityError, RequestError
from kvist.kernels.program import Attend, Backend, Executable, Floats, Limits, Program, Weight, WeightType
from kvist.kernels.watching import BeforeAttention, before_attention
from kvist.llm import LLM
from kvist.server.apart import apart

Array = npt.NDArray[np.float64]
MOST_TOKENS = 128
AT_ONCE = 32  # rows of a step: others get their turn in between


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """What the rows of a layer look with, and at.

    queries: (rows, heads, head size). keys: (KV heads, rows, head size), those that were made; sealed: the same where
    full pages are packed, as a row reads them from another page than its own and the first (None: they are not), and
    asked: queries as those are multiplied with them.
    """

    op: Attend
    queries: Array
    keys: Array
    sealed: Array | None
    asked: Array
    page_size: int

    def weights(self, head: int) -> Array:
        """(rows, rows), of which row t has 0..t. A row's sum is 1, or less where a learned sink takes part."""
        op, rows = self.op, len(self.queries)
        kv_head = head * len(self.keys) // self.queries.shape[1]
        query = self.queries[:, head]
        scores = query @ self.keys[kv_head].T
        row, column = np.indices((rows, rows))
        if self.sealed is not None:
            own = (column // self.page_size == 0) | (column // self.page_size == row // self.page_size)
            scores = np.where(own, scores, self.asked[:, head] @ self.sealed[kv_head].T)
        scores *= op.scale
        if op.softcap is not None:
            scores = op.softcap * np.tanh(scores / op.softcap)
        seen = column <= row
        if op.window is not None:
            seen &= (column > row - op.window) | (column < op.first)
        scores = np.where(seen, scores, -np.inf)
        sink = -np.inf if op.sinks is None else float(op.sinks[head])
        top = np.maximum(scores.max(1, keepdims=True), sink)
        shares = np.exp(scores - top)
        return np.asarray(shares / (shares.sum(1, keepdims=True) + np.exp(sink - top)))


class Looking:
    """Made, run and closed in the engine's thread: `advance` until `done`, then `looks`.

    Raises RequestError for a layer that there is not, and where a row's own choice decides what it reads.
    """

    def __init__(self, llm: LLM, tokens: Sequence[int], layer: int) -> None:
        _check(llm, tokens, layer)
        config = apart(llm, MOST_TOKENS, enable_cache=True, max_num_batched_tokens=AT_ONCE)
        if isinstance(policy(config.policy), Evict):
            config = replace(config, policy="full")  # a prompt's rows see all: entries are evicted behind it
        self._tokens, self._layer = list(tokens), layer
        self._watch = _UpTo(llm.backend, layer)
        self._engine = assemble(llm.model, config, self._watch)
        self._queries: list[Floats] = []
        self._keys: list[Floats] = []
        try:
            _check_choice(self._watch.seen.attend, len(tokens), config.page_size)
            self._table = self._engine.manager.open()
        except BaseException:
            self._engine.close()
            raise

    @property
    def done(self) -> bool:
        """Whether all rows are through."""
        return self._table.computed == len(self._tokens)

    def advance(self) -> None:
        """Run the next rows."""
        start = self._table.computed
        rows = self._tokens[start : start + AT_ONCE]
        if not self._engine.manager.reserve(self._table, len(rows)):
            raise CapacityError("the engine that looks at attention has too few pages")
        self._engine.runner.forward([Piece(self._table, rows, start, "none")])
        for kept, array in ((self._queries, self._watch.seen.queries), (self._keys, self._watch.seen.keys)):
            kept.append(array[: len(rows)].copy())

    def looks(self) -> Looks:
        """Once all rows are through."""
        layout, dims = self._engine.manager.layout, self._watch.seen.program.head_dim
        queries, keys = (
            np.concatenate(kept).reshape(len(self._tokens), -1, dims) for kept in (self._queries, self._keys)
        )
        rounded, exact = _rounded(layout.codec, keys).transpose(1, 0, 2), queries.astype(np.float64)
        pools = [ledger.pool for ledger in self._engine.manager.ledgers]
        sealed, packed = _sealed(pools, self._table, self._layer, rounded), _asked(pools, self._layer, exact)
        return Looks(self._watch.seen.attend, exact, rounded, sealed, packed, layout.page_size)

    def close(self) -> None:
        """Give the memory back."""
        self._engine.manager.release(self._table)
        self._engine.close()


class _UpTo:
    """A backend whose programs end behind one layer's queries and keys."""

    def __init__(self, inner: Backend, layer: int) -> None:
        self._inner, self._layer = inner, layer
        self.seen: BeforeAttention

    def bind(self, program: Program, pools: Sequence[PagePool], limits: Limits) -> Executable:
        """See `kernels.program.Backend`."""
        self.seen = before_attention(program, self._layer, limits.rows)
        return self._inner.bind(self.seen.program, pools, limits)

    def prepare(self, types: Iterable[WeightType]) -> None:
        """See `kernels.program.Backend`."""
        self._inner.prepare(types)

    def convert(self, jobs: Sequence[tuple[Weight, Weight]]) -> None:
        """See `kernels.program.Backend`."""
        self._inner.convert(jobs)

    def find_nonfinite(self, weights: Sequence[Weight]) -> list[int]:
        """See `kernels.program.Backend`."""
        return self._inner.find_nonfinite(weights)

    def close(self) -> None:
        """The backend belongs to somebody else."""


def _check(llm: LLM, tokens: Sequence[int], layer: int) -> None:
    if not 0 < len(tokens) <= MOST_TOKENS:
        raise RequestError(f"{len(tokens)} tokens: give 1 to {MOST_TOKENS}")
    if not 0 <= layer < llm.model.config.num_layers:
        raise RequestError(f"layer {layer}: this model has 0 to {llm.model.config.num_layers - 1}")


def _check_choice(attend: Attend, rows: int, page_size: int) -> None:
    """Refuse what no matrix of queries times keys shows."""
    pages = -(-rows // page_size)
    if attend.choice is not None and attend.choice.count(pages) < pages:
        raise RequestError(
            f"in this layer a token chooses the pages that it reads, and {rows} tokens have more than it takes: look "
            "at a shorter text, or at layer 0"
        )
    if attend.first and attend.turn is not None and attend.window is not None and rows > attend.window + attend.first:
        raise RequestError(
            f"queries beyond position {attend.window + attend.first} are turned towards the sinks by this policy: look "
            f"at a text of at most {attend.window + attend.first} tokens"
        )


def _rounded(codec: Codec, keys: Floats) -> Array:
    """As pages hold them."""
    return codec.decode(codec.encode(keys)).astype(np.float64)


def _asked(pools: Sequence[PagePool], layer: int, queries: Array) -> Array:
    """Queries as packed keys of a layer are multiplied with them."""
    found = sealed_of(pools, layer)
    k = found[1].layout.codecs(layer)[0] if found else None
    return asked(k, queries) if isinstance(k, Packed) else queries


def _sealed(pools: Sequence[PagePool], table: PageTable, layer: int, exact: Array) -> Array | None:
    """Keys of a packed layer as later pages read them, where pages are full; the others are never read so."""
    found = sealed_of(pools, layer)
    if found is None:
        return None
    group, pool = found
    size, keys = pool.layout.page_size, exact.copy()
    for number in range(1, exact.shape[1] // size):
        page = table.groups[group][number]
        if page == GONE:
            raise RequestError("packed pages of this layer are let go of within this text: look at a shorter one")
        for head in range(len(keys)):
            keys[head, number * size : (number + 1) * size] = pool.read(page, layer, head)[0]
    return keys
