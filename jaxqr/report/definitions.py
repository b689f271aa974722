"""What the numbers of a report are called and mean."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

COPY = "copy the query"
"""The name of the baseline that sends the query unchanged."""

QUERY = "the query as typed"
"""The same in the table of what is served."""

FEEDBACK = "RM3, untrained"
"""The baseline that learns nothing, and reads the query's first products."""

ALONE = "words chosen from first products alone"
"""What a choice of words gains that knows no rewrites."""

SERVED = "served"
"""What the gate lets shoppers see: the query's own list, or one with its rewrites."""

CEILING = "ceiling: "
"""How systems begin that know what is relevant."""

REWARD = ("total", "relevance", "diversity", "click", "add_to_cart", "purchase")
"""The reward and its parts."""

GUARD = ("guard_click", "guard_add_to_cart", "guard_purchase")
"""The parts that shoppers decide, by a pool that training never meets."""

SHARES = {
    "copy": "Copies of the query",
    "no_results": "Without results",
    "empty": "Empty",
}
"""Shares of rewrites: equal to the query, finding nothing, without text; in [0, 1]."""

PAIRS = {
    "queries": "queries with a relevant product",
    "products": "products relevant to a query",
    "skipped_products": "products skipped, relevant to too many queries",
    "candidates": "candidate pairs",
    "copies": "candidates dropped, equal up to case and whitespace",
    "rejected": "candidates rejected by the filter",
    "pairs": "pairs kept",
    "components": "connected components",
    "largest_component": "queries in the largest component",
}
"""What is counted of the query pairs."""


class Term(NamedTuple):
    """One measure: its name in tables, and its definition.

    `{gains}` in a definition stands for the labels of the collection and their gains.
    """

    label: str
    meaning: str
    unseen: bool = False
    """Whether online training never sees it, so that it cannot be gamed directly."""
    independent: bool = False
    """Whether M1 takes no part in it either."""


RELEVANCE = {
    "accuracy": Term(
        "Accuracy", "Share of judgements whose label is M1's most probable one."
    ),
    "macro_f1": Term(
        "Macro-F1",
        "F1 of each label, averaged over the labels, so that rare ones count as much.",
    ),
    "ndcg": Term(
        "nDCG@10",
        "Normalized discounted cumulative gain of a query's judged products, ranked by "
        "M1's expected gain; averaged over queries whose products differ in gain.",
    ),
}

OFFLINE = {
    "exact_match": Term(
        "Exact match (%)",
        "Share of rewrites that equal the reference up to case, whitespace and the "
        "encoding of accents.",
    ),
    "rouge_l": Term(
        "ROUGE-L (%)",
        "F1 of the longest common subsequence of words of rewrite and reference, "
        "times 100. Of the greedy rewrite.",
    ),
    "rouge_l_sampled": Term(
        "ROUGE-L, sampled (%)",
        "The same of samples at temperature 1, averaged over 5 of every query, as "
        "MiniLLM reports it: what online training, which samples, starts from.",
    ),
    "nll_per_token": Term(
        "NLL per token",
        "Cross-entropy of the reference given the query, in nats, the end of text "
        "included, divided by its tokens. Lower is better.",
    ),
    "nll_per_sequence": Term(
        "NLL per rewrite", "The same, summed over the tokens of one reference."
    ),
    "reverse_kl": Term(
        "Reverse KL",
        "KL(model || teacher) in nats per token: how far the model is from what it "
        "was distilled from. Lower is nearer.",
    ),
    "tokens": Term("Tokens", "Mean length of a rewrite in tokens."),
    "words": Term("Words", "Mean length of a rewrite in words."),
}

