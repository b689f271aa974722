"""An event loop in a thread, for requests that must end in time.

A thread can only wait for an answer, a task can be given up as well: an answer that
drips in byte by byte never lets a socket time out.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Runs coroutines for code that has no event loop. Threads may share it."""

    def __init__(self) -> None:
        """Starts the thread, a daemon."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """What a coroutine returns.

        Args:
            call: is cancelled if it takes longer, or if the caller is interrupted.
            timeout: seconds.

        Raises:
            TimeoutError: it took longer.
        """
        future = asyncio.run_coroutine_threadsafe(
            asyncio.wait_for(call, timeout), self._loop
        )
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
