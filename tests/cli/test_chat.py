"""The chat of `kvist run`, as a person meets it: on a terminal."""

import os
import re
import shutil
import signal
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterator

import pexpect
import pytest

from kvist import LLM, SamplingParams
from kvist.cli.chat_branches import Branches
from kvist.errors import RequestError, UsageError
from tiny import MODELS, write_folder

COST = r"\[prompt (\d+) tokens \((\d+) cached\) \d+ ms \| (\d+) tokens(?: [\d.]+ tok/s)?\]"
Chat = Callable[..., pexpect.spawn]


@pytest.fixture
def chat(kvist: str) -> Iterator[Chat]:
    """Start `kvist run ...` on a terminal of its own, and wait for the first prompt."""
    started: list[pexpect.spawn] = []

    def start(model: str, *flags: str) -> pexpect.spawn:
        env = {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
        child = pexpect.spawn(
            kvist, ["run", model, *flags], encoding="utf-8", timeout=60, dimensions=(40, 300), env=env,
            codec_errors="replace",
        )  # fmt: skip
        started.append(child)
        child.expect("/help lists the commands")
        child.expect(">>> ")
        return child

    yield start
    for child in started:
        child.close(force=True)


def say(child: pexpect.spawn, line: str, wanted: str = COST) -> re.Match[str]:
    """Type a line, wait for what is wanted, and for the next prompt."""
    child.sendline(line)
    child.expect(wanted)
    match = child.match
    child.expect(">>> ")
    return match


def left(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    assert "Traceback" not in child.before
    return child.exitstatus


SAMPLED = ["--stats", "--ignore-eos", "--max-tokens", "20", "--temperature", "1", "--seed", "1"]


def test_turns_and_what_they_find_in_the_cache(chat, tiny_model):
    child = chat(tiny_model, *SAMPLED)
    prompt, cached, made = map(int, say(child, "the hen").groups())
    assert (cached, made) == (0, 20)
    history = prompt + made
    second, cached, _ = map(int, say(child, "and then").groups())
    assert second > history and cached == (history - 1) // 16 * 16
    again, cached, _ = map(int, say(child, "/regen").groups())
    assert again == second and cached >= second - 16
    say(child, "/rollback", r"\[1 turn left\]")
    third, cached, _ = map(int, say(child, "and then").groups())
    assert third == second and cached >= second - 16  # as if the answers that were dropped had never been
    say(child, "/rollback 2", r"\[0 turns left\]")
    assert int(say(child, "the hen")[1]) == prompt
    say(child, "/rollback 2", "cannot drop 2 turns: branch 1 has 1")
    say(child, "/rollback x", "give how many turns to drop")
    say(child, "/clear", r"\[the conversation is empty\]")
    say(child, "/regen", "no answer yet")
    assert int(say(child, "the hen")[1]) == prompt
    child.sendline("/bye")
    assert left(child) == 0


def test_a_pinned_system_message_and_a_salt(chat, tiny_model):
    child = chat(tiny_model, *SAMPLED, "--system", "the hen on the stone " * 3, "--pin", "--cache-salt", "mine")
    say(child, "the hen")
    say(child, "/stats", r"pages of 16 tokens hold something, [1-9] of them pinned, ")
    child.sendeof()
    assert left(child) == 0


def test_a_model_cannot_steer_the_terminal_of_its_chat(chat, tiny_model):
    child = chat(tiny_model, "--stats", "--ignore-eos", "--max-tokens", "200", "--temperature", "5", "--seed", "2")
    child.sendline("a")
    child.expect(r"a\r\n((?s:.*))\r\n" + COST)
    written = child.match[1]
    assert "\u241b" in written  # an escape, had it been let through
    assert not {c for c in written if unicodedata.category(c) == "Cc"} - set("\r\n\t")
    child.expect(">>> ")  # before it the terminal would keep Ctrl-D for itself
    child.sendeof()
    assert left(child) == 0


def test_branches(chat, tiny_model):
    child = chat(tiny_model, *SAMPLED)
    history = sum(map(int, say(child, "the hen").group(1, 3)))
    say(child, "/fork", r"\[branch 2, forked from 1: /fork 1 goes back\]\s+2")
    one = say(child, "and then").groups()
    assert int(one[1]) == (history - 1) // 16 * 16
    say(child, "/fork 1", r"\[branch 1: 1 turn\]\s+1")
    assert say(child, "and then").group(1) == one[0]
    say(child, "/fork other", r"\[branch other, forked from 1: /fork 1 goes back\]\s+other")
    say(child, "/stats", r"\[branch other of 1, 2, other: 2 turns, \d+ of at most 256 tokens\]")
    say(child, "/fork a b", "takes one word")
    child.sendeof()
    assert left(child) == 0


def test_commands_and_lines(chat, tiny_model):
    child = chat(tiny_model, *SAMPLED, "--system", "be brief")
    shown = say(child, "/help", "/bye +leaves")
    assert shown
    say(child, "/foo", "/foo is no command: known are /help, /clear, /regen, /fork, /rollback, /stats, /bye")
    for absent in ("/save x", "/load x"):
        say(child, absent, "is no command")
    say(child, "/bye now", "/bye stands alone")
    say(child, "/stats", r"cache: 0 of \d+ pages of 16 tokens.*found in it: 0 of 0 tokens asked \(0%\)")
    single = int(say(child, "7 7")[1])
    say(child, "/clear", "empty")
    child.sendline('"""7')
    child.expect(r"\.\.\. ")
    assert int(say(child, '7"""')[1]) == single  # a line's end takes a token, as the space did
    say(child, "/clear", "empty")
    child.sendline('"""/foo')
    child.expect(r"\.\.\. ")
    child.sendline("bar")
    child.expect(r"\.\.\. ")
    say(child, '"""')
    child.sendline("")
    child.expect(">>> ")
    child.sendeof()
    assert left(child) == 0


def test_ctrl_c_where_nothing_runs(chat, tiny_model):
    child = chat(tiny_model, *SAMPLED)
    child.send("the hen on")
    child.expect("on")
    child.sendintr()  # drops what was typed
    child.expect(">>> ")
    child.sendline('"""')
    child.expect(r"\.\.\. ")
    child.sendintr()
    child.expect(">>> ")
    say(child, "the hen")
    child.sendintr()
    assert left(child) == 130


def test_ctrl_c_stops_an_answer_and_keeps_it(chat, tmp_path):
    from dataclasses import replace

    model = str(write_folder(replace(MODELS["llama"], positions=8192), tmp_path / "long"))
    child = chat(model, "--stats", "--ignore-eos", "--max-tokens", "7000")
    child.sendline("the hen")
    child.expect("(?s)the hen\r\n.{30}")
    child.sendintr()
    child.expect(r"\[stopped: what there is of the answer is kept\]")
    child.expect(COST)
    prompt, made = int(child.match[1]), int(child.match[3])
    assert 0 < made < 7000
    child.expect(">>> ")
    say(child, "/stats", rf"1 turn, {prompt + made} of at most 8192")
    say(child, "x" * 8000, "can never fit|shorten the prompt")
    say(child, "/stats", rf"1 turn, {prompt + made} of at most 8192")
    child.sendline("/regen")
    child.expect("(?s)greedy.{200}")
    child.kill(signal.SIGTERM)
    assert left(child) == 143


def test_flags_that_a_chat_does_not_take(kvist, tiny_model, tmp_path):
    for flags, says in ((["--raw"], "--raw needs a prompt"), (["--json"], "--json needs a prompt")):
        child = pexpect.spawn(kvist, ["run", tiny_model, *flags], encoding="utf-8", timeout=60)
        child.expect(says)
        assert left(child) == 2
    base = write_folder(MODELS["gpt2"], tmp_path / "gpt2")
    for file in ("tokenizer_config.json",):
        (base / file).write_text(re.sub(r'"chat_template": ".*",', "", (base / file).read_text()))
    child = pexpect.spawn(kvist, ["run", str(base)], encoding="utf-8", timeout=60, dimensions=(24, 300))
    child.expect("no chat template .* --raw")
    assert left(child) == 2


def test_answers_in_a_file_and_the_chat_on_the_terminal(kvist, tiny_model, tmp_path):
    out = tmp_path / "out"
    command = f"'{kvist}' run '{tiny_model}' {' '.join(SAMPLED)} > '{out}'"
    child = pexpect.spawn("bash", ["-c", command], encoding="utf-8", timeout=60, dimensions=(24, 200))
    child.expect(">>> ")
    say(child, "the hen")
    child.sendeof()
    assert left(child) == 0
    assert out.read_bytes().endswith(b"\n") and b">>>" not in out.read_bytes() and b"[" not in out.read_bytes()[:1]


# --- what is behind it, without a terminal
# -------------------------------------------------------------------------------------------


def test_what_fails_or_is_stopped_early_changes_nothing(tmp_path):
    folder = write_folder(MODELS["llama"], tmp_path / "llama")
    with LLM(folder, kv_cache_memory_bytes=8 << 20, max_num_batched_tokens=8, enable_prefix_caching=False) as llm:
        branches = Branches(llm.session(), "be brief")
        branch, params = branches.current, SamplingParams(temperature=1, max_tokens=8, ignore_eos=True, seed=1)
        branch.ask("the hen")
        list(branch.answer(params))
        first = branch.session.messages
        again = list(branch.answer_again(params))
        assert branch.session.messages != first and len(branch.session.messages) == 3 and len(branch.turns) == 1
        assert branch.session.messages[-1]["content"] == "".join(chunk.text for chunk in again)
        before = branch.session.token_ids
        branch.ask("x" * 300)
        with pytest.raises(RequestError):
            list(branch.answer(params))
        assert branch.session.token_ids == before and len(branch.turns) == 1

        forward = llm.engine.runner.forward
        llm.engine.runner.forward = lambda pieces: [branch.session.stop(), forward(pieces)][1]  # before the first token
        branch.ask("and then")
        assert [chunk.finish_reason for chunk in branch.answer(params)] == ["abort"]
        assert [chunk.finish_reason for chunk in branch.answer_again(params)] == ["abort"]
        llm.engine.runner.forward = forward
        assert branch.session.token_ids == before and len(branch.turns) == 1

        with pytest.raises(UsageError, match="cannot drop 0"):
            branch.rollback(0)
        fork = branch.fork("x")
        branch.clear()
        assert branch.session.messages == () and len(fork.session.messages) == 3 and len(fork.turns) == 1
        branch.ask("the hen")
        assert [message["role"] for message in branch.session.messages] == ["system", "user"]


# --- a real terminal
# ------------------------------------------------------------------------------------------------------


class Tmux:
    """A terminal 100 columns wide, its screen as a person sees it."""

    def __init__(self, socket: str) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-L", socket]

    def do(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=60).stdout

    def start(self, command: str) -> None:
        self.do("new-session", "-d", "-x", "100", "-y", "50", command)

    def type(self, *keys: str) -> None:
        self.do("send-keys", *keys)

    @property
    def screen(self) -> str:
        return self.do("capture-pane", "-p", "-S", "-").rstrip()

    def wait(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Wait for something on the screen."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.screen, re.MULTILINE)):
            assert time.monotonic() < end, f"{pattern} is not there:\n{self.screen}"
            time.sleep(0.05)
        return found


@pytest.fixture
def tmux(tmp_path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have tmux: apt-get install tmux")
        pytest.skip("needs tmux: apt-get install tmux")
    made = Tmux(f"kvist-{os.getpid()}")
    yield made
    subprocess.run([*made._tmux, "kill-server"], capture_output=True, timeout=60)


@pytest.mark.model
def test_in_a_real_terminal(tmux, kvist, smollm2_path):
    tmux.start(
        f"{kvist} run smollm2 --stats --kv-cache-memory-bytes 512MiB --max-tokens 2000; echo status $?; sleep 60"
    )
    tmux.wait("^>>>$")
    tmux.type("What is the capital of Swedem?", "Left", "BSpace", "n", "Enter")  # corrected before it is sent
    tmux.wait(r"^>>> What is the capital of Sweden\?$")
    first = tmux.wait(rf"Stockholm(?s:.*)^{COST}")
    tmux.wait(r"^>>>\Z")
    tmux.type("Write a very long story about a fox.", "Enter")
    tmux.wait("(?s)fox.*(fox|the|The).*")
    time.sleep(1)
    tmux.type("C-c")
    stopped = tmux.wait(rf"\[stopped: what there is of the answer is kept\]\n{COST}")
    history = int(stopped[1]) + int(stopped[3])
    assert int(stopped[2]) == (int(first[1]) + int(first[3]) - 2) // 16 * 16  # neither its end nor its last token
    tmux.wait(r"^>>>\Z")
    tmux.type("/fork", "Enter")
    tmux.wait(r"\[branch 2, forked from 1: /fork 1 goes back\]\n2>>>\Z")
    tmux.type("Thanks. Say goodbye in one word.", "Enter")
    second = tmux.wait(rf"one word\.\n(?s:.*){COST}(?s:.*)2>>>\Z")
    assert int(second[2]) == (history - 1) // 16 * 16
    tmux.type("Up", "Up", "Up", "C-a", "C-k", "/stats", "Enter")
    tmux.wait(r"^\[branch 2 of 1, 2: 3 turns, \d+ of at most 8192 tokens\]")
    tmux.type("/regen", "Enter")
    tmux.wait(r"/regen\n\[greedy: the answer will be the same(?s:.*)2>>>\Z")
    tmux.type("some words")
    tmux.wait(r"2>>> some words\Z")  # a terminal drops what is not read yet when Ctrl-C comes
    tmux.type("C-c")
    tmux.wait(r"2>>>\Z")
    tmux.type("C-c")
    tmux.wait("^status 130$")
