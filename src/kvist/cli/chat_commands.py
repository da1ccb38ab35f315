"""What can be typed after a slash in a chat: a table, a row a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from kvist.cli.answer import cost_lines
from kvist.errors import UsageError

if TYPE_CHECKING:
    from kvist.cli.chat import Chat


class Leave(Exception):  # noqa: N818 - no error
    """The person leaves."""


@dataclass(frozen=True, slots=True)
class Command:
    """usage: what follows the name. run: with the chat and what was typed behind the name."""

    name: str
    usage: str
    about: str
    run: Callable[[Chat, str], None]


def _help(chat: Chat, argument: str) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for command in COMMANDS:
        table.add_row(f"{command.name} {command.usage}".rstrip(), command.about)
    table.add_row('"""', 'begins a message of several lines, which ends with """; a command in it is just text')
    table.add_row("Ctrl-C", "stops an answer, and keeps what there is of it; where nothing is typed it leaves")
    table.add_row("Ctrl-D", "leaves")
    chat.console.print(table)


def _clear(chat: Chat, argument: str) -> None:
    chat.branches.current.clear()
    chat.tell("[the conversation is empty]")


def _regen(chat: Chat, argument: str) -> None:
    if chat.params.greedy and chat.branches.current.turns:
        chat.tell("[greedy: the answer will be the same; leave with /bye and give --temperature for others]")
    chat.write_answer(chat.branches.current.answer_again(chat.fitted()))


def _fork(chat: Chat, argument: str) -> None:
    if " " in argument or len(argument) > 20:
        raise UsageError("/fork takes one word of up to 20 characters as a name")
    before = chat.branches.current.name
    if chat.branches.fork(argument):
        chat.tell(f"[branch {chat.branches.current.name}, forked from {before}: /fork {before} goes back]")
    else:
        chat.tell(f"[branch {chat.branches.current.name}: {_turns(len(chat.branches.current.turns))}]")


def _rollback(chat: Chat, argument: str) -> None:
    if argument and not (argument.isdecimal() and argument.isascii() and len(argument) < 10):
        raise UsageError(f"/rollback {argument[:20]!r}: give how many turns to drop, a whole number from 1")
    chat.branches.current.rollback(int(argument or 1))
    chat.tell(f"[{_turns(len(chat.branches.current.turns))} left]")


def _stats(chat: Chat, argument: str) -> None:
    manager, branch = chat.llm.engine.manager, chat.branches.current
    stats, counters = manager.stats(), manager.counters
    used, pinned = stats.cached + stats.live, f", {stats.pinned} of them pinned" if stats.pinned else ""
    lines = [] if chat.last is None else cost_lines(chat.llm, chat.last)
    found = counters.prefix_hits / counters.prefix_queries if counters.prefix_queries else 0.0
    lines += [
        f"[branch {branch.name} of {', '.join(chat.branches.all)}: {_turns(len(branch.turns))}, {len(branch.session)} "
        f"of at most {chat.llm.engine.limits.max_model_len} tokens]",
        f"[cache: {used} of {stats.total} pages of {stats.page_size} tokens hold something{pinned}, "
        f"{(stats.cached_bytes + stats.live_bytes) / 1e6:.1f} of {stats.pool_bytes / 1e6:.1f} MB | "
        f"found in it: {counters.prefix_hits} of {counters.prefix_queries} tokens asked ({found:.0%})]",
    ]
    chat.tell("\n".join(lines))


def _bye(chat: Chat, argument: str) -> None:
    raise Leave


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count} turns"


COMMANDS = (
    Command("/help", "", "lists the commands", _help),
    Command("/clear", "", "forgets the conversation of this branch", _clear),
    Command("/regen", "", "answers the last question again, with another seed", _regen),
    Command("/fork", "[NAME]", "makes a branch from here and goes to it; with a name of one, goes back to it", _fork),
    Command("/rollback", "[N]", "drops the last N turns, or the last one", _rollback),
    Command("/stats", "", "tells what the last answer cost, and how the cache stands", _stats),
    Command("/bye", "", "leaves", _bye),
)
NAMES = tuple(command.name for command in COMMANDS)


def run_command(chat: Chat, line: str) -> None:
    """Do what a line asks for. Raises UsageError for what is no command, Leave at the end."""
    name, _, argument = line.strip().partition(" ")
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is None:
        known = ", ".join(NAMES)
        raise UsageError(f"{name[:40]} is no command: known are {known} (a space before it makes it a message)")
    if argument.strip() and not command.usage:
        raise UsageError(f"{name} stands alone")
    command.run(chat, argument.strip())
