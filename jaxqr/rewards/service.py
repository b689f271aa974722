"""The reward as a service over HTTP, for any number of training processes.

    GET  /health      200 while the process lives
    GET  /ready       200 where rewards can be asked for, 503 until then
    GET  /metrics     counts and times, in Prometheus' text format (with the token)
    POST /v1/reward   {"queries": [...], "rewrites": [...], "pool": "reward"}
                      -> `records.Reward.to_json` (with the token)

One service may have several rewards, such as that of training and that of shoppers
that only the evaluation asks; `pool` is the name of one of them.

`jaxqr.rewards.client.RemoteReward` asks it. It needs the extra `serve`.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxqr.records import Reward
from jaxqr.rewards.pool import Score

MAX_BODY = 8 << 20
"""Bytes of a request."""
GONE = "the client has gone"
RETRY_AFTER = 1
"""Seconds after which a client that was turned away may come back."""

_log = logging.getLogger(__name__)


def app(
    scores: Mapping[str, Score],
    *,
    token: str | None = None,
    workers: int = 1,
    queue: int = 16,
    max_body: int = MAX_BODY,
    ready: Callable[[], bool] = lambda: True,
) -> Starlette:
    """The service around a reward.

    Args:
        scores: by name, what scores (queries, rewrites). With several workers they run
            in several threads.
        token: what clients have to send as `Authorization: Bearer TOKEN`; None:
            nothing.
        workers: requests that are scored at a time.
        queue: requests that wait; further ones are answered 429.
        max_body: bytes of a request; larger ones are answered 413.
        ready: whether rewards can be asked for already.

    Raises:
        ValueError: no rewards, `workers` is below 1, `queue` below 0, or the token is
            empty.
    """
    if workers < 1 or queue < 0:
        raise ValueError(f"{workers=}, {queue=}: expected at least 1 and at least 0")
    if not scores:
        raise ValueError("no rewards to serve: give some, by name")
    if token is not None and not token:
        raise ValueError("the token is empty: give one that nobody can guess, or None")
    service = _Service(scores, token, workers, queue, max_body, ready)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.threads.shutdown()

    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/ready", service.readiness),
            Route("/metrics", service.metrics),
            Route("/v1/reward", service.reward, methods=["POST"]),
        ],
        lifespan=lifespan,
    )


class _Service:
    def __init__(
        self,
        scores: Mapping[str, Score],
        token: str | None,
        workers: int,
        queue: int,
        max_body: int,
        ready: Callable[[], bool],
    ):
        self._scores, self._ready, self._max_body = scores, ready, max_body
        self._authorization = None if token is None else f"Bearer {token}".encode()
        self._places = workers + queue
        self._taken = 0
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="reward")
        registry = prometheus_client.CollectorRegistry()
        count = prometheus_client.Counter
        self._registry = registry
        self._requests = count(
            "jaxqr_requests", "Requests by status.", ["status"], registry=registry
        )
        self._rows = count("jaxqr_rows", "Rewrites scored.", registry=registry)
        self._failed = count(
            "jaxqr_rows_failed",
            "Rewrites without a reward.",
            ["why"],
            registry=registry,
        )
        self._seconds = prometheus_client.Histogram(
            "jaxqr_seconds", "Seconds that a request was scored.", registry=registry
        )
        self._gauge = prometheus_client.Gauge(
            "jaxqr_in_flight", "Requests scored or waiting.", registry=registry
        )

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readiness(self, _: Request) -> Response:
        if self._ready():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, 503)

    async def metrics(self, request: Request) -> Response:
        self._authorize(request)
        text = prometheus_client.generate_latest(self._registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def reward(self, request: Request) -> Response:
        try:
            response = await self._answer(request)
        except HTTPException as no:
            response = JSONResponse(
                {"error": no.detail}, no.status_code, headers=no.headers
            )
        self._requests.labels(response.status_code).inc()
        return response

    async def _answer(self, request: Request) -> Response:
        self._authorize(request)
        if not self._ready():
            raise HTTPException(503, "not ready yet", {"retry-after": str(RETRY_AFTER)})
        pool, queries, rewrites = self._read(await self._body(request))
        if self._taken >= self._places:
            raise HTTPException(
                429, "too many requests", {"retry-after": str(RETRY_AFTER)}
            )
        reward = await self._scored(request, self._scores[pool], queries, rewrites)
        self._rows.inc(len(rewrites))
        for name, flag in reward.flags.items():
            if name.endswith("_failed"):
                self._failed.labels(name.removesuffix("_failed")).inc(int(flag.sum()))
        try:
            text = json.dumps(reward.to_json(), allow_nan=False)
        except ValueError:
            _log.error("the reward has numbers that are not finite")
            raise HTTPException(
                500, "the reward has numbers that are not finite"
            ) from None
        return Response(text, media_type="application/json")

    async def _scored(
        self, request: Request, score: Score, queries: list[str], rewrites: list[str]
    ) -> Reward:
        """Scores in a thread; gives up a request that nobody waits for any more."""
        loop = asyncio.get_running_loop()
        self._taken += 1
        self._gauge.set(self._taken)
        work = self.threads.submit(self._timed, score, queries, rewrites)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._give_back))
        gone = asyncio.ensure_future(_disconnected(request))
        done = asyncio.wrap_future(work)
        try:
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                work.cancel()  # if it has not begun
                raise HTTPException(499, GONE)
            return done.result()
        except HTTPException:
            raise
        except Exception as error:
            _log.exception("scoring failed")
            raise HTTPException(
                500, f"scoring failed: {type(error).__name__}"
            ) from None
        finally:
            gone.cancel()

    def _timed(self, score: Score, queries: list[str], rewrites: list[str]) -> Reward:
        start = time.perf_counter()
        reward = score(queries, rewrites)
        self._seconds.observe(time.perf_counter() - start)
        return reward

    def _give_back(self) -> None:
        self._taken -= 1
        self._gauge.set(self._taken)

    def _authorize(self, request: Request) -> None:
        if self._authorization is None:
            return
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, self._authorization):
            raise HTTPException(
                401,
                "expected the header Authorization: Bearer TOKEN, with the token that "
                "the server was started with",
                {"www-authenticate": "Bearer"},
            )

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > self._max_body:
                    raise HTTPException(
                        413,
                        f"more than {self._max_body} bytes: ask for fewer rows at once",
                    )
        except ClientDisconnect:
            raise HTTPException(499, GONE) from None
        return bytes(body)

    def _read(self, body: bytes) -> tuple[str, list[str], list[str]]:
        """The pool, queries and rewrites of a request."""
        try:
            given = json.loads(body)
            pool = given.get("pool", next(iter(self._scores)))
            queries, rewrites = given["queries"], given["rewrites"]
            "".join([*queries, *rewrites]).encode()  # texts, of whole characters
            lists = isinstance(queries, list) and isinstance(rewrites, list)
            if lists and len(queries) == len(rewrites) and pool in self._scores:
                return pool, queries, rewrites
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        raise HTTPException(
            422,
            'expected {"queries": [...], "rewrites": [...]}: two lists of texts, '
            f"as many of each; and as pool one of {', '.join(self._scores)}",
        )


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)
