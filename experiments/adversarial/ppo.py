"""PPO of the generator: what the classifier gets wrong, in likely words.

Each round: queries for random products and labels, the classifier's loss against these
labels as the reward of the last token, the KL to the fine-tuned generator as a penalty
of every token, and a few epochs of minibatches.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import runs, training
from experiments.adversarial import synthesis
from experiments.adversarial.config import PPO, Synthesis
from experiments.adversarial.synthesis import Judges
from experiments.adversarial.world import World
from jaxqr.data.pipeline import Batches
from jaxqr.decode import Sampling
from jaxqr.lm import LM
from jaxqr.records import Reward
from jaxqr.rewards import ScoringPool
from jaxqr.rewards.adversarial import hardness, terminal_score
from jaxqr.train import steps
from jaxqr.train.rollouts import finish
from jaxqr.train.rollouts.draw import Candidates, ReferencedSamples
from jaxqr.train.rollouts.minibatches import Minibatches
from jaxqr.train.rollouts.online import OnlineRollouts

SOURCES = 20_000
"""Products and labels that the rollouts are drawn from."""
CURVE_QUERIES = 256
"""Queries that every evaluation draws."""
TIMEOUT = 600.0
"""Seconds after which the classifier is given up for a batch."""


def main(
    folder: Path,
    start: Path,
    reference: Path,
    world: World,
    config: PPO,
    judges: Judges,
    asked: Synthesis,
) -> None:
    """Trains the generator for one cycle.

    Args:
        folder: the stage's.
        start: the generator of the cycle before, with its value head if it has one.
        reference: the fine-tuned generator.
        world: the data.
        config: the settings.
        judges: the classifier that is to be wrong, and the checker of the curve.
        asked: what queries are written for.
    """
    with runs.stage(folder, config) as work:
        if not work:
            return
        policy = training.load_model(
            start, config.compute, config.lora, value_head=True, seed=config.seed
        )
        frozen = training.load_frozen(reference, config.compute)
        rng = np.random.default_rng([config.seed, 1])
        sources = synthesis.sources(world, asked, SOURCES, rng)
        lengths = world.settings.lengths
        draw = ReferencedSamples(
            policy,
            frozen,
            Batches(sources, list, batch_size=config.rollouts, seed=config.seed),
            Sampling(lengths.source, lengths.target),
        )

        def evaluate(now: LM, step: int) -> dict[str, float]:
            del step
            drafts = synthesis.draft(
                now, frozen, world, asked, judges, CURVE_QUERIES, seed=config.seed
            )
            return synthesis.means(drafts)

        with ScoringPool(
            partial(_hardness, judges=judges, world=world, max_loss=config.max_loss),
            workers=max(1, config.lag),
            timeout=TIMEOUT,
        ) as pool:
            training.train(
                folder,
                policy,
                steps.ppo_step,
                Minibatches(
                    OnlineRollouts(draw, pool.submit, _finish(config), lag=config.lag),
                    epochs=config.epochs,
                    batch_size=config.optimizer.batch_size,
                    seed=config.seed,
                ),
                config.optimizer,
                seed=config.seed,
                evaluate=evaluate,
                log_every=1,
                clip=config.clip,
                value_clip=config.value_clip,
                value_coef=config.value_coef,
                entropy_coef=config.entropy_coef,
                max_kl=config.max_kl,
            )


def _hardness(
    sources: list[Mapping[str, str]],
    texts: list[str],
    *,
    judges: Judges,
    world: World,
    max_loss: float,
) -> Reward:
    labels = {text: i for i, text in enumerate(world.label_texts)}
    return hardness(
        sources, texts, classifier=judges.classifier, labels=labels, max_loss=max_loss
    )


def _finish(config: PPO) -> finish.PPO:
    def score(candidates: Candidates, reward: Reward) -> np.ndarray:
        return terminal_score(
            reward.total,
            np.asarray(candidates.logps),
            np.asarray(candidates.pairs.target_mask),
            alpha=config.alpha,
            pgen_sign=config.pgen_sign,
            per_token=config.pgen == "per-token",
        )

    fields: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            *("kl_coef", "kl_target", "gamma", "lam"),
            *("whiten_rewards", "whiten_advantages"),
        )
    }
    return finish.PPO(score=score, **fields)
