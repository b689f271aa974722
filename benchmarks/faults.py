"""Training while everything around it misbehaves.

    python -m benchmarks.faults                 # 10 minutes, faults in 30 % of calls
    python -m benchmarks.faults --kills 20      # and SIGKILL, with faults that repeat

A small GPT-2 is trained by online DPO against a reward server, which searches on a
server that speaks Elasticsearch's protocol and asks one that speaks OpenAI's. All three
give errors, nonsense, half answers and none, are late, drip, and are restarted in
between; the disk under the judge's cache is full after a while. Every reward that
arrives as valid is compared with that of the same parts without a fault.

Prints one line of JSON: what was injected, what became of it, and what is left over.
"""

import hashlib
import json
import logging
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import jax
import numpy as np
import tyro
import uvicorn

from benchmarks.misbehaving import Reply, Request, serving
from jaxqr import models
from jaxqr.data.pipeline import Batches
from jaxqr.data.tokenize import train_tokenizer
from jaxqr.decode import Sampling
from jaxqr.lm import LM, fresh_model
from jaxqr.records import Hits, Interactions, Product, Reward
from jaxqr.retrieval.elastic import ElasticRetriever
from jaxqr.retrieval.embedded import EmbeddedRetriever
from jaxqr.rewards import INTERACTIONS, ScoringPool, rewrite_reward, service
from jaxqr.rewards.client import RemoteReward
from jaxqr.rewards.llm import LLM, LLMJudge
from jaxqr.rewards.questions import conversation, order
from jaxqr.train import loop, state, steps
from jaxqr.train.rollouts.draw import Samples
from jaxqr.train.rollouts.finish import prefer
from jaxqr.train.rollouts.online import OnlineRollouts

K = 5
"""Products of a list."""
TIMEOUT = 0.3
"""Seconds that each client waits for an answer."""
CLOCK = {"seconds", "tokens_per_second"}
"""Numbers of a step that no two runs share."""
TOKEN = "a token"
COLORS = ("red", "blue", "green", "black", "white", "pink")
THINGS = ("shoe", "boot", "sofa", "lamp", "rug", "mug", "bag", "desk")
PRODUCTS = {
    f"{color}-{thing}-{i}": Product(f"{color}-{thing}-{i}", f"{color} {thing} {i}")
    for color in COLORS
    for thing in THINGS
    for i in range(3)
}
QUERIES = [f"{color} {thing}" for color in COLORS for thing in THINGS]

PORTS = range(20_000, 30_000)
"""Where servers that are restarted listen: a client that goes on asking a port which a
system also gives to clients may end up connected to itself, and hold it."""

ELASTIC = {
    "x-elastic-product": "Elasticsearch",
    "content-type": "application/vnd.elasticsearch+json;compatible-with=8",
}


@dataclass(frozen=True)
class Config:
    """How bad it is to be."""

    seconds: float = 600.0
    share: float = 0.3
    """Share of calls that go wrong."""
    seed: int = 0
    kills: int = 0
    """Kill the training process so often, instead of going on for a time."""
    steps: int = 60
    """Updates of the run that is killed."""


# What the servers answer when they are well


def searched(engine: EmbeddedRetriever, request: Request) -> Reply:
    """The lists of an `_msearch`, by the embedded engine."""
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    items = []
    for search in lines[1::2]:
        hits = engine.search([search["query"]["match"]["text"]["query"]], len(PRODUCTS))
        pairs = zip(hits.scores[0].tolist(), hits.ids[0].tolist(), strict=True)
        found = sorted(((s, i) for s, i in pairs if i), key=lambda x: (-x[0], x[1]))
        if after := search.get("search_after"):
            found = [x for x in found if (-x[0], x[1]) > (-after[0], after[1])]
        sorts = [{"sort": list(hit)} for hit in found[: search["size"]]]
        items.append({"hits": {"hits": sorts}, "_shards": {"failed": 0}, "status": 200})
    return Reply({"responses": items})


def distribution(messages: Sequence[Mapping[str, str]]) -> dict[int, float]:
    """What the model would answer: two numbers that depend on the text alone."""
    digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=2).digest()
    most = messages[-1]["content"].count("\n") - messages[-1]["content"].count("\n\n")
    first, second = (byte % (max(min(most, K), 1) + 1) for byte in digest)
    return {first: 1.0} if first == second else {first: 0.75, second: 0.25}


def answered(request: Request) -> Reply:
    """A chat completion with probabilities."""
    body = request.json()
    tokens = {str(n): math.log(p) for n, p in distribution(body["messages"]).items()}
    first = next(iter(tokens))
    alternatives = [{"token": t, "logprob": p} for t, p in tokens.items()]
    place = {"token": first, "logprob": tokens[first], "top_logprobs": alternatives}
    message = {"role": "assistant", "content": first}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    choice["logprobs"] = {"content": [place]} if body.get("logprobs") else None
    return Reply({"choices": [choice], "usage": {"total_tokens": 50}})


