"""A row's bits depend on its own past and nothing else, for every family: windows, caps, norms and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import load_model
from ops import same_bits
from steps import logits_of, runner

LENGTH = 150  # past the edge of every window, and of two tiles


@pytest.mark.parametrize("name", tiny.MODELS)
def test_chunks_decode_prefixes_and_threads_give_the_same_bits(
    name: str, backend: CpuBackend, one_thread: CpuBackend, tmp_path: Path
) -> None:
    made = tiny.MODELS[name]
    model = load_model(tiny.write_folder(made, tmp_path), backend, "f32")
    ids = np.random.RandomState(3).randint(2, made.vocab, LENGTH).tolist()
    for kv in ("f32", "f16"):
        whole = logits_of(model, backend, ids, kv=kv)
        for chunk in (1, 7, 64):
            assert same_bits(logits_of(model, backend, ids, chunk, kv), whole)
        assert same_bits(logits_of(model, one_thread, ids, 33, kv), whole)
        if not made.by_length:
            assert same_bits(logits_of(model, backend, ids[:77], kv=kv), whole[:77])


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt_neox", "olmo2"])
def test_rows_do_not_know_the_sequences_beside_them(name: str, backend: CpuBackend, tmp_path: Path) -> None:
    from kvist.engine.batch import Piece

    made = tiny.MODELS[name]
    model = load_model(tiny.write_folder(made, tmp_path), backend, "f32")
    prompts = [np.random.RandomState(seed).randint(2, made.vocab, 90).tolist() for seed in range(3)]
    alone = [logits_of(model, backend, prompt) for prompt in prompts]
    with runner(model, backend, positions=300) as (run, manager):
        tables = [manager.open() for _ in prompts]
        done = [0, 0, 0]
        for counts in ((40, 1, 7), (1, 60, 1), (30, 1, 50), (1, 1, 1), (18, 27, 31)):
            for table, count in zip(tables, counts, strict=True):
                assert manager.reserve(table, count)
            pieces = [
                Piece(table, prompt[at : at + count], at, "all")
                for table, prompt, at, count in zip(tables, prompts, done, counts, strict=True)
            ]
            rows = run.forward(pieces)
            first = 0
            for s, count in enumerate(counts):
                assert same_bits(rows[first : first + count].copy(), alone[s][done[s] : done[s] + count])
                first, done[s] = first + count, done[s] + count
        for table in tables:
            manager.release(table)
