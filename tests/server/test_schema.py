"""Requests made from the server's own description, valid and invalid ones (schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance

import serving
from serving import Served


@pytest.fixture(scope="module")
def described_server(tiny_path: Path) -> Iterator[Served]:
    with serving.serving(str(tiny_path), "--served-model-name", "tiny", "--max-queue", "64") as server:
        yield server


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_what_is_described_holds(described_server: Served, mode: GenerationMode) -> None:
    described = schemathesis.openapi.from_url(f"{described_server.url}/openapi.json")
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing that could be wrong

        @settings(
            max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: schemathesis.Case) -> None:
            # not: that whatever has the right shape is accepted; a model that is not here has the right shape too
            case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=60)

        holds()


def test_every_route_is_described(described_server: Served) -> None:
    with described_server.client() as client:
        found = client.get("/openapi.json").json()
    assert set(found["paths"]) >= {
        "/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize", "/health",
        "/version", "/metrics", "/cache", "/cache/flush", "/v1/sessions", "/v1/sessions/{name}",
    }  # fmt: skip
    for path in found["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"] and "400" in operation["responses"]