def judged(
    queries: Sequence[str], hits: Hits, gains: Any, profiles: Sequence[Any]
) -> Interactions:
    """The same judge without a server: the expected numbers, by their definition."""
    rates = np.zeros((len(queries), 3), np.float32)
    for row, (query, ids, profile) in enumerate(
        zip(queries, hits.ids.tolist(), profiles, strict=True)
    ):
        listed = [i for i in ids if i]
        shown = [PRODUCTS[listed[i]] for i in order(0, query, listed)]
        for column, question in enumerate(INTERACTIONS):
            numbers = distribution(conversation(question, profile, query, shown))
            known = {n: p for n, p in numbers.items() if n <= len(listed)}
            mean = sum(n * p for n, p in known.items()) / sum(known.values())
            rates[row, column] = mean / len(listed)
    return Interactions(
        rates[:, 0], rates[:, 1], rates[:, 2], np.ones(len(queries), np.bool_)
    )


def relevance(queries: Sequence[str], ids: np.ndarray) -> np.ndarray:
    """The share of the query's words that are in the product's id."""
    gains = np.zeros(ids.shape, np.float32)
    for row, query in enumerate(queries):
        for column, product in enumerate(ids[row].tolist()):
            words = query.split()
            gains[row, column] = np.mean([word in product for word in words])
    return gains


# What goes wrong


def garbled(body: Any, value: Any) -> Any:
    """The same JSON with every number in it replaced."""
    if isinstance(body, Mapping):
        return {key: garbled(item, value) for key, item in body.items()}
    if isinstance(body, list):
        return [garbled(item, value) for item in body]
    if isinstance(body, int | float) and not isinstance(body, bool):
        return value
    return body


def without_numbers(body: Any) -> Any:
    """The same JSON without the fields that hold numbers, and without those lists."""
    if isinstance(body, Mapping):
        kept = {k: without_numbers(v) for k, v in body.items()}
        return {k: v for k, v in kept.items() if v is not None}
    if isinstance(body, list):
        return [x for x in map(without_numbers, body) if x is not None] or None
    return None if isinstance(body, int | float) else body


FAULTS: dict[str, Callable[[Reply], Reply]] = {
    "error 500": lambda good: Reply({"error": "broken"}, 500),
    "error 503": lambda good: Reply({"error": "busy"}, 503),
    "error 429": lambda good: Reply({}, 429, {"retry-after": "0"}),
    "expired token": lambda good: Reply({"error": "who are you?"}, 401),
    "garbage": lambda good: Reply(b"<html>It works!</html>"),
    "empty": lambda good: Reply({}),
    "half": lambda good: good._replace(sent=0.5),
    "reset": lambda good: good._replace(reset=True),
    "time-out": lambda good: good._replace(delay=2 * TIMEOUT),
    "slow drip": lambda good: good._replace(drip=0.02),
    "negative": lambda good: Reply(garbled(good.body, -1e30)),
    "huge": lambda good: Reply(garbled(good.body, 1e30)),
    "not a number": lambda good: Reply(garbled(good.body, math.nan)),
    "infinite": lambda good: Reply(garbled(good.body, math.inf)),
    "missing": lambda good: Reply(without_numbers(good.body) or {}),
}


class Faulty:
    """A server of which a share of the answers goes wrong.

    With `repeating` the same request always meets the same fate: then a run that is
    resumed sees what it would have seen.
    """

    def __init__(
        self,
        answer: Callable[[Request], Reply],
        share: float,
        seed: int,
        *,
        repeating: bool = False,
    ):
        self._answer, self._share, self._repeating = answer, share, repeating
        self._seed, self._random = seed, random.Random(seed)
        self._lock = threading.Lock()
        self.injected: Counter[str] = Counter()

    def __call__(self, request: Request) -> Reply:
        """The answer, or what becomes of it."""
        with self._lock:
            chance = self._random
            if self._repeating:
                digest = hashlib.blake2b(request.body, digest_size=8).hexdigest()
                chance = random.Random(f"{self._seed} {digest}")
            if chance.random() >= self._share:
                fault = None
                self.injected["none"] += 1
            else:
                fault = chance.choice(list(FAULTS))
                self.injected[fault] += 1
        good = self._answer(request)
        return good if fault is None else FAULTS[fault](good)


class Restarted:
    """A server that can be stopped and started on the same port."""

    def __init__(self, answer: Callable[[Request], Reply], headers: Any = None):
        self._stack = ExitStack()
        for port in random.Random(os.getpid()).sample(PORTS, 100):
            self._start = partial(serving, answer, headers, port)
            try:
                self.url = self._stack.enter_context(self._start())
                break
            except OSError:  # taken
                continue

    def stop(self) -> None:
        """Refuses connections from now on."""
        self._stack.close()

    def start(self) -> None:
        """Is there again."""
        self._stack.enter_context(self._start())


