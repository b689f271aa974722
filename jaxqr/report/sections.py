"""The sections of a report's page: each makes HTML of one part of the summary."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxqr.report.definitions import (
    COPY,
    OFFLINE,
    ONLINE,
    RELEVANCE,
    clear,
    column,
    differences,
    label,
    systems,
    unseen,
    value,
)
from jaxqr.report.figures import WINDOW, Image
from jaxqr.report.markup import (
    Row,
    best_bold,
    definitions,
    mark,
    number,
    paragraph,
    percent,
    picture,
    signed,
    table,
)

Summary = Mapping[str, Any]
Images = Mapping[str, Image]

EXAMPLE_STEPS = 6
"""Evaluations shown per example query, t0 to t5 as in MiniELM's Table 5."""

SOURCES = {
    "shop": "The synthetic shop",
    "esci": "Shopping Queries (ESCI)",
    "tables": "Your own tables",
}
_MARKED = (
    f"{mark(1)} higher, {mark(-1)} lower: the 95 % interval excludes 0, blue is better "
    f"and orange worse; {mark(0)}: it includes 0. Intervals are paired bootstraps over "
    "queries, one per measure, not corrected for their number."
)


def data(summary: Summary, images: Images) -> str:
    """Where the query pairs come from."""
    about, pairs = summary["about"], summary["pairs"]
    catalogue = " and ".join(
        f"{about[key]:,} {key}" for key in ("products", "queries") if about.get(key)
    )
    shared = ", ".join(
        f"{count:,} share {n} or more"
        for n, count in pairs.get("shared_at_least", {}).items()
    )
    text = (
        f"{SOURCES.get(about.get('source'), 'The data')}: {catalogue}. Two queries are "
        f"a pair if they share relevant products{f': {shared}' if shared else ''}. "
    )
    if pairs.get("verified"):
        text += "A filter has checked that both ask for the same thing."
    else:
        text += "The pairs are unverified: nothing checked that both ask for the same."
    counted = {
        "queries": "queries with a relevant product",
        "products": "products relevant to a query",
        "skipped_products": "products skipped, relevant to too many queries",
        "candidates": "candidate pairs",
        "copies": "candidates dropped, equal up to case and blanks",
        "rejected": "candidates rejected by the filter",
        "pairs": "pairs kept",
        "components": "connected components",
        "largest_component": "queries in the largest component",
    }
    facts = [(name, f"{pairs[key]:,}") for key, name in counted.items() if key in pairs]
    sizes = ("pairs", "queries", "components")
    return (
        paragraph(text)
        + definitions(facts, kind="facts")
        + table(
            ["side", *sizes],
            [
                Row([escape(side), *(number(value(counts, k), 0) for k in sizes)])
                for side, counts in pairs["splits"].items()
            ],
            caption="Whole connected components are dealt out to the sides, so that "
            "no query is on two of them.",
        )
    )


def relevance(summary: Summary, images: Images) -> str:
    """Whether M1 can be trusted."""
    m1 = summary["relevance"]
    rows = m1["rows"]
    text = (
        "M1 says how relevant a product is to a query, and the reward trusts it. It is "
        f"measured on {m1['test_rows']:,} judgements of {m1['test_queries']:,} "
        "held-out queries."
    )
    ndcg = {row["ranker"]: value(row, "ndcg") for row in rows}
    ndcg = {name: x for name, x in ndcg.items() if math.isfinite(x)}
    own = ndcg.pop("M1", None)
    if ndcg and own is not None:
        rival = max(ndcg, key=lambda name: ndcg[name])
        ahead = own > ndcg[rival]
        text += (
            f" Its nDCG, {number(own)}, is {'' if ahead else 'not '}above that of "
            f"{rival}, {number(ndcg[rival])}."
            + ("" if ahead else " Do not trust the relevances below.")
        )
    cells = [best_bold(column(rows, name), 3, better=1) for name in RELEVANCE]
    return paragraph(text) + table(
        ["", *(term.label for term in RELEVANCE.values())],
        _named_rows(rows, "ranker", cells),
        caption="nDCG over judged products only: where most of them are relevant, a "
        "random order already has a high one.",
    )


def table_2(summary: Summary, images: Images) -> str:
    """Rewrites against references."""
    offline = summary["offline"]
    rows = offline["rows"]
    shown = [  # measure, digits, and whether higher (1) or lower (-1) is better
        ("exact_match", 1, 1),
        ("rouge_l", 1, 1),
        ("rouge_l_sampled", 1, 1),
        ("nll_per_token", 3, -1),
        ("nll_per_sequence", 2, -1),
        ("reverse_kl", 3, -1),
        ("tokens", 1, 0),
        ("words", 1, 0),
    ]
    better = {name: side for name, _, side in shown}
    cells = [best_bold(column(rows, n), digits, better=s) for n, digits, s in shown]
    compared = [
        Row([escape(f"{measure}: {item['model']} minus {item['than']}"), *change])
        for item in offline["comparisons"]
        for measure in [label(OFFLINE, item["metric"])]
        for change in [_change(item, 2, good=better.get(item["metric"], 0))]
    ]
    return (
        paragraph(
            f"Greedy rewrites of {offline['queries']:,} held-out queries against the "
            f"references of {offline['pairs']:,} pairs, as in MiniELM's Table 2."
        )
        + table(
            ["", *(label(OFFLINE, name) for name, *_ in shown)],
            _named_rows(rows, "model", cells),
            caption="Bold: best of its column. Queries of a pair share words, so a "
            "copy overlaps with the reference already.",
        )
        + (
            table(["", "difference", "95 % interval", ""], compared, caption=_MARKED)
            if compared
            else ""
        )
    )


