"""Transformers as the other implementation. Without torch and transformers all of tests/parity is skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Logits = Callable[[Any, Sequence[int]], np.ndarray]
DIFFERENCES = pytest.StashKey[dict[str, float]]()


@pytest.fixture(scope="session")
def differences(pytestconfig: pytest.Config) -> dict[str, float]:
    """By family, the largest difference of a logit; told at the end (the README's table has it)."""
    return pytestconfig.stash.setdefault(DIFFERENCES, {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(DIFFERENCES, {})
    if found:
        terminalreporter.section("largest difference of a logit from transformers', float32")
        for family, difference in found.items():
            terminalreporter.line(f"{family:<20} {difference:.1e}")


@pytest.fixture(scope="session")
def transformers() -> Any:
    pytest.importorskip("torch")
    module = pytest.importorskip("transformers")
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="session")
def load(transformers: Any) -> Callable[..., Any]:
    """A model in float32 from a folder, or from a GGUF file that transformers dequantises."""
    import torch

    def load(path: Path) -> Any:
        where = {"gguf_file": path.name} if path.is_file() else {}
        folder = path.parent if path.is_file() else path
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **where
        )
        assert not any(info.values()), f"weights that transformers misses or does not know: {info}"
        return model.eval()

    return load


@pytest.fixture(scope="session")
def their_logits() -> Logits:
    """float32 (positions, vocab) of a whole prompt."""
    import torch

    def logits(model: Any, ids: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            made: np.ndarray = model(torch.tensor([list(ids)])).logits[0].numpy()
        return made

    return logits


@pytest.fixture(scope="session")
def their_greedy() -> Callable[[Any, Sequence[int], int], list[int]]:
    """The likeliest next tokens, with transformers' own cache; its end tokens end nothing."""
    import torch

    def greedy(model: Any, ids: Sequence[int], count: int) -> list[int]:
        new, tokens, past = torch.tensor([list(ids)]), [], None
        with torch.no_grad():
            for _ in range(count):
                out = model(new, past_key_values=past, use_cache=True)
                past, new = out.past_key_values, out.logits[:, -1:].argmax(-1)
                tokens.append(int(new))
        return tokens

    return greedy
