"""The page of an adversarial run as HTML; the template escapes every text."""

from collections.abc import Mapping
from typing import Any

from jaxqr.report.adversarial.figures import PARTS, WINDOW
from jaxqr.report.adversarial.schema import REASONS
from jaxqr.report.adversarial.verdict import verdict
from jaxqr.report.definitions import column
from jaxqr.report.drawing import Image
from jaxqr.report.page import SOURCES, template
from jaxqr.report.tables import best_of

STRATEGIES = (
    ("None", "Real rows alone."),
    (
        "Prompted",
        "Real rows and queries of an instruct model that was only asked for them.",
    ),
    ("Fine-tuned", "Real rows and queries of the fine-tuned generator."),
    (
        "Adversarial RL",
        "Real rows and queries of the generator after the last cycle of PPO.",
    ),
)
TERMS = (
    (
        "PR-AUC",
        "Area under the precision-recall curve over all decisions (row, label), "
        "without interpolation: average precision, micro-averaged.",
    ),
    (
        "nDCG@10",
        "Of a query's judged products alone, ranked by expected gain; over queries "
        "whose products differ in gain. A random order has the floor given.",
    ),
    (
        "ECE",
        "Expected calibration error: how far the probability of the most probable "
        "label is from how often it is right. Lower is better.",
    ),
    (
        "Label fidelity",
        "Share of synthetic queries whose label an independent classifier gives them, "
        "one that learned from other queries and knows the cold products.",
    ),
    (
        "Classifier's loss",
        "Cross-entropy, against the label that was asked for, of the classifier that "
        "the queries were written against; in nats, not clipped here.",
    ),
    (
        "KL",
        "KL(generator || fine-tuned generator) along its own queries, nats per query.",
    ),
    ("Distinct-1, distinct-2", "Share of words, and of pairs of words, that differ."),
    ("Self-BLEU", "How much a query is like the others of its set; 1: it is there."),
    ("Copied", "Share of queries without a word that the product's text lacks."),
    (
        "95 % interval",
        "Between its bounds lie 95 % of the numbers when test queries and training "
        "seeds are resampled with replacement, all strategies on the same ones.",
    ),
)


def render(summary: Mapping[str, Any], images: Mapping[str, Image]) -> str:
    """The whole page."""
    about = summary["about"]
    return template("adversarial.html.j2").render(
        dict(summary)
        | {
            "verdict": verdict(summary),
            "images": images,
            "parts": [
                (title, summary["strategies"][part], _rows(summary["strategies"][part]))
                for part, title in PARTS.items()
            ],
            "labels": [label["name"] for label in about["labels"]],
            "part_names": PARTS,
            "reasons": REASONS,
            "source": SOURCES.get(about["source"], about["source"]),
            "window": WINDOW,
            "strategies_told": STRATEGIES,
            "terms": TERMS,
        }
    )


def _rows(table: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[Any]]]:
    """Each row with its cells: PR-AUC, nDCG, ECE, accuracy, and PR-AUC by label."""
    rows = table["rows"]
    columns = [
        best_of(column(rows, name), 3, better=better)
        for name, better in (("pr_auc", 1), ("ndcg", 1), ("ece", -1), ("accuracy", 1))
    ]
    by_class = [row["pr_auc_by_class"] for row in rows]
    columns += [best_of(column(by_class, n), 3, better=1) for n in by_class[0]]
    return list(zip(rows, map(list, zip(*columns, strict=True)), strict=True))
