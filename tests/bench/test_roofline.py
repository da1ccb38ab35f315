"""What a step must compute at least, counted from a model's weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvist import LLM
from kvist.bench.roofline import cost_of
from tiny import MODELS, write_folder


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_row_pays_for_the_experts_it_chooses(tmp_path: Path, name: str) -> None:
    with LLM(write_folder(MODELS[name], tmp_path / name), kv_cache_memory_bytes=1 << 20) as llm:
        matrices, config = llm.model.matrices, llm.model.config
        cost = cost_of(llm.model, llm.engine)
        layers = {role: w.rows * w.columns for role, w in matrices.items() if role.startswith("layers.")}
        unused = [role for role in layers if any(f".expert.{e}." in role for e in range(config.experts_chosen, 64))]
        assert bool(unused) == (name == "mixtral")
        assert cost.layer_parameters == sum(layers.values()) - sum(layers[role] for role in unused)
        held = {role: w.data.nbytes for role, w in matrices.items() if role in layers and role not in unused}
        assert cost.matrix_bytes == sum(held.values()) + matrices["head"].data.nbytes
