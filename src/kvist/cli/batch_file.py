"""The two files of a batch: prompts in, answers out.

Both have a line of JSON for each request, in the same order. The head of an answer says which request it answers::

    {"index": 3, "id": "b-17", "digest": "9f0c...",  "outputs": [...], ...}
    └── known before the request runs ───────────┘

The digest covers all that the answer depends on: the request, its sampling parameters, the model and its types. So an
answer is recognised by its first bytes, and what stands in the file is never taken for the answer to something else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from kvist.cache.codec.choice import meaning
from kvist.cli.answer import ENOUGH, Setting
from kvist.cli.flags import as_fields
from kvist.engine.checks import flag
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError, unknown_name
from kvist.structured import structured_outputs

PARAMETERS = frozenset(field.name for field in fields(SamplingParams))
KNOWN = ("id", "prompt", "messages", "priority", "cache_salt", "pin", *sorted(PARAMETERS))


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One line of the prompts' file. prompt: text, token ids or messages. fit: its length was not asked for.

    fields: the names in it, as messages about it should have them. priority, cache_salt, pin: as in `LLM.generate`; no
    answer depends on them.
    """

    line: int
    fields: frozenset[str]
    prompt: str | list[int] | list[Mapping[str, object]]
    params: SamplingParams
    fit: bool
    head: str
    priority: int
    cache_salt: str | None
    pin: bool

    @property
    def is_chat(self) -> bool:
        """Whether it has messages."""
        return isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)


def read_requests(file: BinaryIO, setting: Setting) -> Iterator[BatchRequest]:
    """All requests of a file, from its beginning; empty lines are none. UsageError names the line that is wrong."""
    file.seek(0)
    index = 0
    for number, data in enumerate(file, 1):
        if not data.strip():
            continue
        try:
            yield _request(data, number, index, setting)
        except UsageError as error:
            raise UsageError(f"{file.name} line {number}: {error}") from error
        index += 1


def _request(data: bytes, line: int, index: int, setting: Setting) -> BatchRequest:
    value = _object(data, line)
    try:
        name, prompt = value.get("id"), _prompt(value)
        if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
            raise UsageError(f"id is {str(name)[:40]!r}: give a string or a whole number")
        given = {key: item for key, item in value.items() if key in PARAMETERS and item is not None}
        fit = setting.fit and "max_tokens" not in given
        given.setdefault("seed", ((setting.params.seed or 0) << 32) + index)  # its own, whatever runs beside it
        params = _parameters(setting.params, given, fit)
        own = {key: value[key] for key in ("priority", "cache_salt", "pin") if value.get(key) is not None}
        flag("pin", own.setdefault("pin", False))
    except UsageError as error:
        raise UsageError(as_fields(str(error), value)) from error
    head = json.dumps({"index": index, "id": name, "digest": _digest(prompt, params, fit, setting)})
    common = {"priority": setting.priority, "cache_salt": setting.cache_salt}
    return BatchRequest(line, frozenset(value), prompt, params, fit, head[:-1], **{**common, **own})


def _object(data: bytes, line: int) -> dict[str, Any]:
    """The JSON object of a line, with no field that is not known."""
    try:
        value = json.loads(data.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text ({error.reason} at byte {error.start}): convert the file first") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f'not JSON ({error}): give {{"prompt": "..."}} or a string in quotes') from error
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise UsageError(f"a JSON {type(value).__name__}: give an object or a string")
    for name in value:
        if name not in KNOWN:
            raise UsageError(as_fields(str(unknown_name("field", name, KNOWN)), KNOWN))
    return value


def _prompt(value: dict[str, Any]) -> str | list[int] | list[Mapping[str, object]]:
    """The prompt or the messages of a line, one of which must be there and not empty."""
    prompt, messages = value.get("prompt"), value.get("messages")
    if (prompt is None) == (messages is None):
        raise UsageError('give one of "prompt" and "messages"')
    if messages is not None:
        if not isinstance(messages, list) or not messages:
            raise UsageError('messages are a list of {"role": ..., "content": ...}, not empty')
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise UsageError('each of the messages must be an object with "role" and "content"')
        return messages
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise UsageError("prompt is a text or a list of token ids, not empty")


def _parameters(defaults: SamplingParams, given: dict[str, Any], fit: bool) -> SamplingParams:
    """The defaults with what a line gives. Parameters of the wrong type are refused as wrong values are."""
    if fit:
        least = given.get("min_tokens", defaults.min_tokens)
        given["max_tokens"] = max(ENOUGH, least) if type(least) is int else ENOUGH
    bias = given.get("logit_bias")
    if isinstance(bias, dict):  # JSON has no numbers as keys
        given["logit_bias"] = {int(key) if key.isdecimal() and len(key) < 10 else key: bias[key] for key in bias}
    if "structured_outputs" in given:
        given["structured_outputs"] = structured_outputs(given["structured_outputs"])
    try:
        params = replace(defaults, **given)
    except TypeError as error:
        raise UsageError(f"a sampling parameter is of the wrong type ({error})") from error
    if params.prompt_logprobs is not None:
        raise UsageError("prompt_logprobs are not written to files: leave them out, or use the library")
    return params


def _digest(prompt: object, params: SamplingParams, fit: bool, setting: Setting) -> str:
    """All that an answer depends on, in 32 hexadecimal digits."""
    dtype = None if setting.kv_cache_dtype is None else meaning(setting.kv_cache_dtype)
    common: list[object] = [setting.model, dtype, setting.weights, setting.system, setting.raw, setting.policy]
    common += [setting.kv_cache_skip_layers] if setting.kv_cache_skip_layers else []
    everything = json.dumps([prompt, asdict(params), fit, common], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()[:32]


class AnswersFile:
    """The answers so far, and a place for the next. Open it in a ``with`` statement; one process at a time has it.

    Every answer is written at once, as a whole line. What a kill leaves of a line is cut off by `resume`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise UsageError(f"{path} is no regular file: leave --output out to write to standard output")
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"another run is writing to {path}: wait for it, or give another file") from error
        except BaseException:
            os.close(self._fd)
            raise

    def resume(self, requests: Iterator[BatchRequest]) -> tuple[int, bool]:
        """Recognise the answers that are there; how many, and whether a torn line was cut off behind them.

        UsageError, and nothing is changed, where something else stands in the file.
        """
        done = whole = 0
        with self._path.open("rb") as file:
            for line in file:
                request = next(requests, None)
                if request is None:
                    raise UsageError(f"{self._path} has more answers than there are prompts: give another file")
                head = request.head.encode()
                if line.endswith(b"}\n") and line.startswith(head + b", "):
                    done, whole = done + 1, whole + len(line)
                    continue
                if not line.endswith(b"\n") and (line.startswith(head) or head.startswith(line)):
                    os.ftruncate(self._fd, whole)
                    return done, True
                raise UsageError(
                    f"{self._path} line {done + 1} is not the answer to line {request.line} of the prompts (another "
                    "prompt, parameter or model?): give another file, or remove this one"
                )
        return done, False

    def write(self, line: str) -> None:
        """Append an answer."""
        data = f"{line}\n".encode()
        while data:
            data = data[os.write(self._fd, data) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            os.fsync(self._fd)
        finally:
            os.close(self._fd)
