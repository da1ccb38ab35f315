"""What types of weights cost: float32 nothing, packed nothing either, fewer bits more."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvist.bench.quality import check_types, qualities
from kvist.errors import UnknownNameError, UsageError


def test_packed_weights_cost_nothing_beside_float32(smollm2_path: Path) -> None:
    exact, packed, rounded = qualities(str(smollm2_path), ["packed", "bf16"], max_model_len=1024)
    assert (exact.weights, packed.weights, rounded.weights) == ("f32", "packed", "bf16")
    assert exact.divergence == packed.divergence == 0.0 and exact.agreement == packed.agreement == 1.0
    assert exact.perplexity == packed.perplexity and packed.weights_bytes < exact.weights_bytes / 5
    assert 0.0 < rounded.divergence < 1e-3 and rounded.tokens == exact.tokens > 500
    assert 1.0 < rounded.perplexity < 100.0


def test_what_is_refused(smollm2_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="int8"):
        check_types(["int9"])
    with pytest.raises(UsageError, match="quantised already"):
        list(qualities(str(smollm2_path), ["int8"], max_model_len=1024))
