"""A small OpenAI-compatible server: tokens are words, delays are given, and it remembers every prompt it has seen.

What is cached of a prompt is the longest beginning that an earlier prompt had, in words. Answers follow from the prompt
alone, unless `changes_on_hit`.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from typing import Any

NAMES = ["twig"]


class FakeServer(ThreadingHTTPServer):
    """Set the attributes to what it shall do; `bodies` are the requests it got, `connections` how many there were."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: list[str] | None = NAMES
        self.key: str | None = None
        self.first = self.gap = 0.0  # seconds
        self.counts = self.tells_cached = True
        self.changes_on_hit = False
        self.trouble: dict[int, str] = {}  # what to do wrong with the n-th completion
        self.drops_kept = False  # close a kept connection instead of answering its second request
        self.keeps = True  # connections, after an answer
        self.sizes = True  # are told; if not, a body ends with its connection
        self.bodies: list[dict[str, Any]] = []
        self.seen: list[list[str]] = []
        self.open = self.most_open = self.connections = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is none."""

    def cached(self, words: list[str]) -> int:
        return max(
            (len([*takewhile(lambda pair: pair[0] == pair[1], zip(words, old, strict=False))]) for old in self.seen),
            default=0,
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeServer

    def setup(self) -> None:
        super().setup()
        self.asked = 0
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self._welcome():
            return
        if self.path == "/v1/models" and self.server.models is not None:
            self._json(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})
        elif self.path == "/version":
            self._json(200, {"version": "1.2.3"})
        else:
            self._json(404, {"error": {"message": "Not Found", "code": 404}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._welcome():
            return
        server = self.server
        if server.models is not None and body["model"] not in server.models:
            self._json(404, {"error": {"message": f"no model {body['model']}"}})
            return
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        try:
            self._complete(body, server.trouble.get(number, ""))
        finally:
            with server.lock:
                server.open -= 1

    def _complete(self, body: dict[str, Any], trouble: str) -> None:
        server = self.server
        if trouble.isdecimal():
            self._json(int(trouble), {"error": {"message": "out of\x1b[31m order"}})
            return
        if trouble == "whole":
            self._json(200, {"choices": [{"message": {"content": "all at once"}}]})
            return
        words = " ".join(message["content"] for message in body["messages"]).split()
        with server.lock:
            cached = server.cached(words)
            server.seen.append(words)
        digest = hashlib.sha256(" ".join(words).encode()).hexdigest()
        tokens = [f" {digest[i % 32 : i % 32 + 4]}" for i in range(body["max_tokens"])]
        if server.changes_on_hit and cached == len(words):
            tokens[2] = " other"
        time.sleep(server.first)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        if trouble == "slow":
            time.sleep(3)
        for i, token in enumerate(tokens):
            if i:
                time.sleep(server.gap)
            if i == 1 and trouble == "gone":
                self.close_connection = True
                return
            if i == 1 and trouble == "short":
                break
            if i == 1 and trouble == "error":
                self._event({"error": {"message": "no pages left"}})
            if i == 1 and trouble == "garbage":
                self._chunk(b"data: {nonsense\n\n")
            if trouble != "silent":
                self._event({"choices": [{"index": 0, "delta": {"content": token}, "finish_reason": None}]})
        if trouble != "short":
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
            if server.counts and body["stream_options"]["include_usage"]:
                details = {"cached_tokens": cached} if server.tells_cached else None
                usage = {
                    "prompt_tokens": len(words),
                    "completion_tokens": len(tokens),
                    "prompt_tokens_details": details,
                }
                self._event({"choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _welcome(self) -> bool:
        self.asked += 1
        if self.server.drops_kept and self.asked > 1:
            self.close_connection = True
            return False
        if self.server.key is not None and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": "who are you?"}})
            return False
        return True

    def _event(self, value: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def end_headers(self) -> None:
        if not self.server.keeps:
            self.send_header("Connection", "close")
        super().end_headers()

    def _json(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if self.server.sizes:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection |= not self.server.sizes


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """One that runs in a thread."""
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
