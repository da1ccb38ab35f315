"""`kvist run -f`: answer a file of prompts, all through one engine, and go on where a run was stopped.

The file is read as a stream: nothing of it is kept in memory but the requests under way, and what is pinned.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kvist.cli.answer import Setting, fitted, pin_system, prompt_ids
from kvist.cli.batch_file import AnswersFile, BatchRequest, read_requests
from kvist.cli.flags import as_fields
from kvist.cli.terminal import Activity, note
from kvist.engine.admission import admit
from kvist.engine.checks import salt_bytes
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError

if TYPE_CHECKING:
    from kvist.llm import LLM, Request
    from kvist.outputs import RequestOutput


def answer_file(
    file: Path, output: Path | None, setting: Setting, start: Callable[[], LLM], *, stats: bool = False
) -> None:
    """Answer all requests of `file` that `output` has no answer to.

    Whatever is wrong with a line is said before anything runs. `start` makes the model, if there is work for it.
    """
    with file.open("rb") as source:
        if not source.seekable():
            raise UsageError(f"{file} can be read only once: give a regular file, or pipe a single prompt instead")
        with Activity("reading prompts"):
            total = sum(1 for _ in read_requests(source, setting))
        if output is not None and output.exists() and output.samefile(file):
            raise UsageError(f"{output} is the file of prompts: give another one for the answers")
        with nullcontext() if output is None else AnswersFile(output) as answers:
            done = 0
            if answers is not None:
                done, torn = answers.resume(read_requests(source, setting))
                if done or torn:
                    note(f"[{output}: {done} of {total} are answered{', half a line was cut off' if torn else ''}]")
            if done == total:
                return
            with start() as llm:
                _Run(llm, source, setting, answers, done, total).go(stats)


class _Run:
    """The requests of a file from `done` on."""

    def __init__(
        self, llm: LLM, source: BinaryIO, setting: Setting, answers: AnswersFile | None, done: int, total: int
    ) -> None:
        self._llm, self._source, self._setting, self._answers = llm, source, setting, answers
        self._done, self._total = done, total
        self._heads: deque[str] = deque()  # of the requests under way
        self._longest = 0  # tokens of the longest request, of those that are checked

    def go(self, stats: bool) -> None:
        """Check all requests, then answer them."""
        began, first, prompt, cached, made = time.monotonic(), self._done, 0, 0, 0
        try:
            pin_system(self._llm, self._setting)
            with Activity("checking prompts") as activity:
                for i, request in enumerate(self._requests()):
                    activity.report("checking prompts", i, self._total - first)
                    with self._named(request):
                        self._check(request)
            with Activity("answering") as activity:
                activity.report("answering", self._done, self._total)
                for output in self._llm.generate_each(self._submitted()):
                    self._write(output, activity)
                    prompt += output.metrics.prompt_tokens
                    cached += output.metrics.cached_tokens
                    made += output.metrics.generated_tokens
                    rate = made / (time.monotonic() - began)
                    activity.report(f"answering, {rate:.0f} tok/s,", self._done, self._total)
        except KeyboardInterrupt:
            goes_on = "" if self._answers is None else "; the same command goes on from there"
            note(f"[stopped: {self._done} of {self._total} are answered{goes_on}]")
            raise
        if stats:
            took = time.monotonic() - began
            note(
                f"[{self._done - first} requests in {took:.1f} s | prompts {prompt} tokens ({cached} cached) | "
                f"{made} tokens {made / took:.1f} tok/s]"
            )

    def _requests(self) -> Iterator[BatchRequest]:
        return islice(read_requests(self._source, self._setting), self._done, None)

    def _submitted(self) -> Iterator[Request]:
        from kvist.llm import Request

        for request in self._requests():
            self._heads.append(request.head)
            yield Request(*self._prepared(request), request.priority, request.cache_salt)

    def _check(self, request: BatchRequest) -> None:
        """Refuse what could not run, and pin what is to be pinned: before anything runs, so that none is refused later.

        A pin must leave room for whatever stands before it, and all that stands behind it must fit beside it.
        """
        ids, params = self._prepared(request)
        engine, salt = self._llm.engine, salt_bytes(request.cache_salt)
        taken = admit(
            ids, params, engine.limits, engine.manager, salt=salt, priority=request.priority,
            longest=self._longest if request.pin else 0,
        )  # fmt: skip
        self._longest = max(self._longest, taken.limit)
        if request.pin:
            engine.manager.pin(f"line {request.line}", ids, salt=salt)

    def _prepared(self, request: BatchRequest) -> tuple[list[int], SamplingParams]:
        """The token ids and parameters of a request."""
        llm, setting, prompt = self._llm, self._setting, request.prompt
        if isinstance(prompt, str):
            ids = prompt_ids(llm, prompt, setting.system, setting.raw)
        else:
            ids = llm.chat_ids(prompt) if request.is_chat else list(prompt)  # type: ignore[arg-type]
        params = fitted(request.params, llm, len(ids)) if request.fit else request.params
        return ids, params

    @contextmanager
    def _named(self, request: BatchRequest) -> Iterator[None]:
        """Say which line a UsageError is about."""
        try:
            yield
        except UsageError as error:
            said = as_fields(str(error), request.fields)
            raise UsageError(f"{self._source.name} line {request.line}: {said}") from error

    def _write(self, output: RequestOutput, activity: Activity) -> None:
        """One line: the head, what was answered, and nothing that another run could answer otherwise."""
        rest = {
            "outputs": [_answer(output, i) for i in range(len(output.outputs))],
            "prompt_tokens": output.metrics.prompt_tokens,
        }
        line = f"{self._heads.popleft()}, {json.dumps(rest, ensure_ascii=False)[1:]}"
        if self._answers is None:
            activity.line(line)
        else:
            self._answers.write(line)
        self._done += 1


def _answer(output: RequestOutput, i: int) -> dict[str, Any]:
    """One of a request's answers; names as in the library."""
    one = output.outputs[i]
    found: dict[str, Any] = {
        "index": one.index,
        "text": one.text,
        "token_ids": one.token_ids,
        "finish_reason": one.finish_reason,
        "stop_reason": one.stop_reason,
    }
    if one.logprobs is not None:
        found["cumulative_logprob"] = one.cumulative_logprob
        found["logprobs"] = [
            [
                {"token_id": token, "logprob": p.logprob, "rank": p.rank, "decoded_token": p.decoded_token}
                for token, p in place.items()
            ]
            for place in one.logprobs
        ]
    return found
