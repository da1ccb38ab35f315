"""`kvist run MODEL` on a terminal: a chat. Answers go to standard output, everything else to standard error.

Ctrl-C stops an answer and keeps what there is of it; while it is stopping, or where nothing is typed, it leaves.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from kvist.cli.answer import Setting, cost_lines, fitted, pin_system
from kvist.cli.chat_branches import Branches
from kvist.cli.chat_commands import NAMES, Leave, run_command
from kvist.cli.editor import Dropped, Editor
from kvist.cli.flags import as_flags
from kvist.cli.terminal import Activity, show
from kvist.engine.params import RequestMetrics, SamplingParams
from kvist.errors import InternalError, KvistError, UsageError

if TYPE_CHECKING:
    from kvist.llm import LLM
    from kvist.outputs import TextChunk
    from kvist.session import Session


def chat(llm: LLM, setting: Setting, *, stats: bool) -> None:
    """Chat until the person leaves; then the model is closed."""
    with llm:
        if llm.tokenizer.chat_template is None:
            raise UsageError(
                "this model has no chat template (a base model?), so it cannot chat: give a prompt to go on from, "
                "`kvist run MODEL --raw 'Once upon a time'`, or use an instruct model"
            )
        pin_system(llm, setting)
        Chat(llm, setting, stats=stats).run()


class Chat:
    """A chat on a terminal. stats: what each answer cost is told."""

    def __init__(self, llm: LLM, setting: Setting, *, stats: bool) -> None:
        self.llm, self.params = llm, setting.params
        self.branches = Branches(llm.session("1", cache_salt=setting.cache_salt), setting.system)
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.last: RequestMetrics | None = None  # what the last answer cost
        self._fit, self._stats = setting.fit, stats
        self._editor = Editor(NAMES)

    def run(self) -> None:
        """Read, answer, until Ctrl-D or /bye. Raises KeyboardInterrupt where Ctrl-C leaves."""
        self.tell("[/help lists the commands, Ctrl-D leaves]")
        while True:
            try:
                typed = self._editor.read(self._prompt())
                if typed.is_command:
                    run_command(self, typed.text)
                elif typed.text.strip():
                    self.write_answer(self._ask(typed.text))
            except Dropped:
                self.tell("")
            except EOFError:
                self.tell("")
                return
            except Leave:
                return
            except KeyboardInterrupt:
                self.tell("")
                raise
            except InternalError:
                raise
            except KvistError as error:
                self.tell(as_flags(str(error)), style="red")

    def tell(self, line: str, style: str = "dim") -> None:
        """A line for the person, on standard error."""
        self.console.print(Text(line, style=style))

    def write_answer(self, chunks: Generator[TextChunk, None, None]) -> None:
        """Write an answer as it comes, and what is to be said about it."""
        text, last = "", None
        session = self.branches.current.session
        with closing(chunks), _stopping(session) as stopping:
            for last in self._with_spinner(chunks):
                text = last.text or text
                show(last.text)
                if stopping():  # also where Ctrl-C came before the answer began
                    session.stop()
        print("" if text.endswith("\n") else "\n", end="", flush=True)
        if last is None:
            return
        self.last = last.metrics
        if last.finish_reason == "abort":
            kept = "what there is of the answer is kept" if last.metrics.generated_tokens else "nothing came of it yet"
            self.tell(f"[stopped: {kept}]")
        elif last.finish_reason == "length":
            asks = ": --max-tokens asks for more" if self._fit else ""
            self.tell(f"[stopped after {last.metrics.generated_tokens} tokens{asks}]")
        if self._stats:
            self.tell("\n".join(cost_lines(self.llm, last.metrics)))

    def fitted(self) -> SamplingParams:
        """The parameters of the next answer."""
        return fitted(self.params, self.llm, len(self.branches.current.session)) if self._fit else self.params

    def _ask(self, text: str) -> Generator[TextChunk, None, None]:
        branch = self.branches.current
        branch.ask(text)
        yield from branch.answer(self.fitted())

    def _prompt(self) -> str:
        return ">>> " if len(self.branches.all) == 1 else f"{self.branches.current.name}>>> "

    @staticmethod
    def _with_spinner(chunks: Iterator[TextChunk]) -> Iterator[TextChunk]:
        """The chunks, with something to look at until the first one."""
        with Activity("reading the prompt") as activity:
            for chunk in chunks:
                activity.end()
                yield chunk


@contextmanager
def _stopping(session: Session) -> Iterator[Callable[[], bool]]:
    """Meanwhile Ctrl-C stops the session's answer; a second one, before it has stopped, is a KeyboardInterrupt.

    Gives a function that says whether it was pressed.
    """
    pressed = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        session.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
