"""What is known of a run's queries: relevant products, and which kind they are of."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from experiments.prepare import Prepared
from experiments.system import judged_gains
from jaxqr.data import shop
from jaxqr.evaluation import gate
from jaxqr.evaluation.served import Known
from jaxqr.retrieval.analysis import tokens


def known(data: Prepared) -> Known:
    """What is relevant: by judgement, or by the rule of a synthetic shop."""
    if data.truth is None:
        return judgements(data)
    return Known(_TrueGains(data), _least(data))


def judgements(data: Prepared) -> Known:
    """What people have judged, of fully judged queries: all that may be fitted on."""
    judged = judged_gains(data)
    queries = [q for split in data.searchable.values() for q in split]
    return Known({query: judged.get(query, {}) for query in queries}, _least(data))


def _least(data: Prepared) -> float:
    """The least gain of a relevant product.

    In a shop only exact ones are: its substitutes are hundreds, of which no list of 100
    holds a telling share.
    """
    if data.truth is not None:
        return max(data.labels.gains)
    return min(data.labels.gain(name) for name in data.labels.relevant)


class _TrueGains(dict[str, dict[str, float]]):
    """Gains above 0 of all products of a shop, computed when they are asked for."""

    def __init__(self, data: Prepared):
        super().__init__()
        self._data = data
        self._by_intent: dict[Any, dict[str, float]] = {}

    def __missing__(self, query: str) -> dict[str, float]:
        truth, gain = self._data.truth, self._data.true_gain
        assert truth is not None
        assert gain is not None
        intent = truth.intents[query]
        if intent not in self._by_intent:
            gains = {p: gain(query, p) for p in self._data.products}
            self._by_intent[intent] = {p: g for p, g in gains.items() if g > 0}
        self[query] = self._by_intent[intent]
        return self[query]


def segments(
    data: Prepared, queries: Sequence[str], brands: frozenset[str]
) -> dict[str, Bool[np.ndarray, " Q"]]:
    """Kinds of queries: how they are phrased, where it is known, or what is in them."""
    kinds: defaultdict[str, list[bool]] = defaultdict(list)
    phrasing: Mapping[str, str] = data.truth.phrasing if data.truth else {}
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
