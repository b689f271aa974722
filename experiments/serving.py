"""What a shopper is served: the query alone, with its rewrites, or without training.

The first table of a report. Every way of using rewrites goes through a gate that is
fitted on validation queries, and the way that gains most there is what is served. What
is fitted sees judgements alone, and test queries choose nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from experiments.config import Evaluate
from experiments.known import segments
from experiments.search import HeldOut, Search, Writer, Written
from jaxqr.data import shop
from jaxqr.evaluation import gate
from jaxqr.evaluation.served import (
    MAIN,
    Columns,
    Measured,
    columns,
    examples,
    table,
)
from jaxqr.records import Hits, Product
from jaxqr.report.definitions import ALONE, CEILING, FEEDBACK, QUERY, SERVED
from jaxqr.retrieval.selection import TermSelection
from jaxqr.retrieval.serving import (
    Backfill,
    Expansion,
    Fusion,
    Query,
    Rewrite,
    Serving,
    choose,
)
from jaxqr.retrieval.spelling import SpellingCorrector

NUMBERS = (1, 3, 10)
"""Of rewrites that are tried."""
FUSED = (1.0, 0.3)
EXPANDED = (0.3, 0.1, 0.5, 1.0)
CHOSEN = (2.0, 1.0, 4.0)
"""Weights that are tried: of fused lists, of terms, of words that a model chooses. The
first of each is shown in the table."""
FOLDS = 5
"""Of validation queries: lists to fit a gate on come from models that saw others."""
SHOWN = 10
"""Most queries that are shown as better, and as worse."""


class Found(NamedTuple):
    """The table's numbers, and what was served."""

    measured: Measured
    fitted: list[dict[str, Any]]
    """What was chosen on which validation queries (`served.fitted` in the report)."""
    examples: list[dict[str, Any]]
    """Queries that changed, the most improved first."""
    harm: float
    """Share of validation queries that were allowed to be worse."""

    @classmethod
    def concatenate(cls, parts: Sequence["Found"]) -> "Found":
        """Folds or seeds as one table."""
        changed = sorted(
            (item for part in parts for item in part.examples),
            key=lambda item: -item["change"],
        )
        return cls(
            Measured.concatenate([part.measured for part in parts]),
            [fitted for part in parts for fitted in part.fitted],
            changed
            if len(changed) <= 2 * SHOWN
            else changed[:SHOWN] + changed[-SHOWN:],
            parts[0].harm,
        )

    def table(self) -> dict[str, Any]:
        """As the report has it."""
        without = [name for name in (FEEDBACK, ALONE) if name in self.measured.systems]
        return table(self.measured, [(SERVED, name) for name in without]) | {
            "fitted": self.fitted,
            "examples": self.examples,
            "harm": self.harm,
        }


class _Way(NamedTuple):
    """A way of using rewrites, with its gate."""

    serving: Serving
    gate: gate.Gate
    gain: float
    """In `MAIN`, on average over validation queries."""


def held_out(search: Search, config: Evaluate, write: Writer) -> Found | None:
    """Measures the run's own test queries; None where none is known whole."""
    queries = search.held_out(config.queries, config.gate_queries, config.seed)
    return served(search, config.harm, write, queries) if queries.test else None


def served(search: Search, harm: float, write: Writer, queries: HeldOut) -> Found:
    """Measures every way of serving.

    The reward of lists is left out where a language model would have to judge them.

    Args:
        search: where, and what is known.
        harm: share of queries that may be worse.
        write: the rewrites.
        queries: fitted on, and measured.
    """
    validation, test = write(queries.validation), write(queries.test)
    tried, shown = _ways(search, write.most)
    lists = {name: search.lists(way, validation) for name, way in tried.items()}
    source = "rewrites and first products" if write.most else "first products"
    for weight, (way, unseen) in _selections(search, validation).items():
        name = f"words chosen from {source}, weight {weight:g}"
        tried[name], lists[name] = way, unseen
        shown += [name] * (weight == CHOSEN[0])
    ways = {
        name: _gated(search, way, validation, lists[name], harm)
        for name, way in tried.items()
    }
    best = max(ways, key=lambda name: ways[name].gain)
    original, chosen = (search.lists(w, test) for w in (Query(), ways[best].serving))
    opened = ways[best].gate(search.features(test, chosen))

    systems: dict[str, tuple[Hits, Any]] = {QUERY: (original, 1.0)}
    corrected = SpellingCorrector(map(search.text, search.products.values()))
    spelled = test.instead([[text] for text in corrected(test.queries)])
    systems["spelling corrected"] = search.lists(Rewrite(), spelled), 1.0
    systems[FEEDBACK] = search.lists(search.rm3(), test), 2.0
    if write.most:
        systems["the rewrite alone"] = search.lists(Rewrite(), test), 1.0
        with suppress(ValueError):  # too little to learn from
            alone = _fit(_unfitted(search), search, validation.without())
            alone = alone.weighing(CHOSEN[0])
            systems[ALONE] = search.lists(alone, test.without()), 2.0
    for name in shown:
        systems[name] = search.lists(tried[name], test), float(tried[name].searches)
    cost = 1.0 + opened * (ways[best].serving.searches - 1)
    systems[SERVED] = choose(original, chosen, opened), cost
    systems |= _ceilings(search, test)
    measured = Measured(
        test.queries,
        {
            name: _columns(search, test.queries, original, hits)
            for name, (hits, _) in systems.items()
        },
        {
            name: np.broadcast_to(cost, len(test.queries)).astype(np.float64)
            for name, (_, cost) in systems.items()
        },
        segments(search.data, test.queries, search.brands),
    )
    return Found(
        measured,
        [
            {
                "queries": len(test.queries),
                "validation": len(validation.queries),
                "way": best,
                "gate": [
                    {"feature": name, "least": least}
                    for name, least in ways[best].gate.thresholds.items()
                ],
                "open": float(opened.mean()),
                "tried": [{"way": n, "gain": way.gain} for n, way in ways.items()],
            }
        ],
        _titled(
            examples(test.queries, original, systems[SERVED][0], search.known, SHOWN),
            search.products,
        ),
        harm,
    )


