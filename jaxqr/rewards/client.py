"""A reward that another process computes: the client of `jaxqr.rewards.service`."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import httpx
import numpy as np

from jaxqr.records import Reward
from jaxqr.retry import TEMPORARY, pause
from jaxqr.rewards.background import Background

WHY = "service_failed"
"""The flag of rows that no server scored."""


class RemoteReward:
    """Asks one or several reward servers; called as `rewrite_reward` is.

    Rows are sent in batches, to the servers in turn. What fails for now is sent again,
    to the next server, after a pause; a batch that no server scored has rows that are
    not `valid` and the flag `service_failed`. Threads may share it.

    Attributes:
        counts: batches that were `scored`, and requests that failed, by reason:
            `timeout`, `connection`, `status_429`, `garbage`, ...
    """

    def __init__(
        self,
        url: str | Sequence[str],
        token: str | None = None,
        *,
        pool: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        batch_size: int = 64,
        concurrency: int = 4,
    ):
        """Sets up the connections; nothing is sent yet.

        Args:
            url: of a server, such as "http://localhost:8765", or of several.
            token: what the servers were started with.
            pool: the name of one of their rewards; None: their first.
            timeout: seconds from a request to the end of its answer.
            retries: how often a batch is sent again.
            backoff: seconds before the first of these; each further one waits twice as
                long (`jaxqr.retry.pause`).
            batch_size: rows of one request.
            concurrency: requests at a time, of one call.

        Raises:
            ValueError: no URL.
        """
        self._urls = [url] if isinstance(url, str) else list(url)
        if not self._urls:
            raise ValueError("no URL of a reward server: give http://HOST:PORT")
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._batch_size, self._concurrency = batch_size, concurrency
        self._pool = {} if pool is None else {"pool": pool}
        self.counts: Counter[str] = Counter()
        self._turn = itertools.count()
        self._background = Background()
        headers = (
            {} if token is None else {b"authorization": f"Bearer {token}".encode()}
        )
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout)

    def close(self) -> None:
        """Closes the connections."""
        self._background.run(self._client.aclose())
        self._background.close()

    def __enter__(self) -> "RemoteReward":
        """Returns the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self.close()

    def __call__(self, queries: Sequence[str], rewrites: Sequence[str]) -> Reward:
        """Scores `rewrites[q]` as a rewrite of `queries[q]`.

        Raises:
            ValueError: the two differ in length, a server refuses what it is sent, or
                several servers have rewards of different parts or lists.
            PermissionError: a server wants another token.
        """
        if len(queries) != len(rewrites):
            raise ValueError(
                f"{len(queries)} queries and {len(rewrites)} rewrites, expected one "
                "rewrite per query"
            )
        if not rewrites:
            return Reward.unknown(0)
        return self._background.run(self._all(list(queries), list(rewrites)))

    async def _all(self, queries: list[str], rewrites: list[str]) -> Reward:
        places = asyncio.Semaphore(self._concurrency)

        async def batch(start: int) -> Reward:
            part = slice(start, start + self._batch_size)
            async with places:
                return await self._batch(queries[part], rewrites[part])

        starts = range(0, len(rewrites), self._batch_size)
        rewards = await asyncio.gather(*map(batch, starts))
        _check_alike([r for r in rewards if WHY not in r.flags])
        return Reward.concatenate(rewards)

    async def _batch(self, queries: list[str], rewrites: list[str]) -> Reward:
        texts = {"queries": queries, "rewrites": rewrites}
        body = json.dumps(texts | self._pool).encode()
        turn = next(self._turn)
        for attempt in range(1 + self._retries):
            url = self._urls[(turn + attempt) % len(self._urls)]
            reward, headers = await self._attempt(url, body, len(rewrites))
            if isinstance(reward, Reward):
                self.counts["scored"] += 1
                return reward
            self.counts[reward] += 1
            # Another server need not wait for what this one asks for.
            alone = len(self._urls) == 1
            wait = pause(attempt, self._backoff, headers if alone else None)
            if wait is None or attempt == self._retries:
                break
            await asyncio.sleep(wait)
        unknown = Reward.unknown(len(rewrites))
        return unknown._replace(flags={WHY: np.ones(len(rewrites), np.bool_)})

    async def _attempt(
        self, url: str, body: bytes, rows: int
    ) -> tuple[Reward | str, Mapping[str, str] | None]:
        """A reward, or why there is none and the headers of the answer."""
        post = self._client.post(
            f"{url.rstrip('/')}/v1/reward",
            content=body,
            headers={"content-type": "application/json"},
        )
        try:
            response = await asyncio.wait_for(post, self._timeout)
        except (TimeoutError, httpx.TimeoutException):
            return "timeout", None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ValueError(f"{url!r} is no URL of a reward server: {error}") from None
        except httpx.HTTPError:
            return "connection", None
        status = response.status_code
        if status in TEMPORARY:
            return f"status_{status}", response.headers
        if status in (401, 403):
            raise PermissionError(
                f"the reward server {url} refuses ({status}): give the token that it "
                "was started with (JAXQR_TOKEN)"
            )
        if status != 200:
            raise ValueError(
                f"the reward server {url} answers {status}: {response.text[:200]}"
            )
        try:
            return _checked(Reward.from_json(response.json()), rows), None
        except (ValueError, RecursionError):
            return "garbage", None


def _check_alike(rewards: Sequence[Reward]) -> None:
    """Raises ValueError where servers do not compute the same thing."""
    kinds = {
        (tuple(r.parts), None if r.hits is None else r.hits.ids.shape[1])
        for r in rewards
    }
    if len(kinds) > 1:
        raise ValueError(
            "the reward servers differ in their parts or in the length of their lists: "
            f"{sorted(map(str, kinds))}; start all of them with the same settings"
        )


def _checked(reward: Reward, rows: int) -> Reward:
    """Raises ValueError unless it is the reward of so many rows, each in [0, 1]."""
    if len(reward.valid) != rows:
        raise ValueError(f"{len(reward.valid)} rows, expected {rows}")
    for numbers in (reward.total, *reward.parts.values()):
        known = numbers[reward.valid]
        if not ((known >= 0) & (known <= 1 + 1e-5)).all():  # sums end a little above
            raise ValueError("numbers outside [0, 1]")
    return reward
