"""`kvist`: find the verb, parse its flags, run it, and leave with a status that means something.

| status | means |
|---|---|
| 0 | done |
| 1, 2 | an error, a usage error: one line on standard error says what and what to do |
| 130, 143, 141 | Ctrl-C, SIGTERM, nobody reads standard output any more |

typer parses and explains; the verb runs after typer has returned, so that every way to leave is decided here. Only the
verb that is asked for is imported: `kvist --help` needs neither numpy nor numba.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from kvist.errors import InternalError, KvistError
from kvist.version import __version__

ABOUT = "An LLM inference engine built around its KV cache. A cache never changes an answer."
VERBS = {
    "run": "Answer a prompt.",
    "serve": "Serve a model to OpenAI's clients, with a page on which one can watch the cache.",
    "pull": "Get a model.",
    "ls": "List the models that are pulled.",
    "verify": "Prove that the cache changes no answer.",
    "bench": "Measure speed, as tokens per second and as a share of what the machine can do.",
    "eval": "Measure what ways to keep the cache cost in quality, memory and time.",
}
"""Every verb, with its line in `kvist --help`; `kvist.cli.VERB.VERB` is its function."""
PAIRS = {("bench", "serve")}
"""Verbs of two words, whose flags are not those of the first alone; `kvist.cli.A_B.A_B` is the function."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: cleaned up after like Ctrl-C."""


class Request:
    """What the command line asks for: a call to make once it is parsed."""

    def __init__(self) -> None:
        self.call: Callable[[], object] | None = None

    def deferred(self, function: Callable[..., object]) -> Callable[..., None]:
        """A function with the same flags that only notes what to call."""

        @functools.wraps(function)
        def note(*args: Any, **kwargs: Any) -> None:
            self.call = functools.partial(function, *args, **kwargs)

        return note


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in given[: next((i for i, word in enumerate(given) if not word.startswith("-")), len(given))]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = _run(given)
        sys.stdout.flush()
    except BaseException as error:
        if debug and not isinstance(error, SystemExit | typer.Exit):
            traceback.print_exception(error)
        status = _leave(error)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    """Parse, then do what was asked for."""
    request = Request()
    at = next((i for i, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    status = application(arguments[at : at + 2], request)(args=arguments, prog_name="kvist", standalone_mode=False)
    if request.call is not None:
        request.call()
    return status if isinstance(status, int) else 0


def application(words: Sequence[str], request: Request) -> typer.Typer:
    """The command line with the verb that `words` begin with imported and every other one as a name with a line."""
    app = typer.Typer(help=ABOUT, pretty_exceptions_enable=False, add_completion=False)
    app.callback()(_options)
    for name, line in VERBS.items():
        if name not in words[:1]:
            app.command(name, help=line)(_nothing)
        elif tuple(words) in PAIRS:
            group = typer.Typer(help=line)
            group.command(words[1])(request.deferred(_function("_".join(words))))
            app.add_typer(group, name=name)
        else:
            app.command(name)(request.deferred(_function(name)))
    return app


def _function(name: str) -> Callable[..., object]:
    found: Callable[..., object] = getattr(import_module(f"kvist.cli.{name}"), name)
    return found


def _nothing() -> None:
    """Stand in for a verb that is not asked for."""


def _print_version(asked: bool) -> None:
    if asked:
        print(f"kvist {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    pass


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _leave(error: BaseException) -> int:
    """The status to leave with for an error, after a line that explains it."""
    interrupt = next((e for e in (error, error.__cause__) if isinstance(e, KeyboardInterrupt)), None)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        _forget_stdout()
        return 128 + signal.SIGPIPE
    if isinstance(error, KvistError) and not isinstance(error, InternalError):
        _say(str(error))
        return _status_of(interrupt) if interrupt else error.exit_status
    if interrupt is not None or isinstance(error, typer.Abort):
        return _status_of(interrupt)
    if hasattr(error, "format_message"):  # the parser's errors: their base class has no public name
        _say(f"{error.format_message().rstrip('.')} (see `kvist --help`)")
        return 2
    if isinstance(error, MemoryError):
        _say("out of memory: give a smaller --kv-cache-memory-bytes, or a smaller model")
    elif isinstance(error, OSError) and error.strerror:
        _forget_stdout()
        _say(f"{error.strerror}{'' if error.filename is None else f': {error.filename}'}")
    else:
        _say(f"internal error ({type(error).__name__}: {error}): run again as `kvist --debug ...` and report it")
    return 1


def _status_of(interrupt: BaseException | None) -> int:
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def _say(message: str) -> None:
    """One line on standard error, options spelled as flags."""
    from kvist.cli.flags import as_flags

    print(f"kvist: {' '.join(as_flags(message).split())}", file=sys.stderr)


def _forget_stdout() -> None:
    """Let the interpreter's last flush go nowhere: standard output cannot take it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
