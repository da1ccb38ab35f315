import subprocess
import sys

import pytest

from kvist.cli.flags import as_fields, as_flags, engine_options, memory_bytes
from kvist.cli.main import VERBS
from kvist.cli.terminal import share
from kvist.errors import UsageError
from kvist.version import __version__


def in_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_version(cli):
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kvist {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_every_verb(cli, arguments):
    done = cli(*arguments)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(cli, verb):
    done = cli(verb, "--help")
    assert done.returncode == 0
    assert f"Usage: kvist {verb}" in done.stdout


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument):
    done = in_process(
        "import sys\nfrom kvist.cli.main import main\n"
        f"try: main([{argument!r}])\nexcept SystemExit: pass\n"
        "print({'numpy', 'numba', 'llvmlite', 'tokenizers', 'jinja2'} & set(sys.modules))"
    )
    assert done.stdout.endswith("set()\n"), done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["run"], "model"),
        (["run", "m", "hi", "--no-such-flag"], "--no-such-flag"),
        (["run", "m", "hi", "--top-k", "many"], "--top-k"),
        (["run", "m", "a", "b"], "b"),
        (["run", "m", "hi", "--raw", "--system", "x"], "give one of them"),
        (["run", "m", "hi", "--temperature", "-1"], "temperature is -1"),
        (["run", "m", "hi", "--typical-p", "0"], "--typical-p is 0"),
        (["run", "m", "hi", "--repetition-penalty", "0"], "--repetition-penalty is 0"),
        (["run", "m", "hi", "--presence-penalty", "3"], "--presence-penalty is 3"),
        (["run", "m", "hi", "--frequency-penalty", "nan"], "--frequency-penalty is nan"),
        (["run", "m", "hi", "--min-tokens", "9", "--max-tokens", "5"], "--min-tokens is 9: give a whole number 0 to 5"),
        (["run", "m", "hi", "--stop", ""], "stop is ['']: give"),
        (["run", "m", "hi", "--logprobs", "2"], "give --json"),
        (["run", "m", "hi", "--logprobs", "21", "--json"], "logprobs is 21"),
        (["run", "m", "hi", "--top-p", "0"], "--top-p is 0"),
        (["run", "m", "hi", "--pin"], "--pin keeps the system message in the cache: give --system as well"),
        (
            ["run", "m", "hi", "--pin", "--system", "a"],
            "--pin keeps the system message for what follows: it is for a chat",
        ),
        (["run", "m", "hi", "--priority", "1"], "--priority is for requests that run together: give --file as well"),
        (["run", "m", "hi", "--max-tokens", "0"], "--max-tokens is 0"),
        (["run", "m", "hi", "--kv-cache-memory-bytes", "lots"], "512MiB"),
        (["run", "m", "hi", "--page-size", "17"], "16, 32, 64, 128"),
        (["run", "m", "hi", "--kv-cache-dtype", "f61"], "did you mean f16"),
        (["run", "m", "hi", "--weights", "q4"], "known are auto"),
        (["run", "m", "hi", "--threads", "0"], "threads is 0"),
        (["run", "m", ""], "the prompt is empty"),
        (["run", "m"], "the prompt is empty"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(refused, arguments, says):
    assert says in refused(2, *arguments)


BROKEN = "import kvist.cli.ls as verb\ndef ls():\n    raise {error}\nverb.ls = ls\nfrom kvist.cli.main import main\nmain({arguments})"


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (
            "ZeroDivisionError('x')",
            1,
            "kvist: internal error (ZeroDivisionError: x): run again as `kvist --debug ...` and report it\n",
        ),
        ("MemoryError()", 1, "kvist: out of memory: give a smaller --kv-cache-memory-bytes, or a smaller model\n"),
        ("PermissionError(13, 'Permission denied', '/x')", 1, "kvist: Permission denied: /x\n"),
        ("KeyboardInterrupt", 130, ""),
        ("BrokenPipeError", 141, ""),
        ("SystemExit(3)", 3, ""),
        ("__import__('typer').Exit(1)", 1, ""),
        (
            "__import__('kvist.errors').errors.CapacityError('too little; raise max_model_len')",
            1,
            "kvist: too little; raise --max-model-len\n",
        ),
        (
            "__import__('kvist.errors').errors.InternalError('x')",
            1,
            "kvist: internal error (InternalError: x): run again as",
        ),
    ],
)
def test_every_way_to_leave(error, status, says):
    done = in_process(BROKEN.format(error=error, arguments=["ls"]))
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(says) and bool(done.stderr) == bool(says), done.stderr


def test_debug_shows_the_traceback():
    done = in_process(BROKEN.format(error="ZeroDivisionError", arguments=["--debug", "ls"]))
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "in ls\nZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("7b", 7),
        ("64 k", 64000),
        ("4GiB", 4 << 30),
        ("512MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2GB", 2 * 10**9),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text, size):
    assert memory_bytes(text, "kv_cache_memory_bytes") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "4 Gib ytes", "0x10", "1" * 100, "inf"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="512MiB"):
        memory_bytes(text, "kv_cache_memory_bytes")


def test_only_given_flags_become_options():
    assert engine_options() == {}
    given = engine_options(kv_cache_memory_bytes="1KiB", enable_prefix_caching=False, seed=0)
    assert given == {"kv_cache_memory_bytes": 1024, "enable_prefix_caching": False, "seed": 0}


def test_options_are_spelled_as_flags():
    assert as_flags("give kv_cache_memory_bytes=5 or top_k") == "give --kv-cache-memory-bytes=5 or --top-k"
    assert as_flags('"max_tokens" of page_size') == '"max_tokens" of --page-size'
    assert as_fields("max_tokens of min_tokens", {"max_tokens"}) == '"max_tokens" of min_tokens'
    assert as_flags("cannot read /tmp/max_tokens/page_size.gguf") == "cannot read /tmp/max_tokens/page_size.gguf"


def test_shares():
    assert [share(0, 0), share(3, 211), share(46_000_000, 92_000_000)] == ["", "3 of 211", "46 of 92 MB"]
