import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest

from kvist import LLM, SamplingParams
from kvist.cli.answer import Setting, pin_system, prompt_ids
from kvist.cli.terminal import show
from tiny import MODELS, write_gguf

LONG = ["--ignore-eos", "--max-tokens", "200"]
STATS = re.compile(r"^\[prompt (\d+) tokens \((\d+) cached\) (\d+) ms \| (\d+) tokens ([\d.]+) tok/s\]$", re.MULTILINE)
COUNTERS = re.compile(
    r"^\[K/V projections: (\d+) positions x \d+ layers \| reused: \d+ tokens \| pages: \d+ allocated, \d+ shared, \d+ freed\]$",
    re.MULTILINE,
)
STORY = ["--ignore-eos", "--max-tokens", "2000"]


# --- a tiny model
# -------------------------------------------------------------------------------------------------------


def test_text_on_stdout_and_nothing_else(cli, tiny_model):
    done = cli("run", tiny_model, "the hen", "--max-tokens", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n") and len(done.stdout) > 1


def test_standard_input_is_the_same_as_an_argument(cli, tiny_model):
    flags = ["--max-tokens", "12", "--raw"]
    assert cli("run", tiny_model, *flags, text="the hen\n").stdout == cli("run", tiny_model, "the hen", *flags).stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-cache"],
        ["--no-enable-prefix-caching"],
        ["--page-size", "32"],
        ["--threads", "1"],
        ["--max-num-batched-tokens", "3"],
        ["--kv-cache-memory-bytes", "1MiB"],
        ["--speculative-config", "ngram"],
        ["--speculative-config", '{"method": "ngram", "prompt_lookup_min": 1, "adaptive": false}'],
    ],
)
def test_no_flag_of_the_cache_changes_the_answer(cli, tiny_model, flags):
    plain = json.loads(
        cli("run", tiny_model, "the hen on the stone", "--max-tokens", "40", "--ignore-eos", "--json").stdout
    )
    other = json.loads(
        cli("run", tiny_model, "the hen on the stone", "--max-tokens", "40", "--ignore-eos", "--json", *flags).stdout
    )
    assert other["token_ids"] == plain["token_ids"] and len(plain["token_ids"]) == 40


def test_the_seed_decides(cli, tiny_model):
    def sampled(seed):
        return cli(
            "run", tiny_model, "the", "--temperature", "1", "--seed", seed, "--max-tokens", "20", "--ignore-eos"
        ).stdout

    assert sampled("1") == sampled("1") != sampled("2")


def test_json(cli, tiny_model):
    done = cli("run", tiny_model, "the hen", "--json", "--ignore-eos", "--max-tokens", "5")
    answer = json.loads(done.stdout)
    assert done.stderr == ""
    assert set(answer) == {"model", "text", "token_ids", "finish_reason", "stop_reason", "logprobs", "metrics", "cache"}
    assert answer["finish_reason"] == "length" and len(answer["token_ids"]) == 5
    metrics = answer["metrics"]
    assert metrics["generated_tokens"] == 5 and metrics["cached_tokens"] == 0
    assert metrics["kv_projections"] == metrics["prompt_tokens"] + 4
    assert metrics["seconds"] > metrics["time_to_first_token_seconds"] > 0


BYTES = ["--raw", "--ignore-eos", "--max-tokens", "250", "--temperature", "5"]
"""Of a tiny random model: any byte, again and again."""


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_model_cannot_steer_the_terminal(cli, kvist, tiny_model, flags):
    command = ["run", tiny_model, "a", *BYTES, "--seed", "2"]
    plain = cli(*command).stdout
    assert {"\x1b", "\r", "\t", "\x7f"} <= set(plain)  # elsewhere they stay as they are
    shown = "".join(
        chr(0x2400 + ord(c)) if c < " " and c not in "\n\t" else f"\\u{ord(c):04x}" if "\x7f" <= c <= "\x9f" else c
        for c in plain
    )
    line = " ".join(map(shlex.quote, [kvist, *command, *flags]))
    child = pexpect.spawn("sh", ["-c", f"{line} 2>/dev/null"], encoding="utf-8", timeout=60)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    written = child.before.replace("\r\n", "\n")
    if flags:
        assert not {c for c in written if unicodedata.category(c) == "Cc"} - {"\n"}
        assert json.loads(written)["text"] + "\n" == plain
    else:
        assert written == shown


