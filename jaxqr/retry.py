"""When to ask again a server that could not answer."""

import email.utils
import math
import random
import time
from collections.abc import Mapping

TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses of HTTP after which the same request may succeed."""
MAX_BACKOFF = 30.0
"""Seconds between two tries, at most."""
MAX_RETRY_AFTER = 120.0
"""Seconds that a server may ask to wait for; beyond, it is not asked again."""


def pause(
    attempt: int, backoff: float, headers: Mapping[str, str] | None = None
) -> float | None:
    """Seconds until the next try; None where the server does not want one so soon.

    Half of `backoff * 2 ** attempt` and up to as much again by chance, so that clients
    which failed together do not come back together. At least what the server asks for
    in `Retry-After`, in seconds or as a date.

    Args:
        attempt: 0 after the first try.
        backoff: seconds.
        headers: of the answer, if there was one, with names in lower case or of a kind
            that does not care.

    >>> pause(0, 0.0, {"retry-after": "2"}), pause(0, 0.0, {"retry-after": "999"})
    (2.0, None)
    """
    asked = _retry_after((headers or {}).get("retry-after"))
    if asked > MAX_RETRY_AFTER:
        return None
    own = min(backoff * 2**attempt, MAX_BACKOFF) * random.uniform(0.5, 1.5)
    return max(own, asked)


def _retry_after(text: str | None) -> float:
    """Seconds from now; 0 where nothing is asked for."""
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return 0.0 if math.isnan(seconds) else max(seconds, 0.0)
