"""What a shopper is served: the query alone, with its rewrites, or without training.

The first table of a report. Every way of using rewrites goes through a gate that is
fitted on validation queries, and the way that gains most there is what is served. What
is fitted sees judgements alone, and test queries choose nothing.
"""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.config import Evaluate, Lengths, ServiceConfig, SystemConfig
from experiments.known import judgements, known, segments
from experiments.prepare import Prepared
from experiments.system import TEXTS, Parts
from experiments.training import sample
from jaxqr.data import shop
from jaxqr.evaluation import gate
from jaxqr.evaluation.served import (
    DEPTH,
    MAIN,
    Columns,
    Measured,
    columns,
    examples,
    table,
)
from jaxqr.lm import LM
from jaxqr.records import Hits
from jaxqr.report.definitions import CEILING, FEEDBACK, QUERY, SERVED
from jaxqr.retrieval.analysis import tokens
from jaxqr.retrieval.cached import CachedRetriever
from jaxqr.retrieval.feedback import RM3
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
CHOSEN = (1.0, 0.5, 2.0)
"""Weights that are tried: of fused lists, of terms, of words that a model chooses. The
first of each is shown in the table."""
FOLDS = 5
"""Of validation queries: lists to fit a gate on come from models that saw others."""


class Written(NamedTuple):
    """Queries and what the model wrote for them, the best first."""

    queries: list[str]
    rewrites: list[list[str]]
    confidence: Float[np.ndarray, " Q"]
    """Log-probability per token of the first rewrite."""

    def instead(self, rewrites: list[list[str]]) -> "Written":
        """Other rewrites of the same queries."""
        return self._replace(rewrites=rewrites)

    def without(self) -> "Written":
        """No rewrites."""
        return self.instead([[] for _ in self.queries])


class Found(NamedTuple):
    """The table's numbers, and what was served."""

    measured: Measured
    about: dict[str, Any]
    """Further fields of `served` in `jaxqr.report`."""

    def table(self) -> dict[str, Any]:
        """As the report has it."""
        return table(self.measured, [(SERVED, FEEDBACK)]) | self.about


class _Search:
    """The search of one run, and what is known of it."""

    def __init__(self, run: Path, data: Prepared, system: SystemConfig):
        # Reward servers and language models would be asked about every list.
        self.free = system.judge in ("simulated", "logged")
        judge = system.judge if self.free else "simulated"
        local = replace(system, service=ServiceConfig(), judge=judge)
        self.parts = Parts(run, data, local)
        self.engine = CachedRetriever(self.parts.engine)
        self.brands = frozenset(tokens(" ".join(self.parts.brands)))
        self.text = TEXTS[system.text]
        self.products = data.products
        self.judged = judgements(data)
        self.known = known(data)

    def lists(self, way: Serving, rows: Written) -> Hits:
        return way(self.engine, rows.queries, rows.rewrites, DEPTH)

    def features(self, rows: Written, served: Hits) -> gate.Features:
        alone = self.lists(Query(), rows)
        relevance = self.parts.relevance
        return gate.features(*rows, alone, served, relevance, self.brands)

    def rm3(self, first: Query | Expansion = Query()) -> RM3:  # noqa: B008 - frozen
        return RM3(self.products, self.text, first=first)


class _Way(NamedTuple):
    """A way of using rewrites, with its gate."""

    serving: Serving
    gate: gate.Gate
    gain: float
    """In `MAIN`, on average over validation queries."""


