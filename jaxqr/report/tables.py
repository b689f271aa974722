"""The values of the page's tables: numbers as numbers, texts as they were given."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from jaxqr.report.definitions import (
    CEILING,
    CHANGES,
    COPY,
    FEEDBACK,
    OFFLINE,
    ONLINE,
    PAIRS,
    QUERY,
    RELEVANCE,
    SERVED,
    SERVING,
    SHARES,
    column,
    differences,
    systems,
    value,
)
from jaxqr.report.format import MISSING, number

Summary = Mapping[str, Any]

EXAMPLE_STEPS = 6
"""Evaluations shown per example query, t0 to t5 as in MiniELM's Table 5."""


class Cell(NamedTuple):
    """A number, its digits after the point, and whether it is the best of its kind."""

    value: float
    digits: int
    best: bool


class Row(NamedTuple):
    """A row of a table: a heading and numbers, and what it is coloured as."""

    heading: str
    cells: Sequence[Cell]
    kind: str = ""


def best_of(values: Sequence[float], digits: int, *, better: int) -> list[Cell]:
    """Cells of one measure; the best ones, as printed, are marked.

    Args:
        values: one per system.
        digits: after the point.
        better: 1 if higher, -1 if lower is better, 0 if neither.

    >>> [cell.best for cell in best_of([0.5, 0.71, 0.69, math.nan], 1, better=1)]
    [False, True, True, False]
    """
    printed = [number(x, digits) for x in values]
    known = [x for x in values if math.isfinite(x)]
    best = None
    if better and len({*printed} - {MISSING}) > 1:
        best = number(max(known) if better > 0 else min(known), digits)
    return [Cell(x, digits, p == best) for x, p in zip(values, printed, strict=True)]


def _rows(
    rows: Sequence[Summary], name: str, columns: Iterable[Sequence[Cell]]
) -> list[Row]:
    """Rows of a table whose columns are measures."""
    return [
        Row(row[name], cells, "copy" if row[name] == COPY else "")
        for row, *cells in zip(rows, *columns, strict=True)
    ]


def pairs(summary: Summary) -> dict[str, Any]:
    """How many there are of what."""
    return {
        "counts": [(name, summary["pairs"][key]) for key, name in PAIRS.items()],
        "shared": list(summary["pairs"]["shared_at_least"].items()),
    }


def relevance(summary: Summary) -> dict[str, Any]:
    """M1's rows, and the best of those that it has to beat."""
    rows = summary["relevance"]["rows"]
    ndcg = {row["ranker"]: value(row, "ndcg") for row in rows}
    ndcg = {name: x for name, x in ndcg.items() if math.isfinite(x)}
    own = ndcg.pop("M1", None)
    rival = max(ndcg, key=lambda name: ndcg[name], default=None)
    compared = own is not None and rival is not None
    return {
        "heads": [term.label for term in RELEVANCE.values()],
        "rows": _rows(
            rows,
            "ranker",
            [best_of(column(rows, name), 3, better=1) for name in RELEVANCE],
        ),
        "compared": (own, rival, ndcg[rival]) if compared else None,
    }


def offline(summary: Summary) -> dict[str, Any]:
    """Table 2 and the differences of its models."""
    rows = summary["offline"]["rows"]
    shown = {  # digits, and whether higher (1) or lower (-1) is better
        "exact_match": (1, 1),
        "rouge_l": (1, 1),
        "rouge_l_sampled": (1, 1),
        "nll_per_token": (3, -1),
        "nll_per_sequence": (2, -1),
        "reverse_kl": (3, -1),
        "tokens": (1, 0),
        "words": (1, 0),
    }
    columns = [best_of(column(rows, x), d, better=b) for x, (d, b) in shown.items()]
    return {
        "heads": [OFFLINE[name].label for name in shown],
        "rows": _rows(rows, "model", columns),
        "comparisons": [
            (OFFLINE[item["metric"]].label, item, shown[item["metric"]][1])
            for item in summary["offline"]["comparisons"]
        ],
    }


