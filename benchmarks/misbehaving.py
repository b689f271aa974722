"""A server on the loopback address that does what it is told to, bad things as well."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What was asked."""

    path: str
    headers: Mapping[str, str]
    """With names in lower case."""
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Reply(NamedTuple):
    """What is answered."""

    body: Any
    """JSON, or bytes as they are."""
    status: int = 200
    headers: Mapping[str, str] = {}
    delay: float = 0.0
    """Seconds before the answer."""
    drip: float = 0.0
    """Seconds between two of its bytes."""
    sent: float = 1.0
    """Share of the body that is sent before the connection is closed."""
    reset: bool = False
    """Close the connection instead of answering."""


@contextmanager
def serving(
    answer: Callable[[Request], Reply],
    headers: Mapping[str, str] | None = None,
    port: int = 0,
) -> Iterator[str]:
    """A server's URL.

    Args:
        answer: called for every request, in threads.
        headers: of every answer.
        port: 0: any that is free.
    """
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            names = {name.lower(): value for name, value in self.headers.items()}
            reply = answer(Request(self.path, names, body))
            if reply.reset:
                self.close_connection = True
                return
            if stopped.wait(reply.delay):
                return
            text = reply.body
            if not isinstance(text, bytes):
                text = json.dumps(text).encode()
            self.send_response(reply.status)
            kind = {"content-type": "application/json"}
            for name, value in (
                kind | dict(headers or {}) | dict(reply.headers)
            ).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            if reply.drip:
                for byte in text:
                    self.wfile.write(bytes([byte]))
                    if stopped.wait(reply.drip):
                        return
            else:
                self.wfile.write(text[: int(reply.sent * len(text))])
            self.close_connection = reply.sent < 1

        def _quietly(self) -> None:
            try:
                self._answer()
            except ConnectionError:  # nobody waits any more
                self.close_connection = True

        do_GET = do_POST = _quietly  # noqa: N815 - the library's names

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        stopped.set()
        http.shutdown()
        thread.join()
        http.server_close()
