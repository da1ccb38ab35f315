"""`kvist run -f`: a file of prompts in, a file of answers out, whatever happens on the way."""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace

import pexpect
import pytest

from kvist import LLM
from kvist.cli import batch, batch_file
from kvist.cli.answer import Setting
from kvist.cli.batch_file import AnswersFile, read_requests
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError
from tiny import MODELS, write_folder

SAMPLED = ["--temperature", "0.9", "--ignore-eos", "--max-tokens", "40"]
MIXED = [
    "the hen",
    {"prompt": "the hen on the stone", "id": "a", "max_tokens": 5},
    {"messages": [{"role": "user", "content": "the ants"}], "id": 7},
    {"prompt": [5, 6, 7], "temperature": 0, "logprobs": 1, "max_tokens": 3},
    {"prompt": "rain", "n": 2, "seed": 3, "stop": ["zz"]},
    {"prompt": "rain", "id": None, "logit_bias": {"9": -100}},
]
GUIDED = [{"prompt": "rain", "structured_outputs": {"choice": ["hen", "cat"]}}, {"prompt": "rain", "structured_outputs": {"json": {"enum": [1, 2]}}}]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, requests):
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return str(path)


def test_every_kind_of_line(cli, tiny_model, tmp_path):
    prompts, out = write(tmp_path / "in.jsonl", MIXED), tmp_path / "out.jsonl"
    done = cli("run", tiny_model, "-f", prompts, "-o", str(out), *SAMPLED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = lines(out)
    assert [one["index"] for one in found] == list(range(6))
    assert [one["id"] for one in found] == [None, "a", 7, None, None, None]
    assert [[len(answer["token_ids"]) for answer in one["outputs"]] for one in found] == [
        [40], [5], [40], [3], [40, 40], [40],
    ]  # fmt: skip
    assert found[3]["prompt_tokens"] == 3 and len(found[3]["outputs"][0]["logprobs"]) == 3
    assert found[4]["outputs"][0]["text"] != found[5]["outputs"][0]["text"]
    # each is what it would be alone
    alone = json.loads(
        cli("run", tiny_model, "the hen on the stone", "--json", *SAMPLED, "--max-tokens", "5", "--seed", "1").stdout
    )
    assert found[1]["outputs"][0]["text"] == alone["text"]
    printed = cli("run", tiny_model, "-f", prompts, *SAMPLED, "--max-num-seqs", "2", "--stats")
    assert printed.stdout == out.read_text()
    assert re.fullmatch(
        r"\[6 requests in [\d.]+ s \| prompts \d+ tokens \(\d+ cached\) \| 208 tokens [\d.]+ tok/s\]\n", printed.stderr
    )
    again = cli("run", tiny_model, "-f", prompts, "-o", str(out), *SAMPLED)
    assert (again.returncode, again.stderr) == (0, f"[{out}: 6 of 6 are answered]\n")
    assert out.read_text() == printed.stdout


def test_lines_with_structured_outputs(cli, tiny_model, tmp_path):
    prompts, out = write(tmp_path / "in.jsonl", GUIDED), tmp_path / "out.jsonl"
    done = cli("run", tiny_model, "-f", prompts, "-o", str(out), *SAMPLED)
    assert (done.returncode, done.stderr) == (0, "")
    (choice,), (number,) = (one["outputs"] for one in lines(out))
    assert choice["text"] in ("hen", "cat") and number["text"] in ("1", "2")
    assert choice["finish_reason"] == number["finish_reason"] == "stop"
    again = cli("run", tiny_model, "-f", prompts, "-o", str(out), *SAMPLED)
    assert again.stderr == f"[{out}: 2 of 2 are answered]\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON list"),
        ("7", "a JSON int"),
        ("{}", 'give one of "prompt" and "messages"'),
        ('{"prompt": "a", "messages": []}', 'give one of "prompt" and "messages"'),
        ('""', "not empty"),
        ('{"prompt": [1, true]}', "list of token ids"),
        ('{"messages": []}', "messages are a list"),
        ('{"messages": [{"content": "a"}]}', '"role" and "content"'),
        ('{"prompt": "a", "temprature": 1}', "did you mean temperature"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature"),
        ('{"prompt": "a", "structured_outputs": {"regexp": "a"}}', "did you mean regex"),
        ('{"prompt": "a", "structured_outputs": "json"}', "give an object"),
        ('{"prompt": "a", "max_tokns": 1}', 'did you mean "max_tokens"'),
        ('{"prompt": "a", "top_p": 2}', '"top_p" is 2'),
        ('{"prompt": "a", "n": 2}', "give a temperature"),
        ('{"prompt": "a", "max_tokens": 0}', '"max_tokens" is 0'),
        ('{"prompt": "a", "priority": 5000}', "priority is 5000: give a whole number -1000 to 1000"),
        ('{"prompt": "a", "priority": "high"}', "priority is 'high'"),
        ('{"prompt": "a", "cache_salt": ""}', "\"cache_salt\" is ''"),
        ('{"prompt": "a", "pin": 1}', "pin is 1: give True or False"),
        ('{"prompt": "a", "id": [1]}', "id is"),
        ('{"prompt": "a", "prompt_logprobs": 1}', "prompt_logprobs are not written"),
        ("[" * 100_000, "not JSON"),
        ('{"prompt": "a", "max_tokens": 5000}', '5000 "max_tokens" = 5017 can never fit: --max-model-len is 256'),
        (
            '{"prompt": "a", "min_tokens": 9, "max_tokens": 5}',
            '"min_tokens" is 9: give a whole number 0 to 5, which is "max_',
        ),
        (json.dumps("hen " * 500), "shorten the prompt"),
        ('{"prompt": [1, 299, 300]}', "vocabulary of 300"),
        ('{"prompt": "\\ud800"}', "not valid Unicode"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_before_anything_runs(refused, tiny_model, tmp_path, line, says):
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    data = line if isinstance(line, bytes) else line.encode()
    prompts.write_bytes(b'"the hen"\n\n' + data + b'\n"the hen"\n')
    error = refused(2, "run", tiny_model, "-f", str(prompts), "-o", str(out), "--ignore-eos")
    assert f"{prompts} line 3: " in error and says in error
    assert not out.exists() or out.read_text() == ""


def test_a_message_names_what_was_given_as_a_flag_as_that(refused, tiny_model, tmp_path):
    prompts = write(tmp_path / "in.jsonl", [{"prompt": "a", "min_tokens": 9}])
    error = refused(2, "run", tiny_model, "-f", prompts, "--max-tokens", "5")
    assert '"min_tokens" is 9: give a whole number 0 to 5, which is --max-tokens' in error


def test_what_cannot_be_meant(refused, tiny_model, tmp_path):
    prompts, out = write(tmp_path / "in.jsonl", ["a"]), str(tmp_path / "out")
    assert "give one of them" in refused(2, "run", tiny_model, "hi", "-f", prompts)
    assert "--output is for" in refused(2, "run", tiny_model, "hi", "-o", out)
    assert "the file of prompts" in refused(2, "run", tiny_model, "-f", prompts, "-o", prompts)
    assert "No such file" in refused(1, "run", tiny_model, "-f", str(tmp_path / "none"))
    assert "no regular file" in refused(2, "run", tiny_model, "-f", prompts, "-o", "/dev/null")


def test_what_stands_in_the_answers_is_never_lost(cli, refused, tiny_model, tmp_path):
    prompts, out = write(tmp_path / "in.jsonl", ["the hen", "rain"]), tmp_path / "out"
    arguments = ["run", tiny_model, "-f", prompts, "-o", str(out), "--max-tokens", "4"]
    for text in ("my notes", "my notes\n", "{}\n", '{"index": 0, "id": null, "digest": "00'):
        out.write_text(text)
        assert "line 1 is not the answer to line 1 of the prompts" in refused(2, *arguments)
        assert out.read_text() == text
    out.unlink()
    assert cli(*arguments).returncode == 0
    whole = out.read_text()
    for changed in (
        ["--max-tokens", "5"],
        ["--temperature", "1"],
        ["--seed", "1"],
        ["--raw"],
        ["--system", "be brief"],
    ):
        assert "is not the answer" in refused(2, *arguments, *changed)
    out.write_text(whole + whole.splitlines(keepends=True)[0])
    assert "more answers than there are prompts" in refused(2, *arguments)
    out.write_text(whole)
    with AnswersFile(out):
        assert "another run is writing" in refused(2, *arguments)
    assert out.read_text() == whole


def test_cut_anywhere_it_is_repaired(cli, tiny_model, tmp_path):
    prompts, out = write(tmp_path / "in.jsonl", MIXED), tmp_path / "out.jsonl"
    assert cli("run", tiny_model, "-f", prompts, "-o", str(out), *SAMPLED).returncode == 0
    whole = out.read_bytes()
    setting = Setting(
        tiny_model, None, None, SamplingParams(temperature=0.9, ignore_eos=True, max_tokens=40), fit=False
    )
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    with (tmp_path / "in.jsonl").open("rb") as source:
        for cut in {*range(0, len(whole), 97), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}:
            out.write_bytes(whole[:cut])
            with AnswersFile(out) as answers:
                done = sum(end <= cut for end in ends)
                assert answers.resume(read_requests(source, setting)) == (done, cut not in (0, *ends))
            assert out.read_bytes() == whole[: (0, *ends)[done]]
    out.write_bytes(whole[: ends[2] + 50])
    resumed = cli("run", tiny_model, "-f", prompts, "-o", str(out), *SAMPLED)
    assert resumed.stderr == f"[{out}: 3 of 6 are answered, half a line was cut off]\n"
    assert out.read_bytes() == whole


@pytest.fixture(scope="module")
def longer_model(tmp_path_factory):
    return str(write_folder(replace(MODELS["llama"], positions=2048), tmp_path_factory.mktemp("longer") / "llama"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_in_the_middle_it_ends_as_if_undisturbed(cli, kvist, longer_model, tmp_path, how):
    """Sampled, with many in flight; killed again and again at another place."""
    requests = [
        {"prompt": "the hen " * (i % 9 + 1), "id": f"r{i}", "max_tokens": 20 + i * 37 % 150} for i in range(120)
    ]
    prompts, out = write(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl"
    flags = ["-f", prompts, "--temperature", "1", "--ignore-eos", "--max-num-seqs", "8"]
    undisturbed = cli("run", longer_model, *flags).stdout
    assert undisturbed.count("\n") == 120
    kills = 0
    for lines_more in (1, 7, 30):
        with subprocess.Popen([kvist, "run", longer_model, *flags, "-o", str(out)], stderr=subprocess.PIPE) as process:
            before = out.read_bytes().count(b"\n") if out.exists() else 0
            while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < before + lines_more):
                time.sleep(0.001)
            process.send_signal(how)
            error = process.communicate(timeout=60)[1].decode()
            kills += process.returncode != 0
            if how != signal.SIGKILL and process.returncode:
                assert process.returncode == 128 + how
                assert re.search(r"\[stopped: \d+ of 120 are answered; the same command goes on from there\]\n$", error)
        assert undisturbed.encode().startswith(out.read_bytes())
    assert kills == 3
    assert cli("run", longer_model, *flags, "-o", str(out)).returncode == 0
    assert out.read_text() == undisturbed


def test_a_large_file_is_a_stream(tmp_path):
    """Read without being kept: the memory is that of a line, not of 30,000."""
    import tracemalloc

    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        for i in range(30_000):
            file.write(f'{{"prompt": "line {i}", "id": {i}}}\n')
    setting = Setting("m", None, None, SamplingParams(temperature=1.0))
    with path.open("rb") as file:
        tracemalloc.start()
        seeds = sum(
            1 for i, request in enumerate(read_requests(file, setting)) if request.params.seed == i and i < 2000
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seeds == 2000
    assert peak < 1 << 20


def test_a_bar_on_a_terminal(kvist, longer_model, tmp_path):
    prompts = write(tmp_path / "in.jsonl", [{"prompt": "the hen", "max_tokens": 500}] * 100)
    child = pexpect.spawn(
        kvist, ["run", longer_model, "-f", prompts, "-o", str(tmp_path / "out"), "--ignore-eos", "--max-num-seqs", "4"],
        encoding="utf-8", timeout=60, dimensions=(24, 100),
    )  # fmt: skip
    child.expect(r"answering, \d+ tok/s,.* of 100")
    child.sendintr()
    child.expect(r"\[stopped: \d+ of 100 are answered; the same command goes on from there\]")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_known_fields_are_those_of_the_parameters():
    assert set(batch_file.KNOWN) == {"id", "prompt", "messages", "priority", "cache_salt", "pin"} | {
        *SamplingParams.__dataclass_fields__
    }
    with pytest.raises(UsageError, match="unknown field"):
        list(read_requests(_Lines(b'{"prompt": "a", "zzzz": 1}'), Setting("m", None, None, SamplingParams())))


class _Lines(list):  # type: ignore[type-arg]
    """A file in memory with a name."""

    name = "lines"

    def __init__(self, *items: bytes) -> None:
        super().__init__(items)

    def seek(self, at: int) -> None:
        assert at == 0


FEW_PAGES = ["--kv-cache-memory-bytes", str(16 * 16 * 768), "--max-num-seqs", "1", "--ignore-eos", "--max-tokens", "4"]


def ids(length, seed):
    return [(seed * 37 + i * i * 7 + i) % 300 for i in range(length)]


def test_priority_and_salt_of_a_line_go_before_the_flags(tiny_model, tmp_path):
    path = tmp_path / "in.jsonl"
    write(path, ["a", {"prompt": "a", "priority": -2, "cache_salt": "own"}, {"prompt": "a", "priority": None}])
    setting = Setting(tiny_model, None, None, SamplingParams(), priority=5, cache_salt="all")
    with LLM(tiny_model) as llm, path.open("rb") as file:
        asked = list(batch._Run(llm, file, setting, None, 0, 3)._submitted())
    assert [(one.priority, one.cache_salt) for one in asked] == [(5, "all"), (-2, "own"), (5, "all")]


def test_salts_of_lines_separate_them_and_change_no_answer(cli, tiny_model, tmp_path):
    def run(*salts):
        requests = [{"prompt": ids(50, 1), "cache_salt": salt, "seed": 1} for salt in salts]
        done = cli("run", tiny_model, "-f", write(tmp_path / "in.jsonl", requests), *FEW_PAGES, "--stats")
        assert len({line.partition("digest")[2] for line in done.stdout.splitlines()}) == 1
        return int(re.search(r"\((\d+) cached\)", done.stderr)[1])

    assert [run("a", "a"), run("a", "b"), run("a", None), run(None, None)] == [48, 0, 0, 48]


def test_a_pinned_line_stays_in_the_cache_till_the_end(cli, refused, tiny_model, tmp_path):
    def run(first, *flags, call=cli):
        requests = [first, *(ids(90, seed) for seed in (2, 3, 4)), ids(50, 1)]
        requests = [one if isinstance(one, dict) else {"prompt": one} for one in requests]
        return call("run", tiny_model, "-f", write(tmp_path / "in.jsonl", requests), *FEW_PAGES, "--stats", *flags)

    plain, pinned = run({"prompt": ids(50, 1)}), run({"prompt": ids(50, 1), "pin": True})
    assert plain.stdout == pinned.stdout != ""
    assert "(0 cached)" in plain.stderr and "(48 cached)" in pinned.stderr
    # 5 of 16 pages: more than may be pinned, unless a flag says so
    error = run({"prompt": ids(80, 1), "pin": True}, call=lambda *given: refused(2, *given))
    assert "line 1: pinning 5 pages beside 0 would make 5, and 4 may be pinned" in error
    assert "raise --max-pinned-share" in error
    assert run({"prompt": ids(80, 1), "pin": True}, "--max-pinned-share", "0.5").returncode == 0


@pytest.mark.parametrize(
    ("pin", "says"), [(0, "line 2: 249 tokens take 16 pages, and 3 of"), (1, "line 2: pinning 3 pages")]
)
def test_a_pin_that_would_be_in_the_way_is_refused_before_anything_runs(refused, tiny_model, tmp_path, pin, says):
    requests = [{"prompt": ids(245, 2)}]
    requests.insert(pin, {"prompt": ids(50, 1), "pin": True})
    assert says in refused(2, "run", tiny_model, "-f", write(tmp_path / "in.jsonl", requests), *FEW_PAGES)


def test_the_system_message_is_pinned_for_a_file(cli, tiny_model, tmp_path):
    prompts = write(tmp_path / "in.jsonl", [f"the hen {i} " + "rain " * 20 for i in range(8)])
    flags = ["--system", "the hen on the stone " * 2, *FEW_PAGES, "--stats"]
    plain, pinned = (cli("run", tiny_model, "-f", prompts, *flags, *more) for more in ((), ("--pin",)))
    assert plain.stdout == pinned.stdout != ""
    assert (
        "nothing to pin" in cli("run", tiny_model, "-f", prompts, *flags, "--pin", "--no-enable-prefix-caching").stderr
    )


def test_nothing_to_answer(cli, tiny_model, tmp_path):
    (tmp_path / "empty").write_text("\n \n")
    done = cli("run", tiny_model, "-f", os.fspath(tmp_path / "empty"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
