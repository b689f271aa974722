"""The query classifier, trained on real rows and on synthetic ones."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments import runs, training
from experiments.adversarial.config import QueryClassifier
from experiments.adversarial.world import World
from experiments.config import OptimizerConfig
from jaxqr import metrics, sharding
from jaxqr.data.pipeline import Batches, collate_encoder
from jaxqr.data.tokenize import EncoderRow
from jaxqr.evaluation.classifier import Judged, classification
from jaxqr.rewards.classifier import Classifier
from jaxqr.train import steps

PREDICTIONS = "predictions.npz"
EVALUATED = ("test", "cold")
"""Parts of the split whose probabilities are kept."""

CURVE_ROWS = 2000
"""Most validation rows of the curve."""


def main(
    folder: Path,
    start: Path,
    world: World,
    config: QueryClassifier,
    rows: Judged,
) -> None:
    """Trains a classifier, and keeps its probabilities of the held-out rows.

    Args:
        folder: the stage's.
        start: a Hugging Face folder to start from, unless the settings name another.
        world: the data.
        config: the settings.
        rows: to train on, real and synthetic ones.
    """
    with runs.stage(folder, config) as work:
        if not work:
            return
        first = training.load_classifier(
            None if config.model else config.init or start,
            config.model or "",
            world.tokenizer,
            world.labels.num_classes,
            max_tokens=config.max_tokens,
            compute=config.compute,
            lora=config.lora,
            seed=config.seed,
        )
        curve = world.rows("validation").shuffled(0, CURVE_ROWS)

        def evaluate(now: Classifier, step: int) -> dict[str, float]:
            del step
            probabilities = read(now, world, config, curve)
            micro = metrics.pr_auc_micro(probabilities, curve.label, curve.weight)
            return {"pr_auc": micro} | classification(probabilities, curve.label)

        per_epoch = -(-len(rows.label) // config.batch_size)
        training.train(
            folder,
            first,
            steps.classify_step,
            Batches(
                _encoded(first, world, config, rows),
                partial(collate_encoder, fill=first.tokenizer.eos),
                batch_size=config.batch_size,
                seed=config.seed,
            ),
            OptimizerConfig(
                config.epochs * per_epoch,
                config.batch_size,
                config.learning_rate,
                evaluate_every=per_epoch,
            ),
            seed=config.seed,
            evaluate=evaluate,
            score="pr_auc",
            patience=config.patience,
        )
        trained = load(folder, config)
        known: dict[str, Any] = {
            part: read(trained, world, config, world.rows(part)) for part in EVALUATED
        }
        np.savez(folder / PREDICTIONS, **known)


def load(folder: Path, config: QueryClassifier) -> Classifier:
    """The classifier of a finished stage."""
    return Classifier.load(
        folder / "model",
        max_tokens=config.max_tokens,
        dtype=config.compute.dtype,
        mesh=sharding.make_mesh(config.compute.fsdp),
    )


def predictions(folder: Path) -> dict[str, Float[np.ndarray, "R K"]]:
    """The probabilities that a finished stage has kept, by part of the split."""
    with np.load(folder / PREDICTIONS) as arrays:
        return dict(arrays)


def read(
    classifier: Classifier, world: World, config: QueryClassifier, rows: Judged
) -> Float[np.ndarray, "R K"]:
    """The probability of each label, for every row."""
    products = [world.text(id) for id in rows.product_id]
    return probabilities(classifier, config, rows.query.tolist(), products)


def probabilities(
    classifier: Classifier,
    config: QueryClassifier,
    queries: Sequence[str],
    products: Sequence[str],
) -> Float[np.ndarray, "R K"]:
    """The same, of queries and texts of products."""
    first, second = _ordered(config, queries, products)
    return classifier.probabilities(first, second)


def _ordered(
    config: QueryClassifier, queries: Sequence[str], products: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    if config.order == "query-product":
        return queries, products
    return products, queries


def _encoded(
    start: Classifier, world: World, config: QueryClassifier, rows: Judged
) -> list[EncoderRow]:
    products = [world.text(id) for id in rows.product_id]
    first, second = _ordered(config, rows.query.tolist(), products)
    weight = rows.weight
    if config.class_weights == "balanced":
        classes = world.labels.num_classes
        total = np.bincount(rows.label, weight, minlength=classes)
        weight = weight / (total / total.sum() * classes)[rows.label]
    return start.tokenizer.encoder(
        first,
        second,
        max_tokens=config.max_tokens,
        labels=rows.label.tolist(),
        weights=weight.tolist(),
    )
