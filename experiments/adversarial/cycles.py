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
from experiments.adversarial.config import Adversarial, QueryClassifier
from experiments.adversarial.synthesis import Judges
from experiments.adversarial.world import World
from jaxqr.evaluation.classifier import Judged

CHECKER_ROWS = 10_000
"""Most rows that the checker learns from."""
CHECKER = 1000
"""What the checker's seed is more than the others'."""
STRIDE = 100
"""What the seeds of two cycles differ by."""


def main(run: Path, seed: int, world: World, config: Adversarial) -> None:
    """Runs every stage of a seed, or what is left of them."""
    before_ppo(run, seed, world, config)
    folder, start = run / f"seed-{seed}", _pretrained(run)
    reads = replace(config.classifier, seed=seed)
    reference, checker = folder / "generator/model", folder / "checker"
    writer, wrong = reference, folder / "cycle-0/classifier"
    written = [folder / "cycle-0/synthetic"]
    for cycle in range(1, config.cycles + 1):
        here = folder / f"cycle-{cycle}"
        if config.continued:
            start = wrong / "model"
        judges = Judges.load(wrong, checker, reads)
        trains = replace(config.ppo, seed=seed + STRIDE * cycle)
        ppo.main(
            *(here / "ppo", writer, reference, world),
            *(trains, judges, config.synthesis),
        )
        writer, wrong = here / "ppo/model", here / "classifier"
        asked = replace(config.synthesis, seed=seed + STRIDE * cycle)
        written.append(here / "synthetic")
        synthesis.main(
            *(written[-1], writer, reference, world, asked, judges), cycle=cycle
        )
        taken = written if config.accumulate else written[-1:]
        rows = _with_synthetic(world, reads, taken)
        classifier.main(wrong, start, world, reads, rows)


def before_ppo(run: Path, seed: int, world: World, config: Adversarial) -> None:
    """The stages that need no reinforcement learning: all strategies but the last."""
    folder, start = run / f"seed-{seed}", _pretrained(run)
    reads = replace(config.classifier, seed=seed)
    tuned, checker, none = (folder / n for n in ("generator", "checker", "none"))
    fine_tuning = replace(config.generator, seed=seed)
    generator.main(tuned, fine_tuning.init or start, world, fine_tuning)
    independent = world.rows("independent").shuffled(seed, CHECKER_ROWS)
    # Another seed, so that it does not err where the others do.
    checks = replace(reads, seed=seed + CHECKER)
    classifier.main(checker, start, world, checks, independent)
    classifier.main(none, start, world, reads, _with_synthetic(world, reads, []))
    judges = Judges.load(none, checker, reads)
    asked = replace(config.synthesis, seed=seed)
    reference = tuned / "model"
    for here, writer, known in (
        (folder / "cycle-0", reference, reference),
        (folder / "prompted", config.prompted, None),
    ):
        if writer:
            written = here / "synthetic"
            synthesis.main(written, writer, known, world, asked, judges, cycle=0)
            rows = _with_synthetic(world, reads, [written])
            classifier.main(here / "classifier", start, world, reads, rows)


def _pretrained(run: Path) -> Path:
    return run / "pretrain/model"


def _with_synthetic(
    world: World, config: QueryClassifier, written: Sequence[Path]
) -> Judged:
    """The real rows to train on, and the synthetic ones of some stages."""
    real = world.rows("train").shuffled(config.seed, config.rows)
    parts = [real, *(synthesis.judged(folder, world) for folder in written)]
    return Judged(*map(np.concatenate, zip(*parts, strict=True)))