ONLINE = {
    "total": Term(
        "Reward",
        "Weighted mean of relevance, diversity, click, add to cart and purchase: what "
        "online training maximizes.",
    ),
    "relevance": Term(
        "Relevance",
        "Mean of M1(original query, product) over the products that the rewrite "
        "finds. M1 is a classifier fine-tuned on relevance judgements; its expected "
        "gain counts {gains}.",
    ),
    "diversity": Term(
        "Diversity",
        "Share of the products found by the rewrite that the original query does not "
        "find; 0 for a copy by definition, and no virtue without relevance.",
    ),
    "click": Term(
        "Click",
        "Expected share of the listed products that a simulated shopper, who typed "
        "the original query, clicks.",
    ),
    "add_to_cart": Term(
        "Add to cart", "The same for products added to the cart, after a click."
    ),
    "purchase": Term(
        "Purchase", "The same for products bought, after they were added."
    ),
    "guard_click": Term(
        "Guard click",
        "Clicks of a second pool of shoppers, which training never meets. They share "
        "M1 with the first, so they guard against fitting shoppers, not against "
        "fitting M1.",
        unseen=True,
    ),
    "guard_add_to_cart": Term(
        "Guard add to cart",
        "Additions to the cart by that second pool.",
        unseen=True,
    ),
    "guard_purchase": Term(
        "Guard purchase", "Purchases by that second pool.", unseen=True
    ),
    "ndcg": Term(
        "Judged nDCG",
        "Normalized discounted cumulative gain of the rewrite's list over judged "
        "products only; products without a judgement are skipped. Queries count whose "
        "list was fully judged and has a relevant product. M1 takes no part.",
        unseen=True,
        independent=True,
    ),
    "true_gain": Term(
        "True gain",
        "Mean gain of the listed products by the rule that the synthetic shop was "
        "made with. M1 takes no part.",
        unseen=True,
        independent=True,
    ),
}

SERVING = {
    "recall@20": Term(
        "Recall@20",
        "Share of all relevant products of the query that are among the first 20 "
        "served. Queries count whose list was fully judged; in the synthetic shop all, "
        "and its exact products are the relevant ones.",
    ),
    "recall@50": Term("Recall@50", "The same among the first 50."),
    "recall@100": Term("Recall@100", "The same among the first 100."),
    "ndcg@10": Term(
        "nDCG@10",
        "Normalized discounted cumulative gain of the first 10 products, over all "
        "products with a gain; those without a judgement gain nothing.",
    ),
    "reward": Term(
        "Reward of the list", "The reward of the list that is served, as in training."
    ),
}
"""Of what is served. None of them but the last is what training sees."""

CHANGES = {"win": "Better", "loss": "Worse"}
"""Shares of queries whose recall@50 differs by more than 0.05 from that of the query
as typed."""

CURVES = {
    "kl": Term(
        "KL to the start",
        "KL(policy || policy at update 0) along sampled rewrites, in nats per token.",
    ),
    "entropy": Term(
        "Entropy",
        "Mean entropy of the next token along sampled rewrites, in nats per token.",
    ),
    "length": Term("Length of a rewrite", "Mean words of a greedy rewrite."),
}


def value(item: Mapping[str, Any], name: str) -> float:
    """A number of the summary; NaN where it is null, not defined."""
    given = item[name]
    return math.nan if given is None else float(given)


def clear(difference: Mapping[str, Any]) -> int:
    """1 or -1 where the whole interval is above or below 0; 0 where it includes 0."""
    return (value(difference, "low") > 0) - (value(difference, "high") < 0)


class Systems(NamedTuple):
    """The rows of the online table that conclusions are drawn from."""

    copy: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]


def systems(online: Mapping[str, Any]) -> Systems:
    """The baseline, the rewriter before, and the rewriter after online training."""
    rows = online["rows"]
    return Systems(rows[0], rows[1], rows[-1])


def differences(online: Mapping[str, Any], than: str) -> dict[str, dict[str, Any]]:
    """By metric, how the rewriter after training differs from the system `than`."""
    after = systems(online).after["system"]
    return {
        item["metric"]: item
        for item in online["differences"]
        if (item["system"], item["than"]) == (after, than)
        and not math.isnan(value(item, "difference"))
    }


def column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One number of every row, NaN where it is null."""
    return [value(row, name) for row in rows]
