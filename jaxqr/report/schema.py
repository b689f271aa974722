"""The fields of `summary.json`, one JSON object, and what a wrong one lacks.

`name` and `about` must be there. Every other section may be missing, `null` or empty,
and is then left out of the page with the command that makes it. In a section that is
there every field declared here is required; what the measures mean is said in
`jaxqr.report.definitions`. `NUMBER` may be `null`, which says that the number is not
defined in its place. Further fields are ignored.
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from types import UnionType
from typing import Any

from jaxqr.report.definitions import (
    CHANGES,
    COPY,
    CURVES,
    FEEDBACK,
    GUARD,
    OFFLINE,
    ONLINE,
    PAIRS,
    QUERY,
    RELEVANCE,
    REWARD,
    SERVED,
    SERVING,
    SHARES,
)

NUMBER = float | None
SPLIT = ("train", "validation", "test")

_DIFFERENCE = {  # a mean paired difference and its 95 % bootstrap interval
    "metric": str,
    "than": str,
    "difference": NUMBER,  # in the metric's unit; null where no row is known to both
    "low": NUMBER,
    "high": NUMBER,
}

SUMMARY = {
    "name": str,
    "about": {  # what was run
        "command": str,
        "source": str,  # "shop", "esci", "tables", ...
        "products": int,
        "queries": int,
        "labels": [{"name": str, "gain": float}],  # of the collection, the best first
        "device": str,
        "seed": int,
        "version": str,  # of jaxqr
    },
    "served": {  # what search gains: the query alone, with rewrites, untrained
        "queries": int,  # held out, whose relevant products are known
        "metrics": [str],  # of `definitions.SERVING`
        "rows": [  # "the query as typed" first; one is "RM3, untrained", one "served"
            {
                "system": str,  # and every metric: its mean over those queries
                "searches": NUMBER,  # of a query, on average
                "no_results": NUMBER,
                **dict.fromkeys(CHANGES, NUMBER),
            }
        ],
        # system - than: every metric of every system minus the query's, and of
        # "served" minus RM3's, and minus `definitions.ALONE`'s where there is one
        "differences": [_DIFFERENCE | {"system": str}],
        "segments": [  # kinds of queries: recall@50, and its difference to the query's
            {
                "segment": str,
                "queries": int,
                "rows": [
                    {
                        "system": str,
                        "recall@50": NUMBER,
                        "difference": NUMBER,
                        "low": NUMBER,
                        "high": NUMBER,
                    }
                ],
            }
        ],
        "fitted": [  # one item for each fold or shop, whose queries chose nothing in it
            {
                "queries": int,  # of `queries` above
                "validation": int,  # queries that all this was chosen on
                "way": str,  # how rewrites are used where the gate is open
                "gate": [{"feature": str, "least": NUMBER}],  # all are to be reached
                "open": NUMBER,  # share of the queries
            }
        ],
        "harm": NUMBER,  # share of the validation queries that were allowed to be worse
        "examples": [  # that gain most and that lose most in recall@50
            {"query": str, "change": NUMBER, "gained": [str], "lost": [str]}
        ],
    },
    "pairs": {  # `jaxqr.data.q2q.Statistics`; each pair counts once, not per direction
        **dict.fromkeys(PAIRS, int),
        "shared_at_least": {str: int},  # {"n": pairs that share n or more products}
        "verified": bool,  # whether there was a filter for equivalence
        "splits": {SPLIT: {"pairs": int, "queries": int, "components": int}},
    },
    "relevance": {  # M1 and what it is compared with, on held-out queries
        "rows": [{"ranker": str, **dict.fromkeys(RELEVANCE, NUMBER)}],  # one is "M1"
        "test_rows": int,  # judgements
        "test_queries": int,
    },
    "offline": {  # rewrites against the references of held-out pairs: Table 2
        "pairs": int,  # in one direction each
        "queries": int,
        "rows": [{"model": str, **dict.fromkeys(OFFLINE, NUMBER)}],  # one is the copy
        "comparisons": [_DIFFERENCE | {"model": str}],  # model - than
    },
    "online": {  # rewrites sent to the search engine: Table 3
        "queries": int,  # held out
        "split": SPLIT,  # that they are of
        "k": int,  # length of the lists
        "updates": int,  # of online training
        "metrics": [str],  # of `definitions.ONLINE`, the reward and its parts included
        "counts": {str: int},  # by metric, for how many queries it is known: not where
        # search or judge failed; for ndcg, where the query is not fully judged
        "failed": {str: float},  # by system, share of queries that were not scored
        "rows": [  # "copy the query", the rewriter before, ..., the rewriter after
            {
                "system": str,  # and every metric: its mean over those queries
                **dict.fromkeys(SHARES, NUMBER),
                "length": NUMBER,  # mean tokens of a rewrite
            }
        ],
        # system - than: every metric of the last system, minus each of the first two
        "differences": [_DIFFERENCE | {"system": str}],
    },
    "curves": [  # one item per evaluation during training; `ndcg` and `true_gain` too
        {  # where they are known
            "step": int,
            **dict.fromkeys(REWARD, NUMBER),
            **dict.fromkeys(GUARD, NUMBER),
            **dict.fromkeys(SHARES, NUMBER),
            "failed": NUMBER,  # share of queries that were not scored
            **dict.fromkeys(CURVES, NUMBER),
            "tokens": NUMBER,  # mean length of a sampled rewrite
        }
    ],
    "curves_split": SPLIT,  # that the queries of `curves` are of; required with it
    "training": [  # one item per update
        {
            "step": int,
            "chosen_score": NUMBER,  # mean reward of the preferred rewrites
            "rejected_score": NUMBER,  # and of the others
            "tied": NUMBER,  # share of queries without a preference
            "failed": NUMBER,  # share of candidates without a reward
        }
    ],
    "rewrites": [  # of a few held-out queries over training: Table 5
        {
            "query": str,
            "by_step": {str: str},  # {"step": rewrite}
            "total_by_step": {str: NUMBER},  # {"step": reward}
        }
    ],
}

_SECTIONS = SUMMARY.keys() - {"name", "about"}
_JSON = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def without_empty(summary: Any) -> Any:
    """A parsed summary without the sections that are null or empty.

    >>> without_empty({"name": "run", "about": {}, "curves": [], "online": None})
    {'name': 'run', 'about': {}}
    """
    if not isinstance(summary, dict):
        return summary
    return {k: part for k, part in summary.items() if part or k not in _SECTIONS}


def problems(summary: Any) -> list[str]:
    """What keeps a parsed summary from being shown: where, and what is wrong there.

    Of a list's items only the first wrong one is told.

    >>> problems({"name": "run", "about": None})
    ['summary.about is null, expected an object']
    """
    there = summary if isinstance(summary, dict) else {}
    kind = {k: v for k, v in SUMMARY.items() if k in there or k not in _SECTIONS}
    found = list(mismatches(summary, kind, "summary"))
    return found or list(_disagreements(summary))


def mismatches(given: Any, kind: Any, place: str) -> Iterator[str]:
    """Where a JSON value differs from what is declared."""
    json_type = kind if isinstance(kind, type) else type(kind)
    if isinstance(kind, UnionType):
        if given is not None:
            yield from mismatches(given, float, place)
    elif isinstance(kind, tuple):
        if given not in kind:
            yield f"{place} is {_shown(given)}, expected {' or '.join(kind)}"
    elif type(given) not in ((int, float) if kind is float else (json_type,)):
        yield f"{place} is {_shown(given)}, expected {_JSON[json_type]}"
    elif isinstance(kind, list):
        wrong = (
            list(mismatches(x, kind[0], f"{place}[{i}]")) for i, x in enumerate(given)
        )
        yield from next(filter(None, wrong), [])
    elif isinstance(kind, dict) and all(isinstance(name, str) for name in kind):
        yield from _lacking(place, given, kind)
        for name in kind:
            if name in given:
                yield from mismatches(given[name], kind[name], f"{place}.{name}")
    elif isinstance(kind, dict):  # {kind of the keys: kind of the values}
        ((key, item),) = kind.items()
        for name in given:
            yield from mismatches(name, key, f"a key of {place}")
            yield from mismatches(given[name], item, f"{place}.{name}")


def _disagreements(summary: Mapping[str, Any]) -> Iterator[str]:
    """Where parts of the right kinds do not fit together."""
    if "offline" in summary:
        named = [item["metric"] for item in summary["offline"]["comparisons"]]
        yield from _unknown("summary.offline.comparisons", named, OFFLINE)
    if "served" in summary:
        yield from _served(summary["served"])
    if "online" in summary:
        yield from _online(summary["online"])
    if "curves" in summary:
        yield from _lacking("summary", summary, ["curves_split"])
    for i, item in enumerate(summary.get("rewrites", [])):
        place, steps = f"summary.rewrites[{i}]", item["by_step"]
        if wrong := [step for step in steps if not step.isdecimal()]:
            yield f"{place}.by_step has the keys {wrong}, expected steps"
        yield from _lacking(f"{place}.total_by_step", item["total_by_step"], steps)


def _online(online: Mapping[str, Any]) -> Iterator[str]:
    place, metrics = "summary.online", online["metrics"]
    yield from _unknown(f"{place}.metrics", metrics, ONLINE)
    yield from _lacking(f"{place}.metrics", metrics, REWARD)
    yield from _lacking(f"{place}.counts", online["counts"], metrics)
    names = [row["system"] for row in online["rows"]]
    if len(names) < 3 or names[0] != COPY:
        yield (
            f"{place}.rows are {names}, expected {COPY!r}, the rewriter before and the "
            "rewriter after online training"
        )
        return
    yield from _lacking(f"{place}.failed", online["failed"], names)
    numbers = dict.fromkeys(metrics, NUMBER)
    yield from mismatches(online["rows"], [numbers], f"{place}.rows")
    for than in names[:2]:
        named = {
            item["metric"]
            for item in online["differences"]
            if (item["system"], item["than"]) == (names[-1], than)
        }
        what = f"{place}.differences from {names[-1]!r} to {than!r}"
        yield from _lacking(what, named, metrics)


def _served(served: Mapping[str, Any]) -> Iterator[str]:
    place, metrics = "summary.served", served["metrics"]
    yield from _unknown(f"{place}.metrics", metrics, SERVING)
    names = [row["system"] for row in served["rows"]]
    if names[:1] != [QUERY] or not {FEEDBACK, SERVED} <= {*names}:
        yield (
            f"{place}.rows are {names}, expected {QUERY!r} first, and {FEEDBACK!r} and "
            f"{SERVED!r} among them"
        )
        return
    numbers = dict.fromkeys(metrics, NUMBER)
    yield from mismatches(served["rows"], [numbers], f"{place}.rows")
    compared = [(name, QUERY) for name in names[1:]] + [(SERVED, FEEDBACK)]
    for system, than in compared:
        named = {
            item["metric"]
            for item in served["differences"]
            if (item["system"], item["than"]) == (system, than)
        }
        what = f"{place}.differences from {system!r} to {than!r}"
        yield from _lacking(what, named, metrics)
    for i, segment in enumerate(served["segments"]):
        shown = {row["system"] for row in segment["rows"]}
        yield from _lacking(f"{place}.segments[{i}].rows", shown, names)


def _unknown(place: str, names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    if unknown := sorted({*names} - {*known}):
        yield f"{place} has unknown metrics {', '.join(unknown)}; known: {[*known]}"


def _lacking(place: str, given: Container, expected: Iterable[str]) -> Iterator[str]:
    if missing := [name for name in expected if name not in given]:
        yield f"{place} lacks {', '.join(missing)}"


def _shown(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"
