"""`kvist verify` and `kvist bench` as programs and people read them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kvist.bench import shared, speculation
from kvist.bench.bench import NAMES
from kvist.config import SpeculativeConfig
from kvist.errors import UsageError
from kvist.llm import LLM
from kvist.verify.scenarios import SCENARIOS
from tiny import MODELS, write_folder

Cli = Callable[..., "CompletedProcess[str]"]


def test_verify_prints_a_table_and_leaves_with_0(cli: Cli, tiny_model: str) -> None:
    done = cli("verify", tiny_model, "--quick", "--kv-cache-dtype", "f16")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(SCENARIOS) + 2
    assert lines[0].split() == ["scenario", "codec", "logits", "differing", "bits", "seconds"]
    assert all(line.split()[-2] == "0" for line in lines[1:-1])
    assert lines[-1].startswith("ok: ")
    assert done.stderr == ""


def test_verify_takes_a_speculative_config_besides(cli: Cli, tiny_model: str) -> None:
    config = json.dumps({"method": "draft_model", "model": tiny_model})
    done = cli("verify", tiny_model, "--quick", "--kv-cache-dtype", "f32", "--speculative-config", config, "--json")
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in json.loads(done.stdout)["scenarios"]]
    assert names == [*(scenario.name for scenario in SCENARIOS), "speculative (as configured) = plain"]


def test_verify_json(cli: Cli, tiny_model: str) -> None:
    done = cli("verify", tiny_model, "--quick", "--json")
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert {row["codec"] for row in found["scenarios"]} == {"f32", "f16", "bf16"}
    assert all(
        row["differing_bits"] == 0 and row["logits"] > 0 and row["policy"] == "full" for row in found["scenarios"]
    )


@pytest.mark.slow
def test_bench_json_names_every_workload(cli: Cli, tiny_model: str) -> None:
    done = cli("bench", tiny_model, "--json", "--repeats", "1", "--kv-cache-memory-bytes", "64MiB")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"model", "threads", "commit", "roofline", "results"} <= found.keys()
    assert found["roofline"]["read_gb_s"] > 0
    assert found["roofline"]["fma_gflops"] > 0
    rows = {row["name"]: row for row in found["results"]}
    assert tuple(rows) == NAMES
    for row in rows.values():
        assert {"tokens_per_s", "seconds", "roofline_share"} <= row.keys()
    assert rows["decode_1"]["tokens_per_s"] > 0
    assert rows["decode_16"]["tokens_per_s"] > 0
    assert rows["decode_1_ctx8000"]["tokens_per_s"] is None  # the tiny model has 256 positions
    assert "256" in rows["decode_1_ctx8000"]["note"]
    assert {"ratio", "drafted_tokens", "acceptance_rate"} <= rows["speculation_repeat"].keys()
    assert "256" in rows["speculation_other"]["note"]


def test_bench_compares_answers_with_and_without_speculation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_folder(replace(MODELS["llama"], positions=2048), tmp_path / "llama")
    with LLM(model, kv_cache_memory_bytes=64 << 20) as llm:
        config = SpeculativeConfig("ngram", prompt_lookup_min=1, adaptive=False)
        found = [speculation.compare(llm, config, name, repeats=1) for name in speculation.NAMES]
        assert tuple(row.name for row in found) == speculation.NAMES
        for row in found:
            assert row.ratio is not None and row.ratio > 0
            assert row.note.endswith("same text")
            assert row.tokens_per_s is not None and row.tokens_per_s > 0
        assert found[0].drafted_tokens > 0
        numbers = itertools.count()  # answers that depend on who is asked first
        monkeypatch.setattr(
            "kvist.engine.sampler.Sampler.choose", lambda self, rows: [next(numbers) % 200 for _ in rows]
        )
        with pytest.raises(UsageError, match="differs from the one without"):
            speculation.compare(llm, config, "speculation_other", repeats=1)


def test_bench_serves_requests_that_begin_alike(cli: Cli, tmp_path: Path, tiny_model: str) -> None:
    model = write_folder(replace(MODELS["llama"], positions=2560), tmp_path / "llama")
    done = cli("bench", str(model), *shared.NAMES, "--repeats", "1", "--json", "--kv-cache-memory-bytes", "64MiB")
    assert (done.returncode, done.stderr) == (0, "")
    roomy, tight = json.loads(done.stdout)["results"]
    assert (roomy["preemptions"], round(roomy["hit_rate"], 3)) == (
        0,
        round(31_000 / sum(shared.Work.drawn().lengths), 3),
    )
    assert 0 < roomy["wasted_share"] < 0.02
    assert tight["preemptions"] > 0 and tight["wasted_share"] < 0.04
    keys = ("ttft_p50", "ttft_p99", "itl_p50", "itl_p99", "worst_gap_steps", "tokens_per_s")
    assert all(row[key] > 0 for row in (roomy, tight) for key in keys)
    short = cli("bench", tiny_model, "shared_64", "--json", "--kv-cache-memory-bytes", "64MiB")
    (row,) = json.loads(short.stdout)["results"]
    assert row["seconds"] is None and "the model has 256" in row["note"]


def test_bench_counts_what_the_cache_saves(cli: Cli, tiny_model: str) -> None:
    done = cli("bench", tiny_model, "--uncached", "--lengths", "5,100", "--json")
    five, hundred = json.loads(done.stdout)["savings"]
    assert (five["uncached_projections"], five["cached_projections"], five["counted_ratio"]) == (15, 5, 3.0)
    assert (hundred["uncached_projections"], hundred["cached_projections"], hundred["counted_ratio"]) == (
        5050,
        100,
        50.5,
    )


def test_a_thousand_tokens_cost_500_times_fewer_projections(cli: Cli, tmp_path: Path) -> None:
    model = write_folder(replace(MODELS["llama"], positions=1024, layers=1), tmp_path / "llama")
    done = cli("bench", str(model), "--uncached", "--lengths", "1000", "--json", "--kv-cache-memory-bytes", "64MiB")
    (row,) = json.loads(done.stdout)["savings"]
    assert (row["uncached_projections"], row["cached_projections"], row["counted_ratio"]) == (500_500, 1000, 500.5)


def test_bad_lengths_are_refused(refused: Callable[..., str], tiny_model: str) -> None:
    assert "lengths" in refused(2, "bench", tiny_model, "--uncached", "--lengths", "5,x")
    assert "lengths" in refused(2, "bench", tiny_model, "--uncached", "--lengths", "0")
    assert "f16" in refused(2, "verify", tiny_model, "--kv-cache-dtype", "f61")


def test_packed_codecs_are_verified(cli: Cli, refused: Callable[..., str], tiny_model: str) -> None:
    given = ("--kv-cache-dtype", "k=int8,v=int4", "--kv-cache-skip-layers", "0", "--policy", "window:64+4")
    done = cli("verify", tiny_model, "--quick", *given, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (0, True)
    names = {row["name"] for row in found["scenarios"]}
    assert {"uncached = cached", "prefix hit = miss", "batch of 7 = alone", "fork and roll back = fresh"} <= names
    assert not any(name.startswith("page size") for name in names), "which positions are exact goes by pages"
    assert {row["codec"] for row in found["scenarios"]} == {"k=int8,v=int4"}
    assert "names layer 3" in refused(
        2, "verify", tiny_model, "--kv-cache-dtype", "int4", "--kv-cache-skip-layers", "3"
    )
