'''Messages as a person types them: line editing and history by readline, several lines between """.'''

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from kvist.errors import UsageError

try:
    import readline
except ImportError:  # a Python built without it: lines are read as the terminal gives them
    readline = None  # type: ignore[assignment]

FENCE = '"""'


class Dropped(Exception):  # noqa: N818 - no error, somebody changed their mind
    """Ctrl-C while something was typed already: that is dropped."""


@dataclass(frozen=True, slots=True)
class Typed:
    """A message, or a command if it begins with a slash and is not between fences."""

    text: str
    fenced: bool = False

    @property
    def is_command(self) -> bool:
        """Whether it is a command."""
        return self.text.startswith("/") and not self.fenced


class Editor:
    """Reads messages from the terminal. words: what Tab completes at the beginning of a line."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._words = words
        self._typing = False  # between fences
        self._edits = readline is not None and sys.stdin.isatty() and sys.stdout.isatty()
        if self._edits:
            readline.set_completer(self._complete)
            readline.set_completer_delims(" \t\n")
            # the two libraries that go by this name have two languages
            readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")

    def read(self, prompt: str) -> Typed:
        """The next message.

        Raises EOFError at Ctrl-D; at Ctrl-C KeyboardInterrupt where nothing was typed, else Dropped.
        """
        self._typing = False
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            line = self._line(prompt)
            if not line.lstrip().startswith(FENCE):
                return Typed(line)
            self._typing = True
            lines = [line.lstrip()[len(FENCE) :]]
            while not lines[-1].rstrip().endswith(FENCE):
                lines.append(self._line("." * (len(prompt) - 1) + " "))
            lines[-1] = lines[-1].rstrip()[: -len(FENCE)]
            return Typed("\n".join(lines).strip("\n"), fenced=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def _line(self, prompt: str) -> str:
        try:
            if self._edits:
                return input(self._coloured(prompt))
            print(prompt, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise UsageError(f"that is not UTF-8 text ({error.reason}): type it again") from error
        if not line:
            raise EOFError
        return line.removesuffix("\n")

    def _coloured(self, prompt: str) -> str:
        """Bold, if the terminal has colours; what stands between \\1 and \\2 takes no place on the line."""
        from rich.console import Console

        console = Console()
        return f"\1\x1b[1;32m\2{prompt}\1\x1b[0m\2" if console.color_system and not console.no_color else prompt

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._typing or (self._edits and readline.get_line_buffer()):
            raise Dropped
        raise KeyboardInterrupt

    def _complete(self, begun: str, which: int) -> str | None:
        """Give readline the words that go on from what was begun, one by one."""
        found = [word for word in self._words if begun and word.startswith(begun)]
        return found[which] if which < len(found) else None
