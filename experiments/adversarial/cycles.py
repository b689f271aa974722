"""The schedule of one seed: classifiers without and with synthetic queries.

G_0      fine-tuned on real queries
none     a classifier of real rows alone
C_0      of real rows and queries of G_0: the fine-tuned strategy
cycle k: G_k, PPO of G_{k-1} against C_{k-1}
         C_k, of real rows and queries of G_k: at last the adversarial strategy
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.adversarial import classifier, generator, ppo, synthesis
from experiments.adversarial.config import Adversarial
from experiments.adversarial.synthesis import Judges
from experiments.adversarial.world import World
from jaxqr.evaluation.classifier import Judged

CHECKER_ROWS = 20_000
"""Most rows that the checker learns from."""
CHECKER = 1000
"""What the checker's seed is more than the others'."""
STRIDE = 100
"""What the seeds of two cycles differ by."""


def main(run: Path, seed: int, world: World, config: Adversarial) -> None:
    """Runs every stage of a seed, or what is left of them."""
    folder, pretrained = run / f"seed-{seed}", run / "pretrain" / "model"
    reads = replace(config.classifier, seed=seed)
    real = world.rows("train").shuffled(seed, reads.rows)
    first, checker, none = (folder / n for n in ("generator", "checker", "none"))
    fine_tuning = replace(config.generator, seed=seed)
    generator.main(first, fine_tuning.init or pretrained, world, fine_tuning)
    independent = world.rows("independent").shuffled(seed, CHECKER_ROWS)
    # Another seed, so that it does not err where the others do.
    checks = replace(reads, seed=seed + CHECKER)
    classifier.main(checker, pretrained, world, checks, independent)
    classifier.main(none, pretrained, world, reads, real)
    if config.prompted:
        here = folder / "prompted"
        written = here / "synthetic"
        synthesis.main(
            *(written, config.prompted, None, world),
            *(replace(config.synthesis, seed=seed), Judges.load(none, checker, reads)),
            cycle=0,
        )
        rows = concatenated([real, synthesis.judged(written, world)])
        classifier.main(here / "classifier", pretrained, world, reads, rows)
    writer, wrong, start = first / "model", none, pretrained
    made: list[Judged] = []
    for cycle in range(config.cycles + 1):
        here = folder / f"cycle-{cycle}"
        judges = Judges.load(wrong, checker, reads)
        if cycle:
            trains = replace(config.ppo, seed=seed + STRIDE * cycle)
            ppo.main(
                *(here / "ppo", writer, first / "model", world),
                *(trains, judges, config.synthesis),
            )
            writer = here / "ppo" / "model"
        asked = replace(config.synthesis, seed=seed + STRIDE * cycle)
        written = here / "synthetic"
        synthesis.main(
            *(written, writer, first / "model", world, asked, judges), cycle=cycle
        )
        made = [*(made if config.accumulate else ()), synthesis.judged(written, world)]
        wrong = here / "classifier"
        classifier.main(wrong, start, world, reads, concatenated([real, *made]))
        if config.continued:
            start = wrong / "model"


def concatenated(parts: Sequence[Judged]) -> Judged:
    """The rows of several sets."""
    return Judged(*map(np.concatenate, zip(*parts, strict=True)))
