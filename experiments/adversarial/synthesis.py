"""Synthetic queries: written, read by the judges, filtered, kept with provenance."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from experiments import runs, training
from experiments.adversarial import classifier, generator
from experiments.adversarial.config import QueryClassifier, Synthesis
from experiments.adversarial.world import World
from jaxqr.decode import Sampling
from jaxqr.evaluation.classifier import Judged
from jaxqr.lm import LM

FILE = "queries.parquet"

Read = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "R K"]]
"""Probabilities of the labels, of queries and texts of products."""


class Judges(NamedTuple):
    """Who reads a synthetic query."""

    classifier: Read
    """The one that is to be wrong about it."""
    checker: Read
    """An independent one, which says whether the label is true."""

    @classmethod
    def load(cls, wrong: Path, checker: Path, config: QueryClassifier) -> "Judges":
        """Two finished stages of classifiers."""
        return cls(
            *(
                partial(
                    classifier.probabilities, classifier.load(folder, config), config
                )
                for folder in (wrong, checker)
            )
        )


class Drafts(NamedTuple):
    """Queries as they were written, one per row."""

    query: np.ndarray  # [R] of str
    product_id: np.ndarray  # [R] of str
    label: Int[np.ndarray, " R"]  # index, what the query was asked to be
    finished: Bool[np.ndarray, " R"]  # whether the generator ended it
    loss: Float[np.ndarray, " R"]  # the classifier's against that label, in nats
    logp: Float[np.ndarray, " R"]  # under the generator, in nats, of the whole text
    tokens: Int[np.ndarray, " R"]
    kl: Float[np.ndarray, " R"]  # to the fine-tuned generator, in nats, of the text
    checked: Int[np.ndarray, " R"]  # index, the label that the checker gives it
    confidence: Float[np.ndarray, " R"]  # the checker's probability of `label`

    def take(self, rows: Int[np.ndarray, " _"]) -> "Drafts":
        """Some of the rows."""
        return Drafts(*(column[rows] for column in self))


def asked_for(
    world: World, config: Synthesis, count: int, rng: np.random.Generator
) -> tuple[list[str], Int[np.ndarray, " R"]]:
    """Random products and labels: ids, and indices of labels."""
    ids = list(
        world.cold_start.products if config.products == "cold" else world.products
    )
    train = world.rows("train")
    classes = world.labels.num_classes
    prior = np.bincount(train.label, train.weight, minlength=classes)
    if config.labels == "uniform":
        prior = np.ones(classes)
    labels = rng.choice(classes, count, p=prior / prior.sum())
    return [ids[i] for i in rng.integers(len(ids), size=count)], labels


def sources(
    world: World, config: Synthesis, count: int, rng: np.random.Generator
) -> list[dict[str, str]]:
    """Random products and labels, as a generator reads them."""
    ids, labels = asked_for(world, config, count, rng)
    return world.sources(ids, labels.tolist())


def draft(
    lm: LM,
    reference: LM | None,
    world: World,
    config: Synthesis,
    judges: Judges,
    count: int,
    *,
    seed: int,
) -> Drafts:
    """Has a generator write queries for random products and labels.

    Args:
        lm: the generator.
        reference: the fine-tuned one; None: the KL to it is not known (NaN).
        world: the data.
        config: what queries are written for.
        judges: who reads them.
        count: queries.
        seed: of products, labels and words.
    """
    ids, labels = asked_for(world, config, count, np.random.default_rng([seed, 2]))
    asked = world.sources(ids, labels.tolist())
    lengths = world.settings.lengths
    sampling = Sampling(lengths.source, lengths.target)
    written = [
        rewrites[0]
        for rewrites in lm.rewrite(asked, sampling=sampling, key=jax.random.key(seed))
    ]
    queries = [rewrite.text for rewrite in written]
    stats = lm.token_stats(
        list(zip(asked, queries, strict=True)),
        teacher=reference,
        max_source=lengths.source,
        max_target=lengths.target,
    )
    products = [source["product"] for source in asked]
    rows, unknown = np.arange(count), np.full(count, np.nan)
    right = judges.classifier(queries, products)[rows, labels]
    checked = judges.checker(queries, products)
    return Drafts(
        np.array(queries, object),
        np.array(ids, object),
        labels,
        np.array([rewrite.finished for rewrite in written], np.bool_),
        -np.log(np.maximum(right, 1e-12)).astype(np.float64),
        np.array([rewrite.logp for rewrite in written]),
        np.asarray(stats.tokens, np.int64),
        np.asarray(stats.reverse_kl if reference else unknown, np.float64),
        checked.argmax(axis=1),
        checked[rows, labels].astype(np.float64),
    )


def means(drafts: Drafts) -> dict[str, float]:
    """Numbers of a set of queries: means, in nats where they are probabilities."""
    return {
        "classifier_loss": float(drafts.loss.mean()),
        "fidelity": float(np.mean(drafts.checked == drafts.label)),
        "kl": float(drafts.kl.mean()),
        "logp_per_token": float(np.mean(drafts.logp / np.maximum(drafts.tokens, 1))),
        "distinct": len(set(drafts.query)) / len(drafts.query),
        "words": float(np.mean([len(query.split()) for query in drafts.query])),
    }


def kept(drafts: Drafts, world: World, *, confirmed: bool) -> dict[str, np.ndarray]:
    """Why rows are left out, each for the first reason that holds; `kept` is the rest.

    Returns:
        Rows by reason: `empty`, `unfinished`, `real` (a query of the collection),
        `duplicate` (of a query and product), `refuted` (by the checker, where asked).
    """
    seen: set[tuple[str, str]] = set()
    reasons = []
    for row, (query, id) in enumerate(
        zip(drafts.query, drafts.product_id, strict=True)
    ):
        pair = (query.lower(), id)
        if not query.strip():
            reason = "empty"
        elif not drafts.finished[row]:
            reason = "unfinished"
        elif query.lower() in world.queries:
            reason = "real"
        elif pair in seen:
            reason = "duplicate"
        elif confirmed and drafts.checked[row] != drafts.label[row]:
            reason = "refuted"
        else:
            reason = "kept"
        seen.add(pair)
        reasons.append(reason)
    names = ("kept", "empty", "unfinished", "real", "duplicate", "refuted")
    reason = np.array(reasons)
    return {name: np.flatnonzero(reason == name) for name in names}


def main(
    folder: Path,
    writer: Path,
    reference: Path | None,
    world: World,
    config: Synthesis,
    judges: Judges,
    *,
    cycle: int,
) -> None:
    """Writes synthetic queries, those that are kept, with their provenance.

    Args:
        folder: the stage's.
        writer: the folder of the generator.
        reference: of the fine-tuned one; None: the writer was never fine-tuned and is
            asked in words.
        world: the data.
        config: the settings.
        judges: who reads them.
        cycle: of the schedule.

    Raises:
        ValueError: none was left.
    """
    with runs.stage(folder, config) as work:
        if not work:
            return
        lm = training.load_frozen(writer, config.compute)
        if reference is None:
            lm, ref = generator.instructed(lm, writer), None
        else:
            ref = training.load_frozen(reference, config.compute)
        drafts = draft(lm, ref, world, config, judges, config.rows, seed=config.seed)
        rows = kept(drafts, world, confirmed=config.confirmed)
        if not len(rows["kept"]):
            counts = {name: len(r) for name, r in rows.items()}
            raise ValueError(
                f"no synthetic query is left of {config.rows}: {counts}. Train the "
                "generator longer, or ask for more rows"
            )
        good = drafts.take(rows["kept"])
        names = np.array(world.labels.names)
        table = {
            "query": good.query,
            "product_id": good.product_id,
            "product": [world.text(id) for id in good.product_id],
            "label": names[good.label].tolist(),
            "cycle": [cycle] * len(good.query),
            "classifier_loss": good.loss,
            "logp": good.logp,
            "tokens": good.tokens,
            "kl": good.kl,
            "checker_label": names[good.checked].tolist(),
            "checker_probability": good.confidence,
        }
        partial_file = folder / f".{FILE}.partial"
        pq.write_table(pa.table(table), partial_file)
        partial_file.replace(folder / FILE)
        report = means(drafts) | {name: len(r) for name, r in rows.items()}
        runs.write_json(folder / "report.json", report)


def judged(folder: Path, world: World) -> Judged:
    """The synthetic queries of a finished stage, as rows to train on.

    Each counts as much as a real row does on average.
    """
    table = pq.read_table(folder / FILE)
    index = {name: i for i, name in enumerate(world.labels.names)}
    query, product = (
        np.array(table[name].to_pylist(), object) for name in ("query", "product_id")
    )
    label = np.array([index[name] for name in table["label"].to_pylist()], np.int64)
    weight = world.rows("train").weight.mean()
    return Judged(query, product, label, np.full(len(query), weight))