@contextmanager
def reward_server(score: Any) -> Iterator[str]:
    """The real service, in a thread."""
    app = service.app({"reward": score}, token=TOKEN, workers=2, queue=64)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class World:
    """All servers, and the reward without them."""

    def __init__(self, folder: Path, config: Config, *, repeating: bool = False):
        self._stack = ExitStack()
        self.engine = EmbeddedRetriever.build(PRODUCTS.values())
        self.truth = partial(
            rewrite_reward,
            retriever=self.engine,
            relevance=relevance,
            judge=judged,
            k=K,
        )
        wrong = partial(Faulty, share=config.share, repeating=repeating)
        answers = {
            "search": wrong(partial(searched, self.engine), seed=config.seed),
            "judge": wrong(answered, seed=config.seed + 1),
        }
        self.faulty = answers
        self.servers = {
            "search": Restarted(answers["search"], ELASTIC),
            "judge": Restarted(answers["judge"]),
        }
        # What repeats is not worth many tries.
        retries = 1 if repeating else 3
        again: dict[str, Any] = {
            "timeout": TIMEOUT,
            "retries": retries,
            "backoff": 0.01,
        }
        self.retriever = self._stack.enter_context(
            ElasticRetriever(self.servers["search"].url, "x", **again)
        )
        self.llm = self._stack.enter_context(
            LLM(
                f"{self.servers['judge'].url}/v1",
                "m",
                cache=folder / "answers",
                concurrency=8,
                **again,
            )
        )
        score = partial(
            rewrite_reward,
            retriever=self.retriever,
            relevance=relevance,
            judge=LLMJudge(self.llm, PRODUCTS),
            k=K,
        )
        inner = self._stack.enter_context(reward_server(score))
        client = self._stack.enter_context(httpx.Client(timeout=60))

        def forwarded(request: Request) -> Reply:
            headers = {"authorization": request.headers.get("authorization", "")}
            path = f"{inner}{request.path}"
            try:
                answer = client.post(path, content=request.body, headers=headers)
            except httpx.HTTPError:  # everything is being stopped
                return Reply({}, reset=True)
            return Reply(answer.json(), answer.status_code)

        answers["reward"] = wrong(forwarded, seed=config.seed + 2)
        self.servers["reward"] = Restarted(answers["reward"])

    def remote(self) -> RemoteReward:
        """The client that training uses."""
        return RemoteReward(
            self.servers["reward"].url,
            TOKEN,
            timeout=20.0,
            retries=3,
            backoff=0.01,
            batch_size=8,
        )

    def fill_disk(self) -> None:
        """From now on the cache's file cannot grow."""
        assert self.llm._cache is not None
        database = self.llm._cache._database
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages}")

    def close(self) -> None:
        """Stops everything."""
        for server in self.servers.values():
            server.stop()
        self._stack.close()


def student() -> LM:
    """A model that has learned nothing yet."""
    tokenizer = train_tokenizer([p.title for p in PRODUCTS.values()], 320)
    model = fresh_model("gpt2-tiny", tokenizer)
    return LM(model, models.init(model, jax.random.key(0)), tokenizer)


def rollouts(lm: LM, submit: Any) -> OnlineRollouts:
    """Candidates, two batches ahead."""
    queries = Batches(QUERIES, list, batch_size=8, seed=0)
    return OnlineRollouts(
        Samples(lm, queries, Sampling(16, 8), n=2), submit, prefer, lag=2
    )


def trainer(lm: LM) -> tuple[Any, Any]:
    """The compiled step and the first state."""
    optimizer = state.adamw(1e-3, 10_000)
    step = steps.compile_step(steps.dpo_step, model=lm.model, optimizer=optimizer)
    return step, state.create(lm.params, optimizer, jax.random.key(0))


# The campaigns


def differing(reward: Reward, truth: Reward) -> int:
    """Rows that are valid and have another number than without faults."""
    same = np.isclose(reward.total, truth.total, rtol=0, atol=1e-6)
    for name, part in reward.parts.items():
        same &= np.isclose(part, truth.parts[name], rtol=0, atol=1e-6)
    return int(np.sum(reward.valid & ~same))


def left_over() -> dict[str, int]:
    """Open files and threads of this process."""
    files = len(os.listdir("/proc/self/fd"))
    return {"files": files, "threads": threading.active_count()}