def table_3(summary: Summary, images: Images) -> str:
    """Rewrites in search, and how the systems differ."""
    online = summary["online"]
    rows = online["rows"]
    copy, before, after = (row["system"] for row in systems(online))
    changes = {than: differences(online, than) for than in (before, copy)}
    known = {n for n in online["metrics"] if any(map(math.isfinite, column(rows, n)))}
    body = [
        Row(
            [
                escape(label(ONLINE, name)),
                *best_bold(column(rows, name), 3, better=1),
                *(
                    " ".join(_change(by_metric[name], 3)) if name in by_metric else ""
                    for by_metric in changes.values()
                ),
            ],
            "unseen" if unseen(name) else "",
        )
        for name in sorted(online["metrics"], key=unseen)
        if name in known
    ]
    shares = {
        "copies": "Copies of the query",
        "no_results": "Without results",
        "empty": "Empty",
    }
    body += [
        Row([title, *map(percent, column(rows, name)), "", ""], "quiet")
        for name, title in shares.items()
    ]
    lengths = [number(x, 1) for x in column(rows, "length")]
    body.append(Row(["Tokens", *lengths, "", ""], "quiet"))
    undefined = [label(ONLINE, n) for n in online["metrics"] if n not in known]
    return (
        paragraph(
            f"{online['queries']:,} held-out queries, the first {online['k']} products "
            "of each rewrite, as in MiniELM's Table 3. A copy finds the query's own "
            "products: its diversity is 0 by definition, which holds its reward down."
            + (
                f" Not defined in this run: {', '.join(undefined)}."
                if undefined
                else ""
            )
        )
        + table(
            [
                "",
                *(row["system"] for row in rows),
                *(f"{after} minus {than}" for than in changes),
            ],
            body,
            caption=f"Bold: best of the row. Shaded: not seen by training. {_MARKED}",
            kind="online",
        )
        + _pictured(
            images,
            "table-3",
            "The differences above with their 95 % intervals, on one scale; right of "
            "the line is higher. Filled points: the interval excludes 0. The diversity "
            "of a copy is 0 by definition, so the difference to it is left out.",
        )
    )


def figure_4(summary: Summary, images: Images) -> str:
    """The reward of both sides of the preferences while training."""
    tied, failed = (_known_mean(summary["training"], key) for key in ("tied", "failed"))
    counted = (
        f" {percent(tied)} of the queries had no preference, their rewrites tied; "
        f"{percent(failed)} of the rewrites had no reward, their judge failed."
    )
    return _pictured(
        images,
        "figure-4",
        "Mean reward of the preferred and of the other rewrite of a query, per update "
        f"(points) and over {WINDOW} updates (lines); MiniELM's Figure 4. The gap "
        "between them is there by construction: training should lift both."
        + (counted if math.isfinite(tied + failed) else ""),
    )


def curves(summary: Summary, images: Images) -> str:
    """Held-out measures over training."""
    dashed = " Dashed: sending the query unchanged." if "online" in summary else ""
    return _pictured(
        images,
        "rewards",
        f"The reward and its parts on held-out queries.{dashed} Every panel has its "
        "own scale.",
    ) + _pictured(
        images,
        "drift",
        "What moves when a policy games its reward: it leaves its start fast, its "
        "entropy collapses, its rewrites grow or shrink, or purchases rise with the "
        "shoppers that it trains on and not with the guard shoppers.",
    )


def table_5(summary: Summary, images: Images) -> str:
    """The same queries' rewrites over training."""
    rewrites = summary["rewrites"]
    steps = {int(step) for item in rewrites for step in item["by_step"]}
    shown = spaced(sorted(steps), EXAMPLE_STEPS)
    return table(
        ["query", *(f"t{i}: update {step:,}" for i, step in enumerate(shown))],
        [Row([escape(item["query"]), *_evolution(item, shown)]) for item in rewrites],
        caption="Greedy rewrites of the same held-out queries during training, and "
        "their rewards; MiniELM's Table 5. Pale: the same as in the column before.",
        kind="examples",
    )


def spaced(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, evenly spaced, the first and last among them.

    >>> spaced(list(range(0, 1001, 50)), 6)
    [0, 200, 400, 600, 800, 1000]
    """
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _evolution(item: Summary, steps: Sequence[int]) -> list[str]:
    cells, last = [], None
    for step in map(str, steps):
        text = item["by_step"].get(step)
        if text is None:
            cells.append("")
            continue
        kind = "same" if text == last else "new"
        shown = escape(text) if text.strip() else "<i>(empty)</i>"
        reward = number(value(item["total_by_step"], step), 2)
        cells.append(f'<span class="{kind}">{shown}</span> <small>{reward}</small>')
        last = text
    return cells


def _named_rows(
    rows: Sequence[Summary], name: str, columns: Sequence[Sequence[str]]
) -> list[Row]:
    return [
        Row([escape(row[name]), *cells], "copy" if row[name] == COPY else "")
        for row, *cells in zip(rows, *columns, strict=True)
    ]


def _change(item: Summary, digits: int, good: int = 1) -> list[str]:
    low, high = (number(value(item, side), digits) for side in ("low", "high"))
    return [
        signed(value(item, "difference"), digits),
        f'<span class="interval">{low} to {high}</span>',
        mark(clear(item), good=good),
    ]


def _known_mean(rows: Sequence[Summary], name: str) -> float:
    known = [x for x in column(rows, name) if math.isfinite(x)]
    return sum(known) / len(known) if known else math.nan


def _pictured(images: Images, name: str, caption: str) -> str:
    if name not in images:
        return ""
    return picture(*images[name], caption=escape(caption))
