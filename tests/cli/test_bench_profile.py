"""`kvist bench --profile` and `--kernels` as programs and people read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

Cli = Callable[..., "CompletedProcess[str]"]
POOL = ("--kv-cache-memory-bytes", "64MiB")

OPERATION = {
    "label", "count", "seconds", "waited_seconds", "share", "bytes", "weight_bytes", "activation_bytes",
    "page_bytes_read", "page_bytes_written", "operations", "gb_s", "gflop_s", "roofline_share", "bound",
}  # fmt: skip


def test_profile_as_json(cli: Cli, tiny_model: str) -> None:
    done = cli("bench", tiny_model, "--profile", "decode_1", "prefill_2048", "--json", *POOL)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert set(found) == {"model", "threads", "commit", "weights", "kv_cache_dtype", "profiles"}
    decode, prefill = found["profiles"]
    assert set(decode) == {
        "name", "note", "runs", "seconds", "operations", "waiting_seconds", "host_seconds", "host", "roofline",
    }  # fmt: skip
    assert (decode["name"], decode["runs"]) == ("decode_1", 48)
    assert list(decode["host"]) == ["schedule", "batch", "launch", "sample"]
    assert all(set(row) == OPERATION for row in decode["operations"])
    parts = sum(row["seconds"] for row in decode["operations"]) + decode["waiting_seconds"] + decode["host_seconds"]
    assert parts == pytest.approx(decode["seconds"], rel=1e-9)
    assert sum(decode["host"].values()) == pytest.approx(decode["host_seconds"])
    assert (prefill["runs"], prefill["note"]) == (0, "needs 2049 positions, the model has 256")


def test_profile_as_a_table(cli: Cli, tiny_model: str) -> None:
    done = cli("bench", tiny_model, "--profile", "decode_1", *POOL)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("decode_1: a step of 1 with 32 tokens before it, ")
    assert lines[1].split()[:3] == ["operation", "count", "ms"]
    assert [line.split()[0] for line in lines if line.startswith(("waiting", "host", "step"))] == [
        "waiting",
        "host",
        "step",
    ]
    assert done.stderr == ""


def test_kernels_as_json(cli: Cli, tiny_model: str) -> None:
    done = cli("bench", tiny_model, "--kernels", "--types", "f32", "--rows", "1", "--json", *POOL)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {"roofline", "kernels", "model"} <= found.keys()
    assert {row["kernel"] for row in found["kernels"]} == {"matmul", "attend", "norm", "rotary_store", "gate"}
    (head,) = [row for row in found["kernels"] if row["shape"] == "300x64 head"]
    assert (head["bytes"], head["operations"]) == ((300 * 64 + 64 + 304) * 4, 2 * 300 * 64)
    assert (head["type"], head["rows"], head["from"]) == ("f32", 1, "memory")


def test_sampling_as_json_and_as_a_table(cli: Cli, tiny_model: str) -> None:
    done = cli("bench", tiny_model, "--sampling", "--json", *POOL)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    rows = {row["way"]: row for row in found["sampling"]}
    assert {"greedy", "top-p 0.95", "typical-p 0.95", "greedy, 20 log-probabilities"} < rows.keys()
    for row in rows.values():
        assert 0 < row["choosing_seconds"] < row["step_seconds"] and 0 < row["share"] < 1
    assert rows["greedy"]["choosing_seconds"] < rows["typical-p 0.95"]["choosing_seconds"]
    told = cli("bench", tiny_model, "--sampling", *POOL).stdout.splitlines()
    assert [line[:44].strip() for line in told[1:-1]] == list(rows)


def test_one_workload_alone(cli: Cli, tiny_model: str) -> None:
    done = cli("bench", tiny_model, "decode_1", "--repeats", "1", "--json", *POOL)
    assert [row["name"] for row in json.loads(done.stdout)["results"]] == ["decode_1"]


def test_what_cannot_be_meant_is_refused(refused: Callable[..., str], tiny_model: str) -> None:
    told = refused(2, "bench", tiny_model, "--profile", "xyz")
    assert "known are decode_1, decode_16, decode_1_ctx8000, decode_64, prefill_2048" in told
    assert "mixed_64" in refused(2, "bench", tiny_model, "xyz")
    assert "give one" in refused(2, "bench", tiny_model, "--profile", "--kernels")
    assert "give one" in refused(2, "bench", tiny_model, "--sampling", "--uncached")
    assert "decode_1" in refused(2, "bench", tiny_model, "decode_1", "--kernels")
    assert "q4_1" in refused(2, "bench", tiny_model, "--kernels", "--types", "xyz")
    assert "rows" in refused(2, "bench", tiny_model, "--kernels", "--rows", "0")
    assert "int8" in refused(2, "bench", tiny_model, "--quality", "--types", "int9")
    assert "give one" in refused(2, "bench", tiny_model, "--quality", "--uncached")