def campaign(config: Config) -> dict[str, Any]:
    """Trains for a time; returns the counts."""
    lm = student()
    step, now = trainer(lm)
    with TemporaryDirectory() as folder:  # what libraries open once
        world = World(Path(folder), replace(config, share=0.0))
        with world.remote() as remote:
            remote(QUERIES[:2], QUERIES[:2])
        world.close()
    before = left_over()
    rows: Counter[str] = Counter()
    lock = threading.Lock()
    with TemporaryDirectory() as folder:
        world = World(Path(folder), config)
        remote = world.remote()

        def score(queries: list[Any], texts: list[str]) -> Reward:
            reward = remote(queries, texts)
            wrong = differing(reward, world.truth(queries, texts))
            with lock:
                rows["all"] += len(texts)
                rows["valid"] += int(reward.valid.sum())
                rows["wrong"] += wrong
                for name, flag in reward.flags.items():
                    if name.endswith("_failed") and flag.any():
                        rows[name] += int(flag.sum())
            return reward

        begin, updates, full = time.monotonic(), 0, False
        restarts: list[threading.Timer] = []
        restart_every = max(config.seconds / 7, 2.0)
        next_restart = restart_every
        with ScoringPool(
            score, workers=2, timeout=60.0, max_consecutive_failures=50
        ) as pool:
            batches = rollouts(lm, pool.submit)
            while (spent := time.monotonic() - begin) < config.seconds:
                now, _ = step(now, batches.next(now), {}, lm.params)
                updates += 1
                if config.share and spent > next_restart:
                    next_restart = spent + restart_every
                    names = list(world.servers)
                    server = world.servers[names[len(restarts) % len(names)]]
                    server.stop()
                    restarts.append(threading.Timer(1.0, server.start))
                    restarts[-1].start()
                if spent > config.seconds / 2 and not full:
                    world.fill_disk()
                    full = True
            batches.save()  # waits for what is on its way
            del batches  # and the thread that reads ahead
        for restart in restarts:
            restart.join()
        report = {
            "updates": updates,
            "rows": dict(rows),
            "injected": {n: dict(f.injected) for n, f in world.faulty.items()},
            "judge": dict(world.llm.counts),
            "remote": dict(remote.counts),
            "batches_failed": pool.failures,
            "restarts": len(restarts),
        }
        remote.close()
        world.close()
    deadline = time.monotonic() + 10
    while (after := left_over()) != before and time.monotonic() < deadline:
        time.sleep(0.1)  # until threads end
    return report | {"before": before, "after": after}


def killed(config: Config) -> dict[str, Any]:
    """Kills a training process again and again; compares its end with another's."""
    chance = random.Random(config.seed)
    with TemporaryDirectory() as temporary:
        world = World(Path(temporary), config, repeating=True)
        ends, kills = {}, 0
        for name, wanted in (("whole", 0), ("killed", config.kills)):
            folder = Path(temporary) / name
            command = [sys.executable, "-m", "benchmarks.faults", "--worker"]
            command += [str(folder), world.servers["reward"].url, str(config.steps)]
            while True:
                child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                assert child.stdout is not None
                if kills < wanted:
                    child.stdout.readline()  # it trains
                    time.sleep(chance.uniform(0, 3))
                    child.kill()
                output, _ = child.communicate()
                if child.returncode == 0:
                    ends[name] = output.splitlines()[-1]
                    break
                assert child.returncode < 0, output
                kills += 1
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            kept = [json.loads(line) for line in lines]
            numbers = [{k: v for k, v in x.items() if k not in CLOCK} for x in kept]
            ends[f"{name} metrics"] = json.dumps(numbers)
        world.close()
    return {
        "kills": kills,
        "same_parameters": ends["whole"] == ends["killed"],
        "same_metrics": ends["whole metrics"] == ends["killed metrics"],
        "injected": {n: dict(f.injected) for n, f in world.faulty.items()},
    }


def worker(folder: str, url: str, num_steps: str) -> None:
    """The process that is killed: trains, and prints a digest of its parameters."""
    logging.disable(logging.CRITICAL)
    lm = student()
    step, start = trainer(lm)
    remote = RemoteReward(
        url, TOKEN, timeout=20.0, retries=1, backoff=0.01, batch_size=8
    )
    with remote, ScoringPool(remote, workers=2, max_consecutive_failures=50) as pool:
        print("training", flush=True)
        end = loop.run(
            step,
            start,
            rollouts(lm, pool.submit),
            num_steps=int(num_steps),
            frozen=({}, lm.params),
            folder=folder,
            checkpoint_every=5,
        )
    digest = hashlib.blake2b()
    for leaf in jax.tree.leaves(end.params):
        digest.update(np.asarray(leaf).tobytes())
    print(digest.hexdigest())


def main(config: Config) -> None:
    """Runs a campaign and prints its counts."""
    logging.disable(logging.CRITICAL)  # every failure is logged, and they are many
    print(json.dumps(killed(config) if config.kills else campaign(config)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main(tyro.cli(Config, description=__doc__))
