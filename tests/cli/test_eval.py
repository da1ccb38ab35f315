"""`kvist eval` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvist.cli import terminal

TIMED = ("step_ms_intercept", "step_us_per_1k_tokens", "slope_to_f16", "slope_to_f16_interval", "steps")
SMALL = ("--tokens", "40", "--documents", "4", "--threads", "2")
CODECS = ("--kv-cache-dtype", "bf16,int8,k=int8,v=int4")


def test_a_table_and_json_in_the_agreed_shape(cli: Callable[..., Any], tiny_model: str, tmp_path: Path) -> None:
    results = str(tmp_path / "results")
    found = json.loads(cli("eval", tiny_model, *SMALL, *CODECS, "--resume", results, "--json").stdout)
    assert {"reference", "methods"} <= found.keys()
    assert [row["codec"] for row in found["methods"]] == ["f32", "f16", "bf16", "int8", "k=int8,v=int4"]
    for row in found["methods"]:
        assert {
            "codec", "policy", "bits_per_value", "bytes_per_token", "perplexity", "perplexity_change", "kld_mean",
            "kld_p999", "top1", "passkey", "step_ms_intercept", "step_us_per_1k_tokens", "tier", "best_at_its_bytes",
        } <= row.keys()  # fmt: skip
    done = cli("eval", tiny_model, *SMALL, *CODECS, "--resume", results)
    assert (done.returncode, done.stderr) == (0, "")
    table = done.stdout.splitlines()
    held = sorted(found["methods"], key=lambda row: -row["live_bytes_per_token"])
    assert [line.split()[0] for line in table[:7]] == ["method", "reference", *(row["codec"] for row in held)]
    bf16 = next(line for line in table if line.startswith("bf16"))
    assert f"{found['methods'][2]['kld_mean']:.2e}" in bf16
    assert found["methods"][4]["tier"]["name"] == "up to 8.5 bits" and any(line.startswith("up to 8.5 bits") for line in table)


def test_a_stream(cli: Callable[..., Any], tiny_model: str) -> None:
    arguments = ("eval", tiny_model, "--stream", "1000", "--policy", "window:64+4", "--threads", "2")
    found = json.loads(cli(*arguments, "--json").stdout)
    (method,) = found["methods"]
    assert (method["codec"], method["policy"], len(method["parts"])) == ("f16", "window:64+4", 10)
    done = cli(*arguments)
    assert f"{method['parts'][9]['perplexity']:.3f}" in done.stdout.splitlines()[10]


def test_steps_alone(cli: Callable[..., Any], tiny_model: str) -> None:
    arguments = ("eval", tiny_model, "--speed", "64", "--sequences", "1,3", "--threads", "2")
    found = json.loads(cli(*arguments, "--kv-cache-dtype", "int8", "--policy", "full,window:64+4", "--json").stdout)
    rows = [(row["codec"], row["policy"], row["sequences"]) for row in found["speed"]]
    methods = [("f16", "full"), ("int8", "full"), ("int8", "window:64+4")]
    assert rows == [(*method, count) for method in methods for count in (1, 3)]
    for row in found["speed"]:
        assert [step["context"] for step in row["steps"]] == found["contexts"] == [8, 16, 32, 64]
        assert all(step["seconds"] > 0 for step in row["steps"])
    assert [row["slope_to_f16"] for row in found["speed"][:2]] == [1, 1]
    table = cli(*arguments).stdout.splitlines()  # of codecs that go with a head of 16
    assert [table[0], table[1].split()[0]] == ["1 sequence, ms a step", "method"]
    assert "3 sequences, ms a step" in table and [line.split()[0] for line in table[2:4]] == ["f16", "int8"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kv-cache-dtype", "f61"], "did you mean"),
        (["--kv-cache-dtype", "zzz"], "bf16, f16, f32"),
        (["--kv-cache-dtype", ""], "known are"),
        (["--kv-cache-dtype", "auto"], "--kv-cache-dtype"),
        (["--policy", "nonsense"], "evict, full, topk, window"),
        (["--kv-cache-dtype", "k=int5,v=zz"], "known are bf16"),
        (["--kv-cache-dtype", "@/nowhere"], "cannot read /nowhere"),
        (["--kv-cache-dtype", "int4", "--kv-cache-skip-layers", "a"], "0,1,-2,-1"),
        (["--choose", "many"], "bits a number"),
        (["--choose", "4.5bits", "--policy", "window:64+4"], "leave --stream and --policy out"),
        (["--choose", "4.5bits", "--output", "/nowhere/x"], "folder that exists"),
        (["--choose", "4.5bits", "--kv-cache-dtype", "k=int5,v=int4"], "single codecs"),
        (["--choose", "4.5bits", "--kv-cache-dtype", "f16"], "no codec to choose"),
        (["--output", "x"], "--choose"),
        (["--tokens", "300"], "256 positions"),
        (["--tokens", "0"], "--tokens"),
        (["--documents", "0"], "--documents"),
        (["--resume", "/dev/null"], "regular file"),
        (["--stream", "2000"], "lets go of pages"),
        (["--stream", "10"], "--stream"),
        (["--stream", "2000", "--policy", "window:16+17"], "17 sinks"),
        (["--speed", "10"], "--speed"),
        (["--speed", "65"], "give 64 at most"),
        (["--speed", "64", "--sequences", "1,0"], "from 1 to 64"),
        (["--speed", "64", "--sequences", "all"], "from 1 to 64"),
        (["--speed", "64", "--stream", "2000"], "leave --choose, --stream, --plots and --resume out"),
        (["--sequences", "2"], "--speed"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    refused: Callable[..., str], tiny_model: str, arguments: list[str], says: str
) -> None:
    assert says in refused(2, "eval", tiny_model, *arguments)


def test_pictures_need_matplotlib_and_say_so_before_anything_runs(
    refused: Callable[..., str], tiny_model: str, tmp_path: Path
) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError\n")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    line = refused(2, "eval", tiny_model, "--plots", str(tmp_path / "plots"), env={"PYTHONPATH": path})
    assert "kvist[eval]" in line and not (tmp_path / "plots").exists()


def test_pictures_are_drawn(cli: Callable[..., Any], tiny_model: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = cli("eval", tiny_model, *SMALL, "--json", "--plots", str(tmp_path / "plots"))
    json.loads(done.stdout)
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == ["position.svg", "quality.svg"]
    assert done.stderr.count("wrote") == 2


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(cli: Callable[..., Any], kvist: str, tiny_model: str, tmp_path: Path) -> None:
    arguments = ["eval", tiny_model, "--tokens", "60", "--documents", "40", "--threads", "1", "--json"]
    path, kills = tmp_path / "results", 0
    for lines in (1, 40, 100):
        process = subprocess.Popen([kvist, *arguments, "--resume", str(path)], stdout=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < lines):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    resumed, fresh = cli(*arguments, "--resume", str(path)), cli(*arguments)
    assert untimed(resumed.stdout) == untimed(fresh.stdout)


def untimed(printed: str) -> str:
    """A report without what no two runs measure alike."""
    found = json.loads(printed)
    rows = [{key: value for key, value in row.items() if key not in TIMED} for row in found["methods"]]
    return json.dumps({**found, "methods": rows})


def test_hours_are_told_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "LINES", 0.02)
    with terminal.Activity("reading", hours=True) as activity, terminal.Activity("nothing"):
        activity.report("reading documents, percent", 7, 100)
        time.sleep(0.3)
    told = capsys.readouterr()
    assert "reading documents, percent 7 of 100\n" in told.err and "nothing" not in told.err + told.out
