"""How long the device waits for a slow judge, by how far off the policy it may train.

    python -m benchmarks.overlap

Online DPO of a small GPT-2 (`gpt2-mini`, 16 queries, 2 candidates of up to 24 tokens)
on queries of the synthetic shop, with a reward that takes a given time and a given
`lag` (`train.rollouts.online`): as many batches are judged at a time. Prints a line of
JSON for each: steps/s, and the share of the time in which nothing was drawn or trained.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import tyro

from experiments.cli import keep_freed_memory
from jaxqr import models
from jaxqr.data import shop
from jaxqr.data.pipeline import Batches
from jaxqr.data.prompts import Source
from jaxqr.data.tokenize import train_tokenizer
from jaxqr.decode import Sampling
from jaxqr.lm import LM, fresh_model
from jaxqr.records import Reward
from jaxqr.rewards import ScoringPool
from jaxqr.train import state, steps
from jaxqr.train.rollouts.draw import Samples
from jaxqr.train.rollouts.finish import prefer
from jaxqr.train.rollouts.online import OnlineRollouts, Pending

QUERIES, CANDIDATES = 16, 2
WARM = 3
"""Steps that are not timed: the first ones compile."""
MIN_STEPS = 8


@dataclass(frozen=True)
class Config:
    """What to time."""

    model: str = "gpt2-mini"
    latencies: tuple[float, ...] = (0.1, 1.0, 5.0)
    """Seconds that the judge takes for a batch."""
    lags: tuple[int, ...] = (0, 1, 2, 4, 8)
    seconds: float = 20.0
    """Time for each, but `MIN_STEPS` steps at least."""


class Timed:
    """A scoring pool, and the seconds that its results were waited for."""

    def __init__(self, pool: ScoringPool):
        """Wraps the pool."""
        self._pool, self.waited = pool, 0.0

    def submit(self, sources: list[Source], texts: list[str]) -> Pending:
        """Starts scoring."""
        return TimedPending(self, self._pool.submit(sources, texts))


class TimedPending(NamedTuple):
    """A reward on its way."""

    timed: Timed
    pending: Pending

    def result(self) -> Reward:
        """Waits for it."""
        begin = time.perf_counter()
        found = self.pending.result()
        self.timed.waited += time.perf_counter() - begin
        return found


def main(config: Config) -> None:
    """Times every latency with every lag."""
    keep_freed_memory()
    queries = list(shop.make(num_products=800, num_intents=60).collection.split)
    tokenizer = train_tokenizer(queries, 2048)
    model = fresh_model(config.model, tokenizer)
    lm = LM(model, models.init(model, jax.random.key(0)), tokenizer)
    optimizer = state.adamw(1e-5, 100_000)
    step = steps.compile_step(steps.dpo_step, model=model, optimizer=optimizer)
    for latency in (0.0, *config.latencies):
        for lag in config.lags if latency else (0,):
            with ScoringPool(partial(judge, latency), workers=max(1, lag)) as pool:
                timed = Timed(pool)
                now = state.create(lm.params, optimizer, jax.random.key(0))
                batches = Batches(queries, list, batch_size=QUERIES, seed=0)
                draw = Samples(lm, batches, Sampling(), n=CANDIDATES)
                rollouts = OnlineRollouts(draw, timed.submit, prefer, lag=lag)
                first = WARM + lag
                begin, spent, done = 0.0, 0.0, 0
                while done < first + MIN_STEPS or spent < config.seconds:
                    if done == first:
                        begin, timed.waited = time.perf_counter(), 0.0
                    now, _ = step(now, rollouts.next(now), {}, lm.params)
                    jax.block_until_ready(now)
                    done += 1
                    spent = time.perf_counter() - begin
                line = {
                    "latency": latency,
                    "lag": lag,
                    "steps_per_second": round((done - first) / spent, 3),
                    "idle": round(timed.waited / spent, 3),
                }
                print(json.dumps(line), flush=True)


def judge(latency: float, queries: Sequence[str], texts: Sequence[str]) -> Reward:
    """A reward that takes its time."""
    del queries
    time.sleep(latency)
    total = np.array([len(text) % 7 for text in texts], np.float32) / 7
    return Reward(total, {}, np.ones(len(texts), np.bool_))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
