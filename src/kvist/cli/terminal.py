"""What a person sees: answers, which steer no terminal, and while waiting a spinner or a bar.

These are drawn on standard error. Where that is no terminal, what takes hours writes a line a minute, and all else
nothing.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Self

PATIENCE = 0.5  # seconds before anything is drawn: what is done by then needs no bar
REFRESH = 0.1  # seconds
LINES = 60.0  # seconds from line to line of what takes hours

VISIBLE: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
VISIBLE |= {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Control characters as they are shown: as pictures or, where there are none, as JSON has them."""


class Activity:
    """Shows what is going on, once it takes more than half a second; gone without a trace at the end.

    ::

        with Activity("loading the model") as activity:
            LLM(model, progress=activity.report)

    Reporting only notes; a thread of its own draws. rich is imported when there is something to draw. What must stay
    on the screen meanwhile goes through `line`. hours: whether it may take so long that files want to hear of it, too.
    """

    def __init__(self, what: str, *, hours: bool = False) -> None:
        self._state = (what, 0, 0)
        self._stop = threading.Event()
        self._lock = threading.Lock()  # one writes to the screen at a time
        self._drawn = False
        shown = self._draw if sys.stderr.isatty() else self._write if hours else None
        self._thread = shown and threading.Thread(target=shown, name="kvist-progress", daemon=True)

    def report(self, what: str, done: int, total: int) -> None:
        """Note what is going on, and how much of it is done (total 0: nobody knows)."""
        self._state = (what, done, total)

    def line(self, text: str) -> None:
        """Print a line of the result on standard output, above what is drawn."""
        with self._lock:
            if self._drawn:
                print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            show(text, "\n")

    def end(self) -> None:
        """Stop drawing and clear the line; idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def _write(self) -> None:
        while not self._stop.wait(LINES):
            what, done, total = self._state
            note(f"{what} {share(done, total)}".rstrip())

    def _draw(self) -> None:
        if self._stop.wait(PATIENCE):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[share]}"),
            TimeElapsedColumn(),
        )
        console = Console(stderr=True)
        # left alone, rich would send standard output to this console too
        with Progress(
            *columns, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            task = progress.add_task(self._state[0], total=None, share="")
            while not self._stop.wait(REFRESH):
                what, done, total = self._state
                with self._lock:
                    progress.update(
                        task,
                        description=what,
                        completed=done,
                        total=total or None,
                        share=share(done, total),
                        refresh=True,
                    )
                    self._drawn = True


def share(done: int, total: int) -> str:
    """How much is done, for people: megabytes where there are many, else a count."""
    if total == 0:
        return ""
    return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total >= 1_000_000 else f"{done} of {total}"


def show(text: str, end: str = "") -> None:
    """Write what a model said to standard output, at once.

    On a terminal its control characters, other than newline and tab, are only shown: a model must not steer it.
    """
    print(text.translate(VISIBLE) if sys.stdout.isatty() else text, end=end, flush=True)


def note(message: str) -> None:
    """One line for people, on standard error."""
    print(message, file=sys.stderr, flush=True)
