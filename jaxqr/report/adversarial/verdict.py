"""The conclusion of an adversarial run, in words made from the numbers alone.

Products that the classifier has never met decide. A difference counts only if its whole
interval is above or below 0.
"""

from collections.abc import Mapping
from typing import Any

from jaxqr.report.adversarial.schema import ADVERSARIAL, NONE, TUNED
from jaxqr.report.definitions import clear, value
from jaxqr.report.format import number, percent, signed
from jaxqr.report.verdict import Verdict


def verdict(summary: Mapping[str, Any]) -> Verdict:
    """The headline, and the paragraphs that explain it."""
    cold = summary["strategies"]["cold"]
    to_tuned = difference(cold, ADVERSARIAL, TUNED)
    to_none = difference(cold, ADVERSARIAL, NONE)
    tuned = difference(cold, TUNED, NONE)
    paragraphs = [_table(cold), _known(summary["strategies"]["test"])]
    paragraphs += [_ranking(cold), _queries(summary)]
    return Verdict(
        _headline(to_none, to_tuned, tuned), tuple(p for p in paragraphs if p)
    )


def difference(table: Mapping[str, Any], after: str, before: str) -> Mapping[str, Any]:
    """Of PR-AUC, between two strategies."""
    return next(
        item
        for item in table["differences"]
        if (item["metric"], item["strategy"], item["than"]) == ("pr_auc", after, before)
    )


def _headline(
    to_none: Mapping[str, Any], to_tuned: Mapping[str, Any], tuned: Mapping[str, Any]
) -> str:
    helps, better = clear(to_none), clear(to_tuned)
    if helps > 0 and better > 0:
        return (
            "Adversarial queries help: with them the classifier is better on products "
            "that it has never met, and better than with queries of the fine-tuned "
            "generator."
        )
    if helps > 0:
        than = {
            0: "but not measurably better than queries of the fine-tuned generator",
            -1: "but worse than queries of the fine-tuned generator, which need no "
            "reinforcement learning",
        }[better]
        return (
            "Synthetic queries help on products that the classifier has never met; "
            f"adversarial ones do, {than}."
        )
    if clear(tuned) > 0:
        return (
            "Synthetic queries of the fine-tuned generator help on products that the "
            "classifier has never met; adversarial ones do not measurably."
        )
    if helps < 0:
        return (
            "Adversarial queries do harm: the classifier is worse on products that it "
            "has never met than without any synthetic query."
        )
    return (
        "No clear gain: synthetic queries did not measurably change the classifier on "
        "products that it has never met."
    )


def _table(cold: Mapping[str, Any]) -> str:
    known = {row["strategy"]: row for row in cold["rows"]}
    told = ", ".join(f"{n} {number(value(r, 'pr_auc'))}" for n, r in known.items())
    seeds = cold["seeds"]
    return (
        f"PR-AUC on {cold['judgements']:,} judgements of {cold['queries']:,} new "
        f"queries with cold products, mean of {seeds} seed{'s' if seeds > 1 else ''}: "
        f"{told}; guessing by the labels' frequency has "
        f"{number(cold['floors']['pr_auc'])}. Adversarial minus fine-tuned "
        f"{_spread(difference(cold, ADVERSARIAL, TUNED))}, "
        f"fine-tuned minus none {_spread(difference(cold, TUNED, NONE))}."
    )


def _known(test: Mapping[str, Any]) -> str:
    item = difference(test, ADVERSARIAL, NONE)
    words = {1: "better", 0: "not clearly different", -1: "worse"}[clear(item)]
    return (
        "On new queries with products that are sold already, the classifier with "
        f"adversarial queries is {words} than without any: {_spread(item)}."
    )


def _ranking(cold: Mapping[str, Any]) -> str:
    known = {row["strategy"]: value(row, "ndcg") for row in cold["rows"]}
    if any(x != x for x in known.values()):
        return ""
    return (
        "Ranked by expected gain, judged products have nDCG@10 "
        + ", ".join(f"{number(x)} ({name})" for name, x in known.items())
        + f"; a random order has {number(cold['floors']['ndcg'])}."
    )


def _queries(summary: Mapping[str, Any]) -> str:
    sets = [row for row in summary["synthetic"] if row["set"].startswith("cycle")]
    first, last = sets[0], sets[-1]
    return (
        "An independent classifier confirms the label of "
        f"{percent(value(first, 'fidelity'))} of the fine-tuned generator's queries "
        f"and of {percent(value(last, 'fidelity'))} after the last cycle."
    )


def _spread(item: Mapping[str, Any]) -> str:
    low, high = (number(value(item, bound)) for bound in ("low", "high"))
    return f"{signed(value(item, 'difference'))} (95 % interval {low} to {high})"