def test_control_characters_that_take_two_bytes_are_shown_as_well(monkeypatch, capsys):
    show("\x80\x9b2J\xa0\x85")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show("\x80\x9b2J\xa0\x85", "\n")
    assert capsys.readouterr().out == "\x80\x9b2J\xa0\x85" + "\\u0080\\u009b2J\xa0\\u0085\n"


def test_json_says_what_was_found_in_the_cache_and_why_not_more(cli, tiny_model):
    def found(*flags):
        return json.loads(cli("run", tiny_model, "the hen", "--json", "--max-tokens", "1", *flags).stdout)["metrics"]

    metrics = found()
    assert metrics["reuse"] == {
        "computed": metrics["prompt_tokens"], "cached": {"memory": 0}, "reason": "never seen", "first_difference": None,
    }  # fmt: skip
    assert found("--cache-salt", "mine")["reuse"]["reason"] == "salt"
    assert found("--no-cache")["reuse"]["reason"] == "off"
    assert found()["policy"] == "full"
    assert found("--policy", "window:32")["policy"] == "window:32+4", "what changes answers is named"
    assert found()["kv_cache_dtype"] == "f32"
    assert found("--kv-cache-dtype", "int8")["kv_cache_dtype"] == "int8"
    lossy = found("--kv-cache-dtype", "int8", "--kv-cache-skip-layers", "0,-1")
    assert lossy["kv_cache_dtype"] == "int8 (f32 in layers 0,-1)"


def test_the_system_message_is_pinned_and_no_more(tiny_model):
    with LLM(tiny_model, kv_cache_memory_bytes=8 << 20) as llm:
        system, one = "the hen on the stone " * 4, SamplingParams(temperature=0, max_tokens=1)
        setting = Setting(tiny_model, None, None, one, system=system, cache_salt="mine")
        pin_system(llm, setting)
        assert not llm.engine.manager.pins.names
        pin_system(llm, replace(setting, pin=True))
        ask = lambda text: llm.generate([prompt_ids(llm, text, system, False)], one, cache_salt="mine")[0].metrics  # noqa: E731
        ask("the ants " * 9)
        llm.engine.manager.flush()
        pinned = llm.engine.manager.stats().pinned
        assert pinned >= len(llm.tokenizer.encode(system)) // 16 > 1
        assert ask("rain").cached_tokens == 16 * pinned


def test_stats_count_what_the_cache_saves(cli, tiny_model):
    flags = ["--ignore-eos", "--max-tokens", "10", "--stats"]
    cached, uncached = (
        cli("run", tiny_model, "the hen", *flags),
        cli("run", tiny_model, "the hen", "--no-cache", *flags),
    )
    assert cached.stdout == uncached.stdout
    prompt = int(STATS.search(cached.stderr)[1])
    assert int(COUNTERS.search(cached.stderr)[1]) == prompt + 9
    assert int(COUNTERS.search(uncached.stderr)[1]) == sum(prompt + i for i in range(10))


DRAFTS = re.compile(r"^\[speculation: (\d+) tokens drafted, (\d+) accepted(?: \((\d+)%\))?\]$", re.MULTILINE)


def test_a_draft_model_and_what_came_of_it(cli, tiny_model):
    """The model drafts for itself: all is accepted, and the text is the same."""
    flags = ["--ignore-eos", "--max-tokens", "41", "--temperature", "0.8", "--seed", "3"]
    config = json.dumps({"method": "draft_model", "model": tiny_model, "num_speculative_tokens": 3, "adaptive": False})
    plain = cli("run", tiny_model, "the hen", *flags, "--stats")
    drafted = cli("run", tiny_model, "the hen", *flags, "--stats", "--speculative-config", config)
    assert drafted.stdout == plain.stdout
    assert DRAFTS.search(drafted.stderr).groups() == ("30", "30", "100")
    assert not DRAFTS.search(plain.stderr)
    found = json.loads(cli("run", tiny_model, "the hen", *flags, "--json", "--speculative-config", config).stdout)
    assert {name: found["metrics"][name] for name in ("drafted_tokens", "accepted_tokens", "acceptance_rate")} == {
        "drafted_tokens": 30, "accepted_tokens": 30, "acceptance_rate": 1.0,
    }  # fmt: skip
    none = json.loads(cli("run", tiny_model, "the hen", *flags, "--json").stdout)["metrics"]
    assert (none["drafted_tokens"], none["accepted_tokens"], none["acceptance_rate"]) == (0, 0, None)


