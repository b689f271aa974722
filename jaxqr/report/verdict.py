"""The report's conclusion, in words made from the numbers and from nothing else.

Relevance decides, because diversity rewards any change of the query: copying has none
by definition. A difference counts only if its whole interval is above or below 0,
and a relevance that the measures training never sees contradict is called mixed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxqr.report.definitions import (
    ALONE,
    COPY,
    FEEDBACK,
    ONLINE,
    QUERY,
    SERVED,
    Term,
    clear,
    differences,
    systems,
    value,
)
from jaxqr.report.format import number, percent, signed

Differences = Mapping[str, Mapping[str, Any]]


class Verdict(NamedTuple):
    """Plain text: a headline and the paragraphs under it."""

    headline: str
    paragraphs: tuple[str, ...]


def verdict(summary: Mapping[str, Any]) -> Verdict:
    """What the run shows, as far as it was evaluated."""
    if online := summary.get("online"):
        found = _online(online, summary["about"])
        if served := summary.get("served"):
            headline, paragraph = _served(served)
            return Verdict(headline, (paragraph, found.headline, *found.paragraphs))
        return found
    if offline := summary.get("offline"):
        return _offline(offline)
    return Verdict(
        "Nothing has been evaluated yet.",
        (
            "This run has neither offline nor online measurements, so it says nothing "
            "about whether rewriting helps.",
        ),
    )


def _served(served: Mapping[str, Any]) -> tuple[str, str]:
    """The first sentence of all, and what it rests on."""
    rows = {row["system"]: row for row in served["rows"]}
    to_query, to_rm3, to_alone = (
        {
            item["metric"]: item
            for item in served["differences"]
            if (item["system"], item["than"]) == (SERVED, than)
        }
        for than in (QUERY, FEEDBACK, ALONE)
    )
    main = "recall@50"
    sign, ndcg = clear(to_query[main]), clear(to_query["ndcg@10"])
    if not any(value(part, "open") for part in served["fitted"]):
        headline = "Rewrites do not help search: the gate serves every query alone."
    elif sign == 1 and ndcg == -1:
        headline = (
            "Mixed evidence: served with rewrites, queries find more of what is "
            "relevant, but the first ten products are worse."
        )
    elif sign == 1 and to_alone and clear(to_alone[main]) < 1:
        headline = (
            "Search is helped, but not clearly by rewrites: words of the query's first "
            "products alone do as much."
        )
    elif sign == 1:
        headline = "Rewrites help search: more of what is relevant is found."
    else:
        headline = {
            0: "Rewrites do not measurably help search.",
            -1: "Rewrites harm search: less of what is relevant is found.",
        }[sign]
    rival = {1: "better than", 0: "not clearly different from", -1: "worse than"}
    without = ""
    if to_alone:
        without = (
            f" Without rewrites, words of the first products alone hold "
            f"{number(value(rows[ALONE], main))}{_spread(to_alone, main)}."
        )
    answer = (
        f"Of all relevant products of {served['queries']:,} held-out queries, the "
        f"first 50 served hold {number(value(rows[SERVED], main))}, against "
        f"{number(value(rows[QUERY], main))} for the query as typed"
        f"{_spread(to_query, main)}. That is {rival[clear(to_rm3[main])]} expanding "
        "the query by RM3 without any training, "
        f"{number(value(rows[FEEDBACK], main))}{_spread(to_rm3, main)}."
        f"{without} nDCG@10 is "
        f"{number(value(rows[SERVED], 'ndcg@10'))}, against "
        f"{number(value(rows[QUERY], 'ndcg@10'))}{_spread(to_query, 'ndcg@10')}. "
        f"{percent(value(rows[SERVED], 'win'))} of the queries are better served, "
        f"{percent(value(rows[SERVED], 'loss'))} worse."
    )
    return headline, answer


def _online(online: Mapping[str, Any], about: Mapping[str, Any]) -> Verdict:
    copy, before, after = systems(online)
    to_copy = differences(online, copy["system"])
    to_before = differences(online, before["system"])
    answer = (
        f"After {online['updates']:,} updates the rewriter's relevance on "
        f"{online['queries']:,} held-out queries is "
        f"{number(value(after, 'relevance'))}, against "
        f"{number(value(before, 'relevance'))} before{_spread(to_before)} and "
        f"{number(value(copy, 'relevance'))} for copying the query{_spread(to_copy)}."
        + _diversity(before, after, to_before)
    )
    checks = [
        _unseen(
            "By measures that training never sees, compared with before:", to_before
        ),
        _unseen("Compared with copying the query:", to_copy),
        _gamed(to_before),
        _failures(online),
        "Clicks, additions to the cart and purchases are those of simulated shoppers"
        + (
            " in a synthetic shop; a real shop may differ."
            if about["source"] == "shop"
            else "; real ones may differ."
        ),
    ]
    headline = f"{_against_copy(to_copy)} {_against_before(to_before)}"
    return Verdict(headline, (answer, " ".join(filter(None, checks))))


def _against_copy(to_copy: Differences) -> str:
    if "relevance" not in to_copy:
        return "Rewriting has not been compared with copying the query."
    sign = clear(to_copy["relevance"])
    higher, lower = (_unseen_terms(to_copy, s) for s in (1, -1))
    opposed = lower if sign == 1 else higher if sign == -1 else []
    checks = [ONLINE[name] for name in to_copy if ONLINE[name].independent]
    if opposed:
        words = {1: ("above", "below"), -1: ("below", "above")}[sign]
        return (
            f"Mixed evidence: relevance is {words[0]} that of the query itself, but "
            f"{_names(opposed)}, which training never sees, {_is(opposed)} {words[1]}."
        )
    if sign == 1 and checks and not any(term in higher for term in checks):
        return (
            "Rewriting may help: by the model that training trusts, rewrites find more "
            f"relevant products than the query itself, but {_names(checks)} "
            f"{'do' if len(checks) > 1 else 'does'} not confirm it."
        )
    if sign == 0:
        moved = [
            f"{_names(terms)} {_is(terms)} {words}"
            for terms, words in ((higher, "higher"), (lower, "lower"))
            if terms
        ]
        return (
            "No clear gain: rewrites are not measurably more or less relevant than the "
            f"query itself{f', but {_list(moved)}' if moved else ''}."
        )
    if sign == 1:
        return (
            "Rewriting helps: rewrites find more relevant products than the query "
            "itself."
        )
    return (
        "Copying the query is better: rewrites find less relevant products than the "
        "query itself."
    )


def _against_before(to_before: Differences) -> str:
    if "relevance" not in to_before:
        return ""
    return {
        1: "Online training made the rewriter's results more relevant.",
        0: "Online training did not clearly change the rewriter's relevance.",
        -1: "Online training made the rewriter's results less relevant.",
    }[clear(to_before["relevance"])]


def _spread(by_metric: Differences, name: str = "relevance") -> str:
    if name not in by_metric:
        return ""
    item = by_metric[name]
    return (
        f" (difference {signed(value(item, 'difference'))}, 95 % interval "
        f"{number(value(item, 'low'))} to {number(value(item, 'high'))}"
        + ("" if clear(item) else ", which includes 0")
        + ")"
    )


def _diversity(
    before: Mapping[str, Any], after: Mapping[str, Any], to_before: Differences
) -> str:
    if "diversity" not in to_before:
        return ""
    verb = {1: "rose", 0: "did not clearly change", -1: "fell"}
    return (
        f" Diversity {verb[clear(to_before['diversity'])]}, from "
        f"{number(value(before, 'diversity'))} to "
        f"{number(value(after, 'diversity'))}{_spread(to_before, 'diversity')}."
    )


def _unseen_terms(by_metric: Differences, sign: int) -> list[Term]:
    """The measures training never sees whose difference is clearly has that sign."""
    return [
        ONLINE[name]
        for name, item in by_metric.items()
        if ONLINE[name].unseen and clear(item) == sign
    ]


def _unseen(opening: str, by_metric: Differences) -> str:
    words = {1: "higher", -1: "lower", 0: "not clearly different"}
    found = {sign: _unseen_terms(by_metric, sign) for sign in words}
    parts = [
        f"{_names(terms)} {_is(terms)} {words[sign]}"
        for sign, terms in found.items()
        if terms
    ]
    return f"{opening} {'; '.join(parts)}." if parts else ""


def _gamed(to_before: Differences) -> str:
    """A warning where the reward rose and something that training never sees fell."""
    fell = _unseen_terms(to_before, -1)
    if "total" not in to_before or clear(to_before["total"]) < 1 or not fell:
        return ""
    return (
        f"The reward rose while {_names(fell)} fell: training may be gaming the reward "
        "rather than serving shoppers."
    )


def _failures(online: Mapping[str, Any]) -> str:
    after = systems(online).after
    shares = [
        (value(after, "copy"), "copy the query"),
        (value(after, "no_results"), "find nothing"),
        (value(after, "empty"), "are empty"),
        (online["failed"][after["system"]], "could not be scored and are left out"),
    ]
    told = [f"{percent(share)} {what}" for share, what in shares if share > 0]
    return f"Of the rewrites, {_list(told)}." if told else ""


def _offline(offline: Mapping[str, Any]) -> Verdict:
    rows = offline["rows"]
    scores = {row["model"]: value(row, "rouge_l") for row in rows}
    copied = scores.pop(COPY, math.nan)
    known = {model: score for model, score in scores.items() if math.isfinite(score)}
    if not (known and math.isfinite(copied)):
        return Verdict("No rewriter has been compared with copying the query.", ())
    best = max(known, key=lambda model: known[model])
    headline = f"{best} has" if known[best] > copied else "No model has"
    return Verdict(
        f"{headline} a higher ROUGE-L than copying the query.",
        (
            f"On {offline['pairs']:,} held-out pairs of {offline['queries']:,} queries "
            f"{best} has the highest ROUGE-L of the models, {number(known[best], 1)}; "
            f"copying the query has {number(copied, 1)}. Agreeing with references is "
            "not success in search, and the online stage has not been evaluated in "
            "this run.",
        ),
    )


def _names(terms: Sequence[Term]) -> str:
    return _list([term.label[0].lower() + term.label[1:] for term in terms])


def _is(items: Sequence[Any]) -> str:
    return "are" if len(items) > 1 else "is"


def _list(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