def _titled(
    items: list[dict[str, Any]], products: Mapping[str, Product]
) -> list[dict[str, Any]]:
    """Examples with titles instead of ids."""
    return [
        item | {k: [products[i].title for i in item[k]] for k in ("gained", "lost")}
        for item in items
    ]


def _ways(search: Search, rewrites: int) -> tuple[dict[str, Serving], list[str]]:
    """Ways of using up to so many rewrites by name, and the names of the main ones."""
    if not rewrites:
        return {FEEDBACK: search.rm3()}, []
    below = "below the query's first 10"
    ways: dict[str, Serving] = {below: Backfill(10)}
    shown = [below]
    for n in [n for n in NUMBERS if n <= rewrites] or [rewrites]:
        of = f"{n} rewrite{'s' * (n > 1)}"
        for weight in FUSED:
            ways[f"fused with {of}, weight {weight:g}"] = Fusion(n, weight)
        for weight in EXPANDED:
            terms = Expansion(n, weight)
            ways[f"with terms of {of}, weight {weight:g}"] = terms
            ways[f"RM3 with terms of {of}, weight {weight:g}"] = search.rm3(terms)
        shown.append(f"fused with {of}, weight {FUSED[0]:g}")
        name = f"with terms of {of}, weight {EXPANDED[0]:g}"
        shown += [name, f"RM3 {name}"]
    return ways, shown


def _selections(
    search: Search, rows: Written
) -> dict[float, tuple[TermSelection, Hits]]:
    """By weight, a selection fitted on all rows, and lists of rows it had not seen.

    Nothing where there are too few rows or words to learn from.
    """
    fold = np.arange(len(rows.queries)) % FOLDS
    start = _unfitted(search)
    try:
        everything = _fit(start, search, rows)
        others = [_fit(start, search, rows.take(fold != n)) for n in range(FOLDS)]
    except ValueError:
        return {}
    found = {}
    for weight in CHOSEN:
        hits = search.lists(others[0].weighing(weight), rows)
        for n in range(1, FOLDS):
            unseen = search.lists(others[n].weighing(weight), rows)
            hits = choose(hits, unseen, fold == n)
        found[weight] = everything.weighing(weight), hits
    return found


def _unfitted(search: Search) -> TermSelection:
    return TermSelection(search.products, search.relevance, search.text)


def _fit(start: TermSelection, search: Search, rows: Written) -> TermSelection:
    """A copy that has learned from the rows' judgements; what it reads is shared."""
    relevant = [search.judged.products(query) for query in rows.queries]
    return copy(start).fit(search.engine, rows.queries, rows.rewrites, relevant)


def _gated(
    search: Search, way: Serving, rows: Written, hits: Hits, harm: float
) -> _Way:
    """The way with its gate, fitted on validation queries' lists."""
    alone = search.lists(Query(), rows)
    before, after = (columns(rows.queries, x, search.judged) for x in (alone, hits))
    recall, ndcg = (after[name] - before[name] for name in (MAIN, "ndcg@10"))
    features = search.features(rows, hits)
    fitted = gate.fit(features, recall, ndcg, harm=harm)
    return _Way(way, fitted, float(np.nanmean([*(recall * fitted(features)), 0.0])))


def _columns(search: Search, queries: list[str], original: Hits, hits: Hits) -> Columns:
    found = columns(queries, hits, search.known)
    if search.rewards:
        reward = search.parts.lists(queries, original, hits)
        found["reward"] = reward.part("total")
    return found


def _ceilings(search: Search, rows: Written) -> dict[str, tuple[Hits, float]]:
    """What no rewriter knows: which of the rewrites is best, and the shop's words."""
    found = {}
    if n := max(map(len, rows.rewrites), default=0):
        best = search.lists(Query(), rows)
        top = columns(rows.queries, best, search.known)[MAIN]
        for i in range(n):
            one = rows.instead([r[i : i + 1] for r in rows.rewrites])
            hits = search.lists(Rewrite(), one)
            new = columns(rows.queries, hits, search.known)[MAIN]
            best, top = choose(best, hits, new > top), np.fmax(new, top)
        name = f"{CEILING}the best of query and {n} rewrites"
        found[name] = best, float(1 + n)
    truth = search.data.truth
    if truth is not None:
        own = [[shop.own_words(truth, query)] for query in rows.queries]
        words = search.lists(Rewrite(), rows.instead(own))
        found[f"{CEILING}the catalogue's words"] = words, 1.0
    return found
