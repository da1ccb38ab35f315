"""The attention that the live page shows is the model's own: checked against what its layers make of it, and against a
whole model in plain NumPy that knows nothing of kvist's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from kvist.assemble import assemble
from kvist.engine.batch import Piece
from kvist.errors import RequestError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Attend, Copy, Executable, Limits, Program, RotaryStore
from kvist.llm import LLM
from kvist.server.apart import apart
from kvist.server.looking import MOST_TOKENS, Looking, Looks

Array = NDArray[np.float64]
OpenLLM = Callable[..., LLM]
ROWS = 100  # more than a step takes, and than the windows of the tiny models


@pytest.fixture
def open_llm(tmp_path: Path, backend: CpuBackend) -> Iterator[OpenLLM]:
    """`open_llm(name, **options)`: a tiny model."""
    made: list[LLM] = []

    def make(name: str, **options: Any) -> LLM:
        folder = tmp_path / name
        if not folder.exists():
            tiny.write_folder(tiny.MODELS[name], folder)
        made.append(LLM(folder, threads=1, **options))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def looked(llm: LLM, tokens: list[int], layer: int) -> Looks:
    looking = Looking(llm, tokens, layer)
    try:
        while not looking.done:
            looking.advance()
        return looking.looks()
    finally:
        looking.close()


def some_tokens(llm: LLM, count: int = ROWS) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(2, llm.model.config.vocab_size, count)]


class _Attended:
    """A backend whose programs end behind a layer's attention, and keep its values and what it made of them."""

    def __init__(self, inner: CpuBackend, layer: int) -> None:
        self._inner, self._layer = inner, layer

    def bind(self, program: Program, pools: Any, limits: Limits) -> Executable:
        at, attend = next(
            (i, op) for i, op in enumerate(program.ops) if isinstance(op, Attend) and op.layer == self._layer
        )
        store = next(op for op in program.ops[:at] if isinstance(op, RotaryStore) and op.layer == self._layer)
        self.values, self.out = (np.zeros((limits.rows, x.width), np.float32) for x in (store.v, attend.out))
        ops = (*program.ops[: at + 1], Copy(store.v, self.values), Copy(attend.out, self.out))
        cut = replace(program, ops=(*ops, *program.ops[program.head :]), head=len(ops))
        return self._inner.bind(cut, pools, limits)


