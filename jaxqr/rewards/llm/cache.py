"""Answers on the disk, so that no question is paid for twice."""

import logging
import sqlite3
import threading
from pathlib import Path

_log = logging.getLogger(__name__)

WAIT = 10.0
"""Seconds that one process waits for another to finish writing."""


class Cache:
    """Key -> text in an SQLite file; threads and processes may share it.

    What cannot be read is not there, and what cannot be written (no room on the disk,
    not a database) is not kept: that is logged once, and costs only a question more.
    """

    def __init__(self, path: Path):
        """Opens the file, or makes it.

        Args:
            path: its folder is made, too.

        Raises:
            ValueError: it is a file of another kind.
        """
        self._path, self._lock, self._warned = path, threading.Lock(), False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
        self._database.isolation_level = None  # every statement is written at once
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT)"
            )
        except sqlite3.OperationalError as error:
            self._warn(error)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise ValueError(
                f"{path} is no cache of answers ({error}): give another file, or move "
                "it away"
            ) from None

    def get(self, key: str) -> str | None:
        """What is kept under a key, if anything."""
        try:
            with self._lock:
                rows = self._database.execute(
                    "SELECT value FROM answers WHERE key = ?", (key,)
                )
                found = rows.fetchone()
        except sqlite3.Error as error:
            self._warn(error)
            return None
        return None if found is None else found[0]

    def put(self, key: str, value: str) -> None:
        """Keeps a text; the first one of a key stays."""
        try:
            with self._lock:
                self._database.execute(
                    "INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, value)
                )
        except sqlite3.Error as error:
            self._warn(error)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

    def _warn(self, error: sqlite3.Error) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("answers are not kept in %s: %s", self._path, error)
