"""Online DPO of the distilled student against the search engine and the shoppers.

    python -m experiments.online_dpo quickstart

Each update: 16 training queries, N rewrites each from the current policy, the best
against the worst by reward, one DPO step; or, with `--method grpo` or `rloo`, a policy
gradient on all of them. At intervals the policy rewrites validation
queries: reward parts, a second pool of shoppers, judged-only nDCG, KL to the start,
entropy and length go to `metrics.jsonl`, the rewrites of a few queries to
`rewrites.jsonl`. Ctrl-C saves; the same command goes on.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import runs, training
from experiments.cli import launch
from experiments.config import OnlineDPO
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from experiments.system import System
from jaxqr.data.pipeline import Batches
from jaxqr.decode import Sampling
from jaxqr.evaluation import search
from jaxqr.lm import LM
from jaxqr.train import steps
from jaxqr.train.rollouts.draw import Draw, ReferencedSamples, Samples
from jaxqr.train.rollouts.finish import advantages, prefer
from jaxqr.train.rollouts.online import Finish, OnlineRollouts

SHOWN = 8
"""Validation queries whose rewrites are written down at every evaluation."""


def main(run: Path, config: OnlineDPO) -> None:
    """Trains the policy."""
    data = Prepared(run)
    folder = run / config.name
    command = "python -m experiments.distill PRESET"
    start_folder = runs.require(run / config.start, command) / "model"
    with runs.stage(folder, config) as work:
        if not work:
            return
        system = System(run, data, config.system)
        start = training.load_model(
            start_folder, config.compute, config.lora, seed=config.seed
        )
        sampling = Sampling(
            data.lengths.source,
            data.lengths.target,
            config.temperature,
            top_p=config.top_p,
        )
        queries = Batches(
            data.searchable["train"],
            list,
            batch_size=config.optimizer.batch_size,
            seed=config.seed,
        )
        draw, finish, update, options = _method(config, start, queries, sampling)
        curve = training.sample(
            data.searchable["validation"], config.evaluation_queries
        )
        workers = max(1, config.lag)
        with (
            system.pool(system.reward, workers) as pool,
            system.scorers() as scorers,
        ):

            def evaluate(policy: LM, step: int) -> dict[str, float]:
                values, shown = curve_point(policy, start, curve, scorers, sampling)
                keep_rewrites(folder / "rewrites.jsonl", step, shown)
                return values | system.counts()

            training.train(
                folder,
                start,
                update,
                OnlineRollouts(draw, pool.submit, finish, lag=config.lag),
                config.optimizer,
                seed=config.seed,
                evaluate=evaluate,
                keep_start=True,  # the KL is to it
                log_every=1,
                **options,
            )


def _method(
    config: OnlineDPO, start: LM, queries: Batches, sampling: Sampling
) -> tuple[Draw, Finish, Callable, dict[str, Any]]:
    """How candidates are drawn, what becomes of their scores; the step, its options."""
    if config.method == "dpo":
        draw = Samples(start, queries, sampling, n=config.candidates)
        frozen = (start.params,) if config.reference == "frozen" else ()
        return draw, prefer, steps.dpo_step, {"beta": config.beta, "frozen": frozen}
    draw = ReferencedSamples(start, start, queries, sampling, n=config.candidates)
    finish = partial(advantages, kind=config.method, kl_coef=config.kl_coef)
    return draw, finish, steps.policy_gradient_step, {}


def curve_point(
    policy: LM,
    start: LM,
    queries: list[str],
    scorers: search.Scorers,
    sampling: Sampling,
) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """One point of the curve, and (greedy rewrite, reward) of the first few queries.

    Table 3's numbers of greedy rewrites, with their `length` in words, and the drift of
    the policy from its start along sampled ones.
    """
    greedy = write(policy, queries, sampling)
    columns = search.search_columns(queries, greedy, scorers)
    values = columns.means() | search.drift(policy, start, queries, sampling)
    values["length"] = float(np.mean([len(text.split()) for text in greedy]))
    total = columns.metrics["total"].tolist()
    shown = zip(queries[:SHOWN], zip(greedy, total, strict=True), strict=False)
    return values, dict(shown)


def write(lm: LM, queries: list[str], sampling: Sampling) -> list[str]:
    """The greedy rewrite of every query."""
    greedy = sampling._replace(temperature=0.0, top_p=1.0)
    return [rewrites[0].text for rewrites in lm.rewrite(queries, sampling=greedy)]


def keep_rewrites(path: Path, step: int, rewrites: dict[str, Any]) -> None:
    """Writes a line after those of earlier steps, so that no step has two."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = [line for line in lines if json.loads(line)["step"] < step]
    new = json.dumps({"step": step, "rewrites": rewrites}, ensure_ascii=False)
    runs.write_text(path, "\n".join([*lines, new]) + "\n")


if __name__ == "__main__":
    launch(main, {name: run.online for name, run in PRESETS.items()}, __doc__)
