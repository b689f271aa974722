"""What a shopper is served: the query alone, with its rewrites, or without training.

The first table of a report. Every way of using rewrites goes through a gate that is
fitted on validation queries, and the way that gains most there is what is served: test
queries choose nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.config import Evaluate, Lengths, ServiceConfig, SystemConfig
from experiments.prepare import Prepared
from experiments.system import TEXTS, Parts, judged_gains
from experiments.training import sample
from jaxqr.data import shop
from jaxqr.evaluation import gate
from jaxqr.evaluation.served import (
    DEPTH,
    MAIN,
    Known,
    Served,
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
"""Their weights, in fusion and as terms; the first of each is shown in the table."""


class Written(NamedTuple):
    """Queries and what the model wrote for them, the best first."""

    queries: list[str]
    rewrites: list[list[str]]
    confidence: Float[np.ndarray, " Q"]
    """Log-probability per token of the first rewrite."""


def served(
    run: Path, config: Evaluate, data: Prepared, system: SystemConfig, lm: LM
) -> dict[str, Any] | None:
    """The table, its segments and examples; None where no query is known whole.

    Searches and M1 are those of this process, even if training asked a reward server;
    the reward of lists is left out where a language model would have to judge them.
    """
    relevant = known(data)
    queries = {
        split: [q for q in data.searchable[split] if relevant.products(q)]
        for split in ("validation", "test")
    }
    if not queries["test"]:
        return None
    free = system.judge in ("simulated", "logged")
    local = replace(
        system,
        service=ServiceConfig(),
        judge=system.judge if free else "simulated",
    )
    parts = Parts(run, data, local)
    engine = CachedRetriever(parts.engine)
    brands = frozenset(tokens(" ".join(parts.brands)))
    feedback = {"products": data.products, "text": TEXTS[system.text]}
    validation, test = (
        write(lm, sample(queries[split], most, config.seed), config, data.lengths)
        for split, most in (
            ("validation", config.gate_queries),
            ("test", config.queries),
        )
    )
    ways, main = ways_of(config.rewrites, feedback)

    def lists(way: Serving, rows: Written) -> Hits:
        return way(engine, rows.queries, rows.rewrites, DEPTH)

    def seen(rows: Written, original: Hits, hits: Hits) -> gate.Features:
        return gate.features(*rows, original, hits, parts.relevance, brands)

    alone = lists(Query(), validation)
    before = columns(validation.queries, alone, relevant)
    gates, gained = {}, {}
    for name, way in ways.items():
        hits = lists(way, validation)
        after = columns(validation.queries, hits, relevant)
        recall, ndcg = (after[x] - before[x] for x in (MAIN, "ndcg@10"))
        features = seen(validation, alone, hits)
        gates[name] = gate.fit(features, recall, ndcg, harm=config.harm)
        gained[name] = float(np.nanmean([*(recall * gates[name](features)), 0.0]))
    best = max(gained, key=lambda name: gained[name])

    original = lists(Query(), test)
    chosen = lists(ways[best], test)
    opened = gates[best](seen(test, original, chosen))
    corrected = SpellingCorrector(map(TEXTS[system.text], data.products.values()))
    rows = {
        QUERY: Served(original, 1),
        "spelling corrected": Served(
            lists(Rewrite(), _with(test, [[x] for x in corrected(test.queries)])), 1
        ),
        FEEDBACK: Served(lists(RM3(**feedback), test), 2),
        "the rewrite alone": Served(lists(Rewrite(), test), 1),
    }
    rows |= {n: Served(lists(ways[n], test), ways[n].searches) for n in main}
    rows[SERVED] = Served(
        choose(original, chosen, opened),
        1 + float(opened.mean()) * (ways[best].searches - 1),
    )
    rows |= {
        name: Served(hits, searches)
        for name, (hits, searches) in ceilings(lists, data, test, relevant).items()
    }

    def reward(hits: Hits) -> Float[np.ndarray, " Q"]:
        return parts.lists(test.queries, original, hits).part("total")

    titles = {id: product.title for id, product in data.products.items()}
    return table(
        test.queries,
        rows,
        relevant,
        compared=[(SERVED, FEEDBACK)],
        segments=segments(data, test.queries, brands),
        reward=reward if free else None,
    ) | {
        "way": best,
        "gate": [
            {"feature": name, "least": least}
            for name, least in gates[best].thresholds.items()
        ],
        "open": float(opened.mean()),
        "harm": config.harm,
        "gate_queries": len(validation.queries),
        "tried": [{"way": name, "gain": gain} for name, gain in gained.items()],
        "examples": [
            item | {k: [titles[i] for i in item[k]] for k in ("gained", "lost")}
            for item in examples(test.queries, original, rows[SERVED].hits, relevant)
        ],
    }


def ways_of(
    rewrites: int, feedback: Mapping[str, Any]
) -> tuple[dict[str, Serving], list[str]]:
    """Ways of using up to so many rewrites by name, and the names of the main ones."""
    ways: dict[str, Serving] = {}
    shown = [below := "below the query's first 10"]
    for n in [n for n in NUMBERS if n <= rewrites] or [rewrites]:
        of = f"{n} rewrite{'s' * (n > 1)}"
        for weight in FUSED:
            ways[f"fused with {of}, weight {weight:g}"] = Fusion(n, weight)
        for weight in EXPANDED:
            terms = Expansion(n, weight)
            ways[f"with terms of {of}, weight {weight:g}"] = terms
            ways[f"RM3 with terms of {of}, weight {weight:g}"] = RM3(
                **feedback, first=terms
            )
        shown.append(f"fused with {of}, weight {FUSED[0]:g}")
        terms = f"with terms of {of}, weight {EXPANDED[0]:g}"
        shown += [terms, f"RM3 {terms}"]
    return ways | {below: Backfill(10)}, shown


def known(data: Prepared) -> Known:
    """What is relevant: by judgement, or by the rule of a synthetic shop.

    Of judged products those with a relevant label; of a shop's the exact ones alone:
    its substitutes are hundreds, of which no list of 100 holds a telling share.
    """
    labels = data.labels
    if data.truth is None:
        judged = judged_gains(data)
        everything = data.searchable["validation"] + data.searchable["test"]
        least = min(labels.gain(name) for name in labels.relevant)
        return Known({q: judged.get(q, {}) for q in everything}, least)
    return Known(_TrueGains(data.truth, data), max(labels.gains))


class _TrueGains(dict[str, dict[str, float]]):
    """Gains above 0 of all products of a shop, computed when they are asked for."""

    def __init__(self, truth: shop.Truth, data: Prepared):
        super().__init__()
        self._truth, self._data = truth, data
        self._by_intent: dict[Any, dict[str, float]] = {}

    def __missing__(self, query: str) -> dict[str, float]:
        intent = self._truth.intents[query]
        if intent not in self._by_intent:
            gain = self._data.true_gain
            assert gain is not None
            gains = {p: gain(query, p) for p in self._data.products}
            self._by_intent[intent] = {p: g for p, g in gains.items() if g > 0}
        self[query] = self._by_intent[intent]
        return self[query]


def write(lm: LM, queries: list[str], config: Evaluate, lengths: Lengths) -> Written:
    """Beams of every query, empty ones left out."""
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


def _with(rows: Written, rewrites: list[list[str]]) -> Written:
    return rows._replace(rewrites=rewrites)


def ceilings(
    lists: Callable[[Serving, Written], Hits],
    data: Prepared,
    rows: Written,
    relevant: Known,
) -> dict[str, tuple[Hits, float]]:
    """What no rewriter knows: which of the rewrites is best, and the shop's words."""
    n = max(map(len, rows.rewrites), default=0)
    best = lists(Query(), rows)
    top = columns(rows.queries, best, relevant)[MAIN]
    for i in range(n):
        one = [r[i : i + 1] for r in rows.rewrites]
        hits = lists(Rewrite(), _with(rows, one))
        new = columns(rows.queries, hits, relevant)[MAIN]
        best, top = choose(best, hits, new > top), np.fmax(new, top)
    found = {f"{CEILING}the best of query and {n} rewrites": (best, float(1 + n))}
    if data.truth is not None:
        own = [[shop.own_words(data.truth, q)] for q in rows.queries]
        words = lists(Rewrite(), _with(rows, own))
        found[f"{CEILING}the catalogue's words"] = (words, 1.0)
    return found


def segments(
    data: Prepared, queries: Sequence[str], brands: frozenset[str]
) -> dict[str, Bool[np.ndarray, " Q"]]:
    """Kinds of queries: how they are phrased, where it is known, or what is in them."""
    kinds: defaultdict[str, list[bool]] = defaultdict(list)
    phrasing = data.truth.phrasing if data.truth else {}
    for query in queries:
        words = tokens(query)
        for kind in shop.KINDS if phrasing else ():
            kinds[kind].append(phrasing[query] == kind)
        kinds["1 or 2 words"].append(len(words) <= 2)
        kinds["3 or 4 words"].append(3 <= len(words) <= 4)
        kinds["5 words or more"].append(len(words) >= 5)
        kinds["with a number"].append(any(c.isdigit() for c in query))
        kinds["with a negation"].append(any(w in gate.NEGATIONS for w in words))
        kinds["with a brand"].append(any(w in brands for w in words))
    return {name: np.array(rows, np.bool_) for name, rows in kinds.items()}