def served(
    run: Path, config: Evaluate, data: Prepared, system: SystemConfig, lm: LM | None
) -> Found | None:
    """Measures every way of serving; None where no query is known whole.

    Searches and M1 are those of this process, even if training asked a reward server;
    the reward of lists is left out where a language model would have to judge them.

    Args:
        run: with M1, in its folder `relevance`.
        config: how many queries and rewrites.
        data: the run's data.
        system: as in online training.
        lm: writes the rewrites; None: there are none.
    """
    search = _Search(run, data, system)
    judged, relevant = search.judged, search.known
    validation, test = (
        _write(lm, sample(whole, most, config.seed), config, data.lengths)
        for split, most, of in (
            ("validation", config.gate_queries, judged),
            ("test", config.queries, relevant),
        )
        for whole in [[q for q in data.searchable[split] if of.products(q)]]
    )
    if not test.queries:
        return None
    tried, shown = _ways(search, config.rewrites if lm else 0)
    lists = {name: search.lists(way, validation) for name, way in tried.items()}
    source = "rewrites and first products" if lm else "first products"
    for weight, (way, unseen) in _selections(search, validation).items():
        name = f"words chosen from {source}, weight {weight:g}"
        tried[name], lists[name] = way, unseen
        shown += [name] * (weight == CHOSEN[0])
    ways = {
        name: _gated(search, way, validation, lists[name], config.harm)
        for name, way in tried.items()
    }
    best = max(ways, key=lambda name: ways[name].gain)
    original, chosen = (search.lists(w, test) for w in (Query(), ways[best].serving))
    opened = ways[best].gate(search.features(test, chosen))

    systems: dict[str, tuple[Hits, Any]] = {QUERY: (original, 1.0)}
    corrected = SpellingCorrector(map(search.text, data.products.values()))
    spelled = test.instead([[text] for text in corrected(test.queries)])
    systems["spelling corrected"] = search.lists(Rewrite(), spelled), 1.0
    systems[FEEDBACK] = search.lists(search.rm3(), test), 2.0
    if lm:
        systems["the rewrite alone"] = search.lists(Rewrite(), test), 1.0
        alone = _selections(search, validation.without())
        if CHOSEN[0] in alone:
            hits = search.lists(alone[CHOSEN[0]][0], test.without())
            systems["words chosen from first products alone"] = hits, 2.0
    for name in shown:
        systems[name] = search.lists(tried[name], test), float(tried[name].searches)
    cost = 1.0 + opened * (ways[best].serving.searches - 1)
    systems[SERVED] = choose(original, chosen, opened), cost
    systems |= _ceilings(search, data, test)
    titles = {id: product.title for id, product in data.products.items()}
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
        segments(data, test.queries, search.brands),
    )
    return Found(
        measured,
        {
            "way": best,
            "gate": [
                {"feature": name, "least": least}
                for name, least in ways[best].gate.thresholds.items()
            ],
            "open": float(opened.mean()),
            "harm": config.harm,
            "gate_queries": len(validation.queries),
            "tried": [{"way": name, "gain": way.gain} for name, way in ways.items()],
            "examples": [
                item | {k: [titles[i] for i in item[k]] for k in ("gained", "lost")}
                for item in examples(
                    test.queries, original, systems[SERVED][0], relevant
                )
            ],
        },
    )


def _write(
    lm: LM | None, queries: list[str], config: Evaluate, lengths: Lengths
) -> Written:
    """Beams of every query, empty ones left out."""
    if lm is None or not queries:
        return Written(queries, [[] for _ in queries], np.zeros(len(queries)))
    found = lm.beams(
        queries,
        config.rewrites,
        max_source=lengths.source,
        max_new_tokens=lengths.target,
    )
    texts = [[b.text for b in beams if b.text.strip()] for beams in found]
    first = [beams[0] for beams in found]
    counts = [1 + len(ids) for ids in lm.tokenizer.encode([b.text for b in first])]
    confidence = np.array([b.logp for b in first], np.float64) / np.array(counts)
    return Written(queries, texts, confidence)


def _ways(search: _Search, rewrites: int) -> tuple[dict[str, Serving], list[str]]:
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
    search: _Search, rows: Written
) -> dict[float, tuple[TermSelection, Hits]]:
    """By weight, a selection fitted on all rows, and lists of rows it had not seen.

    Nothing where there are too few rows or words to learn from.
    """
    relevant = [search.judged.products(query) for query in rows.queries]
    fold = np.arange(len(rows.queries)) % FOLDS
    empty = TermSelection(search.products, search.parts.relevance, search.text)

    def fit(chosen: np.ndarray) -> TermSelection:
        some = np.flatnonzero(chosen).tolist()
        return copy(empty).fit(
            search.engine,
            [rows.queries[i] for i in some],
            [rows.rewrites[i] for i in some],
            [relevant[i] for i in some],
        )

    try:
        everything = fit(fold >= 0)
        others = [fit(fold != n) for n in range(FOLDS)]
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


def _gated(
    search: _Search, way: Serving, rows: Written, hits: Hits, harm: float
) -> _Way:
    """The way with its gate, fitted on validation queries' lists."""
    alone = search.lists(Query(), rows)
    before, after = (columns(rows.queries, x, search.judged) for x in (alone, hits))
    recall, ndcg = (after[name] - before[name] for name in (MAIN, "ndcg@10"))
    features = search.features(rows, hits)
    fitted = gate.fit(features, recall, ndcg, harm=harm)
    return _Way(way, fitted, float(np.nanmean([*(recall * fitted(features)), 0.0])))


def _columns(
    search: _Search, queries: list[str], original: Hits, hits: Hits
) -> Columns:
    found = columns(queries, hits, search.known)
    if search.free:
        reward = search.parts.lists(queries, original, hits)
        found["reward"] = reward.part("total")
    return found


def _ceilings(
    search: _Search, data: Prepared, rows: Written
) -> dict[str, tuple[Hits, float]]:
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
    if data.truth is not None:
        own = [[shop.own_words(data.truth, query)] for query in rows.queries]
        words = search.lists(Rewrite(), rows.instead(own))
        found[f"{CEILING}the catalogue's words"] = words, 1.0
    return found
