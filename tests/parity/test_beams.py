"""Beam search of a tiny random model, live against transformers': the same answers in the same order, close scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvist.assemble import assemble
from kvist.config import EngineConfig
from kvist.engine.params import BeamSearchParams
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import load_model
from tiny import MODELS, write_folder

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
ENDS = list(range(0, 300, 3))


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("width", [2, 3, 5])  # one beam is plain greedy decoding to transformers
def test_beams(
    load: Callable[[Path], Any], backend: CpuBackend, tmp_path: Path, early: Any, penalty: float, width: int
) -> None:
    import torch

    path = write_folder(MODELS["llama"], tmp_path)
    theirs = load(path)
    engine = assemble(load_model(path, backend, "f32"), EngineConfig(kv_cache_memory_bytes=4 << 20), backend)
    engine.limits = replace(engine.limits, eos_ids=frozenset(ENDS))
    for length in (1, 16, 31):
        ids = np.random.RandomState(length).randint(2, 300, length).tolist()
        params = BeamSearchParams(width, 10, length_penalty=penalty, early_stopping=early)
        search = engine.submit_beams(ids, params)
        while engine.has_work:
            engine.step()
        out = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, length), num_beams=width, num_return_sequences=width,
            max_new_tokens=10, length_penalty=penalty, early_stopping=early, do_sample=False, eos_token_id=ENDS,
            pad_token_id=299, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        found = [list(answer.token_ids) for answer in search.finished]
        for own, their in zip(found, out.sequences[:, length:].tolist(), strict=True):
            assert their[: len(own)] == own and set(their[len(own) :]) <= {299}
        scores = [answer.score for answer in search.finished]
        assert np.allclose(scores, out.sequences_scores.tolist(), rtol=1e-4, atol=1e-4)
    engine.close()
