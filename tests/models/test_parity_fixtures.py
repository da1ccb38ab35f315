"""Tiny models of all families against what transformers computed for them (tests/fixtures/transformers.npz)."""

from pathlib import Path

import numpy as np
import pytest

from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import load_model
from steps import greedy, logits_of
from tiny import MODELS, digest, write_folder, write_gguf
from tiny_gguf import NO_GGUF

FIXTURES = Path(__file__).parent.parent / "fixtures" / "transformers.npz"
PROMPTS = ("one", "page", "tiles")


@pytest.fixture(scope="module")
def kept() -> dict[str, np.ndarray]:
    with np.load(FIXTURES) as file:
        return dict(file)


@pytest.mark.parametrize("name", MODELS)
def test_the_fixture_is_of_these_weights(kept: dict[str, np.ndarray], name: str) -> None:
    assert str(kept[f"{name}/digest"]) == digest(MODELS[name]), "run scripts/make_parity_fixtures.py again"


CASES = [(name, "folder") for name in MODELS] + [(name, "gguf") for name in MODELS if name not in NO_GGUF]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_logits_and_greedy_tokens(
    kept: dict[str, np.ndarray], backend: CpuBackend, tmp_path: Path, name: str, form: str
) -> None:
    tiny = MODELS[name]
    path = write_folder(tiny, tmp_path) if form == "folder" else write_gguf(tiny, tmp_path / "tiny.gguf")
    model = load_model(path, backend, "f32")
    for prompt in PROMPTS:
        ids = kept[f"{name}/{prompt}/prompt"].tolist()
        logits = logits_of(model, backend, ids)
        assert logits.shape == (len(ids), tiny.vocab)
        difference = np.abs(logits[kept[f"{name}/{prompt}/positions"]] - kept[f"{name}/{prompt}/logits"]).max()
        assert difference < 1e-4
        if tiny.by_length:
            continue
        expected = kept[f"{name}/{prompt}/greedy"].tolist()
        assert len(expected) == 64
        assert greedy(model, backend, ids, 64) == expected