def test_sampling_flags_reach_the_answer(cli, tiny_model):
    def answer(*flags):
        given = ["--max-tokens", "30", "--ignore-eos", "--temperature", "1", "--seed", "4", "--raw", *flags]
        return json.loads(cli("run", tiny_model, "the hen", *given, "--json").stdout)

    plain = answer()
    assert (plain["stop_reason"], plain["logprobs"]) == (None, None)
    for flags in (
        ["--typical-p", "0.2"],
        ["--repetition-penalty", "3"],
        ["--presence-penalty", "2"],
        ["--frequency-penalty", "-2"],
        ["--top-k", "2"],
        ["--min-p", "0.9"],
    ):
        assert answer(*flags)["token_ids"] != plain["token_ids"], flags
    stop = plain["text"][10:13]
    stopped = answer("--stop", "never there", "--stop", stop)
    assert stopped["text"] == plain["text"][: plain["text"].find(stop)]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", stop)
    found = answer("--logprobs", "2")
    assert found["token_ids"] == plain["token_ids"]
    assert [one[0]["token_id"] for one in found["logprobs"]] == plain["token_ids"]
    assert set(found["logprobs"][0][0]) == {"token_id", "logprob", "rank", "decoded_token"}


def test_speculation_that_cannot_be_meant(refused, tiny_model):
    def message(config, *flags):
        return refused(2, "run", tiny_model, "the", "--speculative-config", config, *flags)

    assert "did you mean ngram" in message("ngrams")
    assert "--speculative-config is not valid JSON" in message('{"method": ngram}')
    assert "did you mean prompt_lookup_max" in message('{"method": "ngram", "prompt_lookup_mx": 3}')
    assert "needs the cache" in message("ngram", "--no-cache")
    assert "needs a model" in message("draft_model")
    assert "no/such/model" in message('{"method": "draft_model", "model": "no/such/model"}')


def test_raw_and_system_change_the_prompt(cli, tiny_model):
    def length(*flags):
        return json.loads(cli("run", tiny_model, "the hen", "--json", "--max-tokens", "1", *flags).stdout)["metrics"][
            "prompt_tokens"
        ]

    assert length("--raw") < length() < length("--system", "be brief")


def test_an_answer_nobody_limited_says_why_it_stopped(cli, tiny_model):
    done = cli("run", tiny_model, "the hen", "--ignore-eos", "--kv-cache-memory-bytes", "1MiB", "--max-model-len", "64")
    assert done.returncode == 0
    assert re.search(r"^\[stopped after \d+ tokens: --max-tokens asks for more\]$", done.stderr)