def attended(llm: LLM, tokens: list[int], layer: int) -> tuple[Array, Array]:
    """Values (rows, KV heads, head size) and what the kernels' attention makes of them (rows, heads, head size)."""
    watch = _Attended(llm.backend, layer)
    config = apart(llm, MOST_TOKENS, max_num_batched_tokens=MOST_TOKENS)
    engine = assemble(llm.model, config, watch)  # type: ignore[arg-type]
    table = engine.manager.open()
    assert engine.manager.reserve(table, len(tokens))
    engine.runner.forward([Piece(table, tokens, 0, "none")])
    engine.manager.release(table)
    engine.close()
    dims = llm.model.config.stored_head_dim
    values, out = (array[: len(tokens)].reshape(len(tokens), -1, dims) for array in (watch.values, watch.out))
    return values.astype(np.float64), out.astype(np.float64)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_weights_of_every_family_give_what_its_attention_gives(name: str, open_llm: OpenLLM) -> None:
    llm = open_llm(name)
    tokens = some_tokens(llm, min(ROWS, llm.engine.limits.max_model_len))
    config = llm.model.config
    for layer in range(config.num_layers):
        looks = looked(llm, tokens, layer)
        values, out = attended(llm, tokens, layer)
        for head in range(config.num_heads):
            weights = looks.weights(head)
            assert not np.triu(weights, 1).any()
            assert (weights >= 0).all()
            assert np.abs(weights @ values[:, head // config.group] - out[:, head]).max() < 1e-5
            sums = weights.sum(1)
            assert (sums < 1).all() if config.sinks else np.abs(sums - 1).max() < 1e-12


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_packed_keys_are_looked_at_as_later_pages_read_them(name: str, open_llm: OpenLLM) -> None:
    llm, exact = open_llm(name, kv_cache_dtype="k=int4,v=f32"), open_llm(name)
    tokens = some_tokens(llm)
    for layer in range(llm.model.config.num_layers):
        looks, plain = looked(llm, tokens, layer), looked(exact, tokens, layer)
        assert (looks.sealed is None) == (name == "mistral")  # small windows stay floats
        values, out = attended(llm, tokens, layer)
        for head in range(llm.model.config.num_heads):
            own, weights = values[:, head // llm.model.config.group], looks.weights(head)
            # kernels round queries of packed layers; what packing does to keys is much more than that
            assert np.abs(weights @ own - out[:, head]).max() < 1e-3
            if name == "llama":
                assert np.abs(plain.weights(head) @ own - out[:, head]).max() > 1e-2


def test_equals_a_model_in_plain_numpy(open_llm: OpenLLM) -> None:
    llm = open_llm("llama")
    tokens = some_tokens(llm, 70)
    for layer, every in enumerate(llama_attention(tiny.MODELS["llama"], tokens)):
        looks = looked(llm, tokens, layer)
        for head, expected in enumerate(every):
            assert np.abs(looks.weights(head) - expected).max() < 1e-5


def test_a_row_does_not_depend_on_those_behind_it(open_llm: OpenLLM) -> None:
    llm = open_llm("llama")
    tokens = some_tokens(llm)
    long, short = looked(llm, tokens, 2), looked(llm, tokens[:41], 2)
    assert np.array_equal(long.queries[:41], short.queries)
    assert np.array_equal(long.keys[:, :41], short.keys)


def test_the_served_cache_is_left_alone(open_llm: OpenLLM) -> None:
    llm = open_llm("llama")
    before, counters = llm.engine.manager.stats(), llm.engine.manager.counters
    looked(llm, some_tokens(llm), 1)
    assert llm.engine.manager.stats() == before
    assert llm.engine.manager.counters == counters


def test_what_cannot_be_looked_at_is_refused(open_llm: OpenLLM) -> None:
    llm = open_llm("llama")
    with pytest.raises(RequestError, match="layer 3: this model has 0 to 2"):
        Looking(llm, [5, 6], 3)
    with pytest.raises(RequestError, match="0 tokens: give 1 to 128"):
        Looking(llm, [], 0)
    chosen = open_llm("llama", policy="topk:3p")
    with pytest.raises(RequestError, match="chooses the pages"):
        Looking(chosen, some_tokens(chosen), 2)
    with pytest.raises(RequestError, match="or at layer 0"):
        Looking(chosen, some_tokens(chosen), 1)
    assert looked(chosen, some_tokens(chosen), 0).weights(0).shape == (ROWS, ROWS)  # the first layer reads all
    sinks = open_llm("llama", policy="window:32+4")
    with pytest.raises(RequestError, match="turned towards the sinks"):
        Looking(sinks, some_tokens(sinks, 37), 0)
    short = looked(sinks, some_tokens(sinks, 36), 0).weights(1)
    assert np.abs(short.sum(1) - 1).max() < 1e-12


def test_a_prompt_whose_entries_will_be_evicted_is_seen_whole(open_llm: OpenLLM) -> None:
    evicting, plain = open_llm("llama", policy="evict:0.5"), open_llm("llama")
    tokens = some_tokens(plain)
    assert np.array_equal(looked(evicting, tokens, 2).weights(1), looked(plain, tokens, 2).weights(1))


def llama_attention(model: tiny.Tiny, tokens: list[int]) -> Iterator[Array]:
    """For each layer the weights (heads, rows, rows): the equations of Llama, from the files' tensors, in float64."""
    tensors = {name: array.astype(np.float64) for name, array in tiny.tensors(model).items()}
    n, dims = len(tokens), model.head_dim
    angles = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, dims, 2) / dims)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(x: Array, weight: Array) -> Array:
        return x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * weight

    def turned(x: Array) -> Array:
        a, b = x[..., : dims // 2], x[..., dims // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = tensors["model.embed_tokens.weight"][tokens]
    for layer in range(model.layers):
        own = {name.split(".", 3)[3]: t for name, t in tensors.items() if name.startswith(f"model.layers.{layer}.")}
        h = norm(x, own["input_layernorm.weight"])
        q, k, v = ((h @ own[f"self_attn.{name}_proj.weight"].T).reshape(n, -1, dims) for name in "qkv")
        q, k = turned(q), np.repeat(turned(k), model.heads // model.kv_heads, 1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(dims)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(2, keepdims=True))
        weights /= weights.sum(2, keepdims=True)
        yield weights
        made = np.einsum("hij,jhd->ihd", weights, np.repeat(v, model.heads // model.kv_heads, 1))
        x = x + made.reshape(n, -1) @ own["self_attn.o_proj.weight"].T
        h = norm(x, own["post_attention_layernorm.weight"])
        gate = h @ own["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
