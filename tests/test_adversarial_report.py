"""The page of an adversarial run: its words follow from its numbers."""

import copy
import json

import pytest

from jaxqr import report
from jaxqr.report.adversarial import figures, schema
from jaxqr.report.adversarial.verdict import verdict

NAMES = ("None", "Fine-tuned", "Adversarial RL")


def row(name, pr_auc):
    return {
        "strategy": name,
        "pr_auc": pr_auc,
        "pr_auc_interval": [pr_auc - 0.02, pr_auc + 0.02],
        "pr_auc_by_seed": [pr_auc, pr_auc],
        "pr_auc_by_class": {"E": pr_auc, "I": pr_auc},
        "ndcg": 0.8,
        "ndcg_interval": [0.7, 0.9],
        "ece": 0.05,
        "accuracy": 0.7,
        "macro_f1": 0.6,
    }


def table(names, values, spread=0.02):
    known = dict(zip(names, values, strict=True))
    pairs = [(a, b) for a in names for b in names if names.index(a) > names.index(b)]
    return {
        "rows": [row(name, value) for name, value in known.items()],
        "differences": [
            {
                "metric": "pr_auc",
                "strategy": after,
                "than": before,
                "difference": known[after] - known[before],
                "low": known[after] - known[before] - spread,
                "high": known[after] - known[before] + spread,
            }
            for after, before in pairs
        ],
        "categories": [
            {"category": "shoes > boots", "judgements": 900, "pr_auc": known}
        ],
        "floors": {"pr_auc": 0.3, "ndcg": 0.6},
        "judgements": 1200,
        "queries": 90,
        "seeds": 2,
    }


def make(values=(0.4, 0.5, 0.6), spread=0.02):
    cycles = ["cycle 0", "cycle 1"]
    written = {
        "set": "cycle 0",
        "classifier_loss": 2.0,
        "fidelity": 0.5,
        "kl": 0.0,
        "logp_per_token": -1.5,
        "words": 4.0,
        "distinct_1": 0.3,
        "distinct_2": 0.6,
        "self_bleu": 0.4,
        "copied": 0.1,
        "kept": 800.0,
        **dict.fromkeys(schema.REASONS, 10.0),
    }
    return {
        "name": "adversarial-shop",
        "about": {
            "command": "python -m experiments.adversarial shop",
            "source": "shop",
            "labels": [{"name": "E", "gain": 1.0}, {"name": "I", "gain": 0.0}],
            "seeds": [0, 1],
            "cycles": 1,
            "alpha": 0.9,
            "kl_coef": 0.85,
            "pgen_sign": "formula",
            "max_loss": 5.0,
            "device": "cpu",
            "version": "1",
        },
        "split": {
            "products": 100,
            "queries": 50,
            "cold_products": 25,
            "unit": "category",
            "parts": {"train": {"rows": 10, "queries": 5, "products": 9}},
        },
        "strategies": {part: table(NAMES, values, spread) for part in ("cold", "test")},
        "cycles": {part: table(cycles, values[1:]) for part in ("cold", "test")},
        "synthetic": [written, written | {"set": "cycle 1", "fidelity": 0.4}],
        "real": [
            {"strategy": name, "part": part, "queries": 256, "rouge_l": 0.2}
            | ({"bert_score": 0.5} if part == "cold" else {})
            for part in ("cold", "test")
            for name in NAMES[1:]
        ],
        "training": [
            {
                "cycle": 1,
                "step": step,
                "score": 1.0 + step,
                "classifier_loss": 2.0,
                "kl": 0.1 * step,
                "entropy": 1.0,
                "clipped": 0.1,
                "length": 5.0,
            }
            for step in range(1, 4)
        ],
        "hard": [
            {
                "query": "<b>red</b> shoe",
                "product": "Red Boot",
                "label": "E",
                "checker_label": "I",
                "none": 0.1,
                "before": 0.2,
                "after": None,
            }
        ],
    }


@pytest.mark.parametrize(
    ("values", "headline"),
    [
        ((0.4, 0.5, 0.6), "Adversarial queries help"),
        ((0.4, 0.5, 0.51), "but not measurably better than queries of the fine-tuned"),
        ((0.4, 0.6, 0.5), "but worse than queries of the fine-tuned"),
        ((0.4, 0.5, 0.41), "of the fine-tuned generator help"),
        ((0.4, 0.41, 0.3), "Adversarial queries do harm"),
        ((0.4, 0.41, 0.41), "No clear gain"),
    ],
)
def test_the_headline(values, headline):
    told = verdict(make(values))
    assert headline in told.headline
    assert f"{values[0]:.3f}" in told.paragraphs[0]
    assert "guessing by the labels' frequency has 0.300" in told.paragraphs[0]


def test_the_verdict_names_what_it_costs():
    told = " ".join(verdict(make()).paragraphs)
    assert "confirms the label of 50.0\xa0% of the fine-tuned generator's" in told
    assert "of 40.0\xa0% after the last cycle" in told
    assert "products that are sold already" in told


def test_a_page_is_written(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(make()), encoding="utf-8")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "&lt;b&gt;red&lt;/b&gt; shoe" in page
    assert "<script" not in page
    for name in figures.NAMES:
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    for heading in ("Strategies", "Cycles", "Hard queries", "Definitions"):
        assert f">{heading}</h2>" in page
    assert "mean of 2 seeds" in page
    assert "shoes &gt; boots" in page


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("split", "cold_products"), "summary.split lacks cold_products"),
        (("synthetic", 0, "refuted"), r"summary.synthetic\[0\] lacks refuted"),
        (("strategies", "cold", "rows", 2), "has no 'Adversarial RL'"),
        (("hard", 0, "query"), r"summary.hard\[0\] lacks query"),
    ],
)
def test_a_summary_that_lacks_something(tmp_path, place, message):
    summary = copy.deepcopy(make())
    holder = summary
    for key in place[:-1]:
        holder = holder[key]
    del holder[place[-1]]
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        report.write(tmp_path)
    assert "python -m experiments.adversarial PRESET" in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_an_ablation_is_drawn():
    points = [
        {
            "value": value,
            "pr_auc_cold": 0.5,
            "interval_cold": [0.4, 0.6],
            "pr_auc_test": 0.7,
            "interval_test": [0.6, 0.8],
            "fidelity": 0.4,
        }
        for value in ("0.5", "0.9")
    ]
    image = figures.ablation({"parameter": "alpha", "points": points})
    assert image.png[:4] == b"\x89PNG"
    assert "By alpha: products never met 0.500, 0.500" in image.alt