def test_text_comes_while_it_is_made(kvist, tiny_model):
    with subprocess.Popen([kvist, "run", tiny_model, "the", *LONG], stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        os.kill(process.pid, signal.SIGSTOP)  # were the text kept for the end, there would be no process to stop
        assert process.poll() is None
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(60) == 0


def test_a_reader_that_leaves_is_no_error(kvist, tiny_model):
    script = f"'{kvist}' run '{tiny_model}' the {' '.join(LONG)} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout in ("141\n", "0\n")  # 0: all was written before head left


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout(kvist, tiny_model):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [kvist, "run", tiny_model, "the"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, "kvist: No space left on device\n")


def test_a_prompt_is_needed_without_standard_input(kvist):
    done = subprocess.run(["bash", "-c", f"'{kvist}' run smollm2 <&-"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "") and "a prompt is needed" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-model-len", "100000"], "give at most 256"),
        (["--max-tokens", "1000"], "ask for at most"),
        (["--kv-cache-memory-bytes", "100"], "--kv-cache-memory-bytes of at least"),
        (["--kv-cache-memory-bytes", "20KiB", "--max-model-len", "256"], "--max-model-len="),
        (["--kv-cache-memory-bytes", "900TiB"], "bytes"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_arithmetic(cli, tiny_model, flags, says):
    done = cli("run", tiny_model, "the hen", *flags)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_the_flag_that_an_error_gives_fits(cli, tiny_model):
    flags = ["run", tiny_model, "the hen", "--max-tokens", "4", "--max-model-len", "256", "--kv-cache-memory-bytes"]
    error = cli(*flags, "20KiB").stderr
    fits = re.search(r"--kv-cache-memory-bytes=(\d+)", error)[1]
    assert cli(*flags, fits).returncode == 0
    assert cli(*flags, str(int(fits) - 1)).returncode == 1


def test_a_prompt_that_is_too_long(refused, tiny_model):
    assert "--max-model-len is 256" in refused(2, "run", tiny_model, "hen " * 500)


def test_prompts_that_are_no_text(refused, tiny_model):
    assert "not UTF-8" in refused(2, "run", tiny_model, text=b"\xff\xfe\x00")
    assert "not valid Unicode" in refused(2, "run", tiny_model, os.fsdecode(b"\xff"))


# --- models that are not there, or not whole
# -----------------------------------------------------------------------------


def test_wrong_names(refused, tmp_path):
    empty = {"XDG_CACHE_HOME": str(tmp_path)}
    assert "did you mean smollm2" in refused(2, "run", "smolm2", "hi")
    assert "run `kvist pull smollm2`" in refused(2, "run", "smollm2", "hi", env=empty)
    assert "run `kvist pull some/model`" in refused(2, "run", "some/model", "hi", env=empty)
    assert "unknown model" in refused(2, "run", "/no/such/file.gguf", "hi")
    (tmp_path / "model.gguf").write_bytes(b"")
    assert "did you mean" in refused(2, "run", str(tmp_path / "modle.gguf"), "hi")


def test_damaged_files(refused, tmp_path):
    whole = write_gguf(MODELS["llama"], tmp_path / "whole.gguf").read_bytes()
    for share in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:share])
        assert "cut.gguf" in refused(1, "run", str(tmp_path / "cut.gguf"), "hi")
    (tmp_path / "foreign.gguf").write_bytes(b"\x89PNG" + whole[4:])
    assert "foreign.gguf" in refused(1, "run", str(tmp_path / "foreign.gguf"), "hi")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(1, "run", str(tmp_path / "empty"), "hi")


# --- the default model
# ---------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_default_model_answers(cli, smollm2_path):
    done = cli("run", "smollm2", "What is the capital of Sweden?", "--max-tokens", "24", "--stats")
    assert done.returncode == 0
    assert "Stockholm" in done.stdout
    assert STATS.search(done.stderr) and COUNTERS.search(done.stderr)


@pytest.mark.model
def test_uncached_it_says_the_same(cli, smollm2_path):
    prompt = ["run", "smollm2", "--raw", "--max-tokens", "16", "The capital of Sweden is"]
    assert cli(*prompt).stdout == cli(*prompt, "--no-cache").stdout


@pytest.mark.model
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_answering(kvist, smollm2_path, number, status):
    arguments = [kvist, "run", "smollm2", "Write a long story.", *STORY]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.send_signal(number)
        asked = time.monotonic()
        text, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (status, b"")
    assert text.endswith(b"\n")
    assert time.monotonic() - asked < 10


@pytest.mark.model
def test_ctrl_c_on_a_terminal(kvist, smollm2_path):
    child = pexpect.spawn(
        kvist, ["run", "smollm2", "Write a long story about a fox.", *STORY], encoding="utf-8", timeout=60
    )
    child.expect("fox")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in child.before and child.before.endswith("\r\n")


@pytest.mark.model
def test_a_context_that_is_full(refused, smollm2_path):
    assert "8192" in refused(2, "run", "smollm2", "a b " * 5000)
