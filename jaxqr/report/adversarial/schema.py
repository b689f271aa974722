"""The fields of an adversarial run's `summary.json`; see `jaxqr.report.schema`."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxqr.report.schema import NUMBER, mismatches

NONE, TUNED, ADVERSARIAL = "None", "Fine-tuned", "Adversarial RL"
"""Strategies that every run has; "Prompted" may stand between them."""

_TABLE = {
    "rows": [
        {
            "strategy": str,
            "pr_auc": NUMBER,
            "pr_auc_interval": [NUMBER],
            "pr_auc_by_seed": [NUMBER],
            "pr_auc_by_class": {str: NUMBER},
            "ndcg": NUMBER,
            "ndcg_interval": [NUMBER],
            "ece": NUMBER,
            "accuracy": NUMBER,
            "macro_f1": NUMBER,
        }
    ],
    "differences": [
        {
            "metric": ("pr_auc", "ndcg"),
            "strategy": str,
            "than": str,
            "difference": NUMBER,
            "low": NUMBER,
            "high": NUMBER,
        }
    ],
    "categories": [{"category": str, "judgements": int, "pr_auc": {str: NUMBER}}],
    "floors": {"pr_auc": NUMBER, "ndcg": NUMBER},
    "judgements": int,
    "queries": int,
    "seeds": int,
}

_TABLES = {"cold": _TABLE, "test": _TABLE}

REASONS = ("empty", "unfinished", "real", "duplicate", "refuted")
"""Why drafts are left out."""

SUMMARY = {
    "name": str,
    "about": {
        "command": str,
        "source": str,
        "labels": [{"name": str, "gain": float}],
        "seeds": [int],
        "cycles": int,
        "alpha": float,
        "kl_coef": float,
        "pgen_sign": str,
        "max_loss": float,
        "device": str,
        "version": str,
    },
    "split": {
        "products": int,
        "queries": int,
        "cold_products": int,
        "unit": str,
        "parts": {str: {"rows": int, "queries": int, "products": int}},
    },
    "strategies": _TABLES,
    "cycles": _TABLES,  # a row for each cycle's classifier
    "synthetic": [  # a row for each set of queries, means over seeds
        {
            "set": str,
            "classifier_loss": NUMBER,
            "fidelity": NUMBER,
            "kl": NUMBER,
            "logp_per_token": NUMBER,
            "words": NUMBER,
            "distinct_1": NUMBER,
            "distinct_2": NUMBER,
            "self_bleu": NUMBER,
            "copied": NUMBER,
            "kept": NUMBER,
            **dict.fromkeys(REASONS, NUMBER),
        }
    ],
    "real": [  # written for products and labels of real queries; `bert_score` too, F1,
        {  # where an encoder was given
            "strategy": str,
            "part": ("cold", "test"),
            "queries": int,
            "rouge_l": NUMBER,
        }
    ],
    "training": [  # every rollout of the first seed
        {
            "cycle": int,
            "step": int,
            "score": NUMBER,
            "classifier_loss": NUMBER,
            "kl": NUMBER,
            "entropy": NUMBER,
            "clipped": NUMBER,
            "length": NUMBER,
        }
    ],
    "hard": [
        {
            "query": str,
            "product": str,
            "label": str,
            "checker_label": str,
            "none": NUMBER,
            "before": NUMBER,
            "after": NUMBER,
        }
    ],
}


def problems(summary: Any) -> list[str]:
    """What keeps a parsed summary from being shown; see `report.schema.problems`."""
    found = list(mismatches(summary, SUMMARY, "summary"))
    return found or list(_disagreements(summary))


def _disagreements(summary: Mapping[str, Any]) -> Iterator[str]:
    for part, table in summary["strategies"].items():
        names = [row["strategy"] for row in table["rows"]]
        for name in (NONE, TUNED, ADVERSARIAL):
            if name not in names:
                yield f"summary.strategies.{part}.rows has no {name!r}, only {names}"
