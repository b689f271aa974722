"""The relevance model M1 on held-out judgements, and what it is compared with."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxqr import metrics
from jaxqr.evaluation.compare import known_mean
from jaxqr.records import Judgements, Labels, Product
from jaxqr.retrieval import Retriever
from jaxqr.rewards.relevance import RelevanceModel

NDCG_AT = 10
RANDOM_ORDERS = 20
"""Random orders that the floor of nDCG is averaged over."""


class Judged(NamedTuple):
    """Judgements of products that have text, one row per (query, product)."""

    query: np.ndarray  # [R] of str
    product_id: np.ndarray  # [R] of str
    label: Int[np.ndarray, " R"]  # index into the labels' names
    weight: Float[np.ndarray, " R"]  # how much each row counts

    @classmethod
    def of(
        cls,
        judgements: Judgements,
        labels: Labels,
        products: Mapping[str, Product],
        queries: Sequence[str],
    ) -> "Judged":
        """The rows of the given queries whose products have text."""
        wanted = set(queries)
        pairs = zip(judgements.query, judgements.product_id, strict=True)
        kept = np.array([q in wanted and p in products for q, p in pairs], np.bool_)
        return cls.at(judgements, labels, np.flatnonzero(kept))

    @classmethod
    def at(
        cls, judgements: Judgements, labels: Labels, rows: Int[np.ndarray, " R"]
    ) -> "Judged":
        """The judgements at some rows."""
        index = {name: i for i, name in enumerate(labels.names)}
        label = np.array([index[x] for x in judgements.label[rows]], np.int64)
        weight = judgements.weight
        return cls(
            judgements.query[rows],
            judgements.product_id[rows],
            label,
            np.ones(len(rows)) if weight is None else weight[rows],
        )

    def shuffled(self, seed: int, most: int | None = None) -> "Judged":
        """At most `most` rows in a random order, so that ties rank at random."""
        chosen = np.random.default_rng(seed).permutation(len(self.label))[:most]
        return Judged(*(column[chosen] for column in self))


def classification(
    probabilities: Float[np.ndarray, "R K"], label: Int[np.ndarray, " R"]
) -> dict[str, float]:
    """Accuracy, macro-F1 and mean NLL in nats of predicted labels."""
    predicted = probabilities.argmax(axis=1)
    chosen = probabilities[np.arange(len(label)), label]
    classes = probabilities.shape[1]
    return {
        "accuracy": float(np.mean(predicted == label)),
        "macro_f1": metrics.macro_f1(predicted, label, classes),
        "nll": float(-np.mean(np.log(np.maximum(chosen, 1e-12)))),
    }


def ranking_ndcg(
    test: Judged, scores: Float[np.ndarray, " R"], labels: Labels
) -> Float[np.ndarray, " Q"]:
    """Judged-only nDCG@10 of each query's products ranked by their scores.

    NaN for queries whose products do not differ in gain, since every order is equally
    good, and where a score is NaN.
    """
    gains = np.array(labels.gains)[test.label]
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(test.query):
        rows.setdefault(query, []).append(row)
    values = np.full(len(rows), np.nan)
    for i, mine in enumerate(map(np.array, rows.values())):
        if gains[mine].max() > gains[mine].min() and not np.isnan(scores[mine]).any():
            order = mine[np.argsort(-scores[mine], kind="stable")]
            ranked, ideal = gains[order][None], gains[mine][None]
            values[i] = metrics.ndcg(ranked, ideal, k=NDCG_AT)[0]
    return values


def table(
    m1: RelevanceModel,
    test: Judged,
    train: Judged,
    labels: Labels,
    retriever: Retriever,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """M1 on the test rows next to BM25, the majority label and a random order.

    Its fields are those of `relevance` in `jaxqr.report`.
    """
    probabilities = m1.probabilities(test.query.tolist(), test.product_id.tolist())
    by_m1 = ranking_ndcg(test, probabilities @ np.array(labels.gains), labels)
    by_bm25 = ranking_ndcg(test, search_scores(retriever, test), labels)
    majority = np.bincount(train.label, minlength=labels.num_classes).argmax()
    constant = np.full(len(test.label), majority)
    rng = np.random.default_rng(seed)
    random = [
        known_mean(ranking_ndcg(test, rng.random(len(test.label)), labels))
        for _ in range(RANDOM_ORDERS)
    ]
    empty = {"accuracy": None, "macro_f1": None, "nll": None}
    return {
        "rows": [
            {"ranker": "M1"}
            | classification(probabilities, test.label)
            | {"ndcg": known_mean(by_m1)},
            {"ranker": "BM25"} | empty | {"ndcg": known_mean(by_bm25)},
            {
                "ranker": "majority label",
                "accuracy": float(np.mean(constant == test.label)),
                "macro_f1": metrics.macro_f1(constant, test.label, labels.num_classes),
                "nll": None,
                "ndcg": None,
            },
            {"ranker": "random order"} | empty | {"ndcg": float(np.mean(random))},
        ],
        "test_rows": len(test.label),
        "test_queries": len(set(test.query)),
        "ndcg_queries": int(np.sum(~np.isnan(by_m1))),
    }


def search_scores(retriever: Retriever, test: Judged) -> Float[np.ndarray, " R"]:
    """The engine's score of every row; 0 for products below the first 1000.

    NaN for the rows of a query whose search failed.
    """
    queries = list(dict.fromkeys(test.query))
    hits = retriever.search(queries, 1000)
    found = {
        query: dict(zip(ids.tolist(), scores.tolist(), strict=True))
        for query, ids, scores in zip(queries, hits.ids, hits.scores, strict=True)
    }
    known = dict(zip(queries, hits.valid.tolist(), strict=True))
    rows = zip(test.query, test.product_id, strict=True)
    return np.array([found[q].get(p, 0.0) if known[q] else np.nan for q, p in rows])