def online(summary: Summary) -> dict[str, Any]:
    """Table 3: measures as rows, those that training never sees last."""
    online = summary["online"]
    rows = online["rows"]
    copy, before, after = (row["system"] for row in systems(online))
    changes = [differences(online, than) for than in (before, copy)]
    known = {name for name in online["metrics"] if _known(rows, name)}
    return {
        "heads": [
            *(row["system"] for row in rows),
            *(f"{after} minus {than}" for than in (before, copy)),
        ],
        "rows": [
            (
                Row(
                    ONLINE[name].label,
                    best_of(column(rows, name), 3, better=1),
                    "unseen" if ONLINE[name].unseen else "",
                ),
                online["counts"][name],
                [by_metric.get(name) for by_metric in changes],
            )
            for name in sorted(online["metrics"], key=lambda name: ONLINE[name].unseen)
            if name in known
        ],
        "shares": [
            *((title, column(rows, name)) for name, title in SHARES.items()),
            ("Not scored", [online["failed"][row["system"]] for row in rows]),
        ],
        "lengths": column(rows, "length"),
        "partial": any(online["counts"][n] < online["queries"] for n in known),
        "undefined": [ONLINE[n].label for n in online["metrics"] if n not in known],
    }


def served(summary: Summary) -> dict[str, Any]:
    """What is served: systems as rows; in a second table, kinds of queries."""
    served = summary["served"]
    fair, ceilings = [], []
    for row in served["rows"]:
        (ceilings if row["system"].startswith(CEILING) else fair).append(row)
    rows, metrics = fair + ceilings, served["metrics"]
    changes = {
        item["system"]: item
        for item in served["differences"]
        if item["metric"] == "recall@50" and item["than"] == QUERY
    }
    main = [QUERY, FEEDBACK, SERVED]
    return {
        "heads": [SERVING[name].label for name in metrics],
        "changes": list(CHANGES.values()),
        "rows": [
            (
                Row(row["system"], cells, _KINDS.get(row["system"], "")),
                changes.get(row["system"]),
                [value(row, name) for name in CHANGES],
                value(row, "searches"),
            )
            for row, *cells in zip(
                rows,
                *(
                    best_of(column(fair, name), 3, better=1)
                    + best_of(column(ceilings, name), 3, better=0)
                    for name in metrics
                ),
                strict=True,
            )
        ],
        "segments": [
            (
                Row(
                    segment["segment"],
                    best_of(column(shown, "recall@50"), 3, better=1),
                ),
                segment["queries"],
                next(row for row in shown if row["system"] == SERVED),
            )
            for segment in served["segments"]
            for shown in [[r for r in segment["rows"] if r["system"] in main]]
        ],
        "systems": [row["system"] for row in rows if row["system"] in main],
        "fitted": [
            part
            | {
                "gate": [
                    f"{item['feature']} {number(value(item, 'least'))} or more"
                    for item in part["gate"]
                ]
            }
            for part in served["fitted"]
        ],
    }


_KINDS = {QUERY: "copy", SERVED: "served"}


def training(summary: Summary) -> dict[str, Any]:
    """Mean shares over the updates."""
    known = {name: _known(summary["training"], name) for name in ("tied", "failed")}
    return {name: fmean(x) if x else math.nan for name, x in known.items()}


def curves(summary: Summary) -> dict[str, Any]:
    """The worst share of queries that an evaluation could not score."""
    return {"failed": max(_known(summary["curves"], "failed"), default=0.0)}


def rewrites(summary: Summary) -> dict[str, Any]:
    """Table 5: per query and step, the rewrite, its reward, and whether it is new."""
    examples = summary["rewrites"]
    steps = spaced(
        sorted({int(s) for x in examples for s in x["by_step"]}), EXAMPLE_STEPS
    )
    return {
        "steps": steps,
        "rows": [(item["query"], _evolution(item, steps)) for item in examples],
    }


def spaced(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, evenly spaced, the first and last among them.

    >>> spaced(list(range(0, 1001, 50)), 6)
    [0, 200, 400, 600, 800, 1000]
    """
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _evolution(
    item: Summary, steps: Sequence[int]
) -> list[tuple[str, float, bool] | None]:
    cells, last = [], None
    for step in map(str, steps):
        text = item["by_step"].get(step)
        if text is None:
            cells.append(None)  # not evaluated on this query at this step
            continue
        cells.append((text, value(item["total_by_step"], step), text == last))
        last = text
    return cells


def _known(rows: Sequence[Summary], name: str) -> list[float]:
    return [x for x in column(rows, name) if math.isfinite(x)]
