import copy
import io
import json
import math
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxqr import report
from jaxqr.report import drawing, figures, page, schema, tables
from jaxqr.report.definitions import ALONE, FEEDBACK, QUERY, SERVED
from jaxqr.report.verdict import verdict

COPY, BEFORE, AFTER = "copy the query", "before (distill)", "after online DPO"
EVIL = "<script>alert('x')</script> & \"3/4\" bolt"
VOID = {"meta", "img", "br"}

SYSTEMS = {  # copy, before, after
    "total": (0.25, 0.30, 0.39),
    "relevance": (0.412, 0.354, 0.441),
    "diversity": (0.0, 0.48, 0.52),
    "click": (0.37, 0.32, 0.42),
    "add_to_cart": (0.25, 0.21, 0.32),
    "purchase": (0.179, 0.141, 0.231),
    "guard_purchase": (0.178, 0.143, 0.221),
    "ndcg": (0.801, 0.762, 0.833),
    "true_gain": (None, None, None),
}


def difference(metric, than, low, high):
    return {
        "metric": metric,
        "system": AFTER,
        "than": than,
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
    }


def undefined(metric, than):
    unknown = dict.fromkeys(("difference", "low", "high"))
    return {"metric": metric, "system": AFTER, "than": than} | unknown


SERVING = {  # recall@50, nDCG@10, wins, losses, searches
    QUERY: (0.412, 0.351, 0.0, 0.0, 1),
    FEEDBACK: (0.431, 0.366, 0.21, 0.13, 2),
    "with terms of 1 rewrite": (0.467, 0.372, 0.38, 0.09, 1),
    SERVED: (0.478, 0.391, 0.37, 0.04, 1.25),
    "ceiling: the catalogue's words": (0.912, 0.934, 0.8, 0.01, 1),
}


def make_served() -> dict:
    metrics = ["recall@50", "ndcg@10"]
    compared = [(name, QUERY) for name in list(SERVING)[1:]] + [(SERVED, FEEDBACK)]
    return {
        "queries": 321,
        "metrics": metrics,
        "rows": [
            {"system": name, "recall@50": recall, "ndcg@10": ndcg, "searches": searches}
            | {"no_results": 0.0, "win": win, "loss": loss}
            for name, (recall, ndcg, win, loss, searches) in SERVING.items()
        ],
        "differences": [
            {"metric": metric, "system": name, "than": than}
            | {"difference": d, "low": d - 0.01, "high": d + 0.01}
            for name, than in compared
            for i, metric in enumerate(metrics)
            for d in [SERVING[name][i] - SERVING[than][i]]
        ],
        "segments": [
            {
                "segment": "misspelled",
                "queries": 77,
                "rows": [
                    {"system": name, "recall@50": row[0] - 0.1}
                    | {"difference": 0.066, "low": 0.041, "high": 0.088}
                    for name, row in SERVING.items()
                ],
            }
        ],
        "fitted": [
            {
                "queries": 321,
                "validation": 99,
                "way": "with terms of 3 rewrites",
                "gate": [{"feature": "confidence", "least": -1.25}],
                "open": 0.625,
            }
        ],
        "harm": 0.1,
        "examples": [
            {"query": "gain", "change": 0.5, "gained": ["t1", "t2", "t3"], "lost": []}
        ],
    }


def make_summary() -> dict:
    names = list(SYSTEMS)
    return {
        "name": "quick & dirty",
        "about": {
            "source": "shop",
            "products": 6000,
            "queries": 2100,
            "device": "cpu",
            "version": "0.1.0",
            "seed": 7,
            "command": "python -m experiments.pipeline quickstart",
            "labels": [
                {"name": "Exact", "gain": 1.0},
                {"name": "Partial", "gain": 0.5},
                {"name": "Irrelevant", "gain": 0},
            ],
        },
        "served": make_served(),
        "pairs": {
            "queries": 2000,
            "products": 5500,
            "skipped_products": 12,
            "shared_at_least": {"1": 9000, "2": 4321},
            "candidates": 4321,
            "copies": 5,
            "rejected": 0,
            "verified": False,
            "pairs": 4316,
            "components": 512,
            "largest_component": 41,
            "splits": {
                "train": {"pairs": 3012, "queries": 1203, "components": 330},
                "test": {"pairs": 1304, "queries": 797, "components": 182},
            },
        },
        "relevance": {
            "rows": [
                {"ranker": "M1", "accuracy": 0.731, "macro_f1": 0.552, "ndcg": 0.884},
                {"ranker": "BM25", "accuracy": None, "macro_f1": None, "ndcg": 0.823},
            ],
            "test_rows": 1012,
            "test_queries": 23,
        },
        "offline": {
            "pairs": 444,
            "queries": 260,
            "rows": [
                {"model": COPY, "exact_match": 0.0, "rouge_l": 40.14}
                | {"rouge_l_sampled": 40.14}
                | {"nll_per_token": None, "nll_per_sequence": None}
                | {"reverse_kl": None, "tokens": 5.1, "words": 3.2},
                {"model": "SFT student", "exact_match": 1.8, "rouge_l": 35.2}
                | {"rouge_l_sampled": 27.4}
                | {"nll_per_token": 3.125, "nll_per_sequence": 15.91}
                | {"reverse_kl": 0.412, "tokens": 5.0, "words": 3.1},
                {"model": "distilled student", "exact_match": 2.2, "rouge_l": 37.9}
                | {"rouge_l_sampled": 33.8}
                | {"nll_per_token": 3.221, "nll_per_sequence": 16.44}
                | {"reverse_kl": 0.251, "tokens": 4.9, "words": 3.0},
            ],
            "comparisons": [
                {"metric": metric, "model": "distilled student", "than": "SFT student"}
                | {"difference": d, "low": low, "high": high}
                for metric, d, low, high in (
                    ("rouge_l", 2.7, 0.4, 5.0),
                    ("reverse_kl", -0.16, -0.2, -0.12),
                    ("nll_per_token", 0.1, 0.05, 0.15),
                )
            ],
        },
        "online": {
            "queries": 214,
            "split": "test",
            "k": 20,
            "updates": 1000,
            "metrics": names,
            "counts": dict.fromkeys(names, 214) | {"ndcg": 115, "true_gain": 0},
            "failed": {COPY: 0.0, BEFORE: 0.0, AFTER: 0.0},
            "rows": [
                {"system": system, "empty": 0.0, "no_results": 0.25 * i}
                | {"copy": [1.0, 0.11, 0.0625][i], "length": 5.0 + i}
                | {name: SYSTEMS[name][i] for name in names}
                for i, system in enumerate((COPY, BEFORE, AFTER))
            ],
            "differences": [
                *(difference(n, BEFORE, 0.0412, 0.0766) for n in names[:-1]),
                *(difference(n, COPY, 0.0093, 0.0487) for n in names[:-1]),
                *(undefined("true_gain", than) for than in (BEFORE, COPY)),
            ],
        },
        "curves_split": "validation",
        "curves": [
            dict.fromkeys((*names[:-1], "kl", "entropy"), 0.3 + step / 500)
            | dict.fromkeys(("guard_click", "guard_add_to_cart"), 0.2)
            | dict.fromkeys(("copy", "no_results", "empty", "failed"), 0.0)
            | {"step": step, "length": 3.0, "tokens": 4.0}
            for step in range(0, 101, 10)
        ],
        "training": [
            {"step": step, "chosen_score": 0.4, "rejected_score": 0.2 + step / 1000}
            | {"reward": 0.3, "loss": 0.69, "tied": 0.125, "failed": 0.0}
            for step in range(1, 101)
        ],
        "rewrites": [
            {
                "query": query,
                "by_step": {str(s): f"{query} at {s // 60}" for s in range(0, 101, 10)},
                "total_by_step": {str(s): s / 100 for s in range(0, 101, 10)},
            }
            for query in ("red shoes", EVIL)
        ],
    }


class Page(HTMLParser):
    """Rows of cell texts, the text without tags, attributes; tags must balance."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.bold: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if "b" in self.open:
            self.bold.append(data)
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def images():
    return figures.draw(make_summary())


@pytest.fixture(scope="module")
def html(images):
    return page.render(make_summary(), images)


def written(tmp_path, summary):
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return report.write(tmp_path)


def test_write_makes_page_and_figures(tmp_path):
    path = written(tmp_path, make_summary())
    assert path == tmp_path / "report.html"
    names = {p.name for p in (tmp_path / "figures").iterdir()}
    assert names == {f"{name}.png" for name in figures.NAMES}
    assert {p.name for p in tmp_path.iterdir()} == {
        "summary.json",
        "report.html",
        "figures",
    }
    again = path.read_bytes()
    assert report.write(tmp_path).read_bytes() == again


def test_tables_hold_every_value(html):
    rows = {row[0]: row[1:] for row in Page(html).rows}
    assert rows["train"] == ["3,012", "1,203", "330"]
    assert rows["M1"] == ["0.731", "0.552", "0.884"]
    assert rows["BM25"] == ["–", "–", "0.823"]
    distilled = ["2.2", "37.9", "33.8", "3.221", "16.44", "0.251", "4.9", "3.0"]
    assert rows["distilled student"] == distilled
    assert rows[COPY] == ["0.0", "40.1", "40.1", "–", "–", "–", "5.1", "3.2"]
    assert rows["Relevance"] == [
        "0.412",
        "0.354",
        "0.441",
        "+0.059 0.041 to 0.077 ▲",
        "+0.029 0.009 to 0.049 ▲",
    ]
    labels = ["Reward", "Relevance", "Diversity", "Click", "Purchase"]
    for label in [*labels, "Add to cart", "Guard purchase", "Judged nDCG (115)"]:
        assert len(rows[label]) == 5
    assert "True gain" not in rows
    assert "Not defined in this run: True gain" in html
    assert rows["Copies of the query"][:3] == ["100.0\xa0%", "11.0\xa0%", "6.2\xa0%"]
    assert rows["Without results"][:3] == ["0.0\xa0%", "25.0\xa0%", "50.0\xa0%"]
    assert rows["Tokens"][:3] == ["5.0", "6.0", "7.0"]
    reverse_kl = rows["Reverse KL: distilled student minus SFT student"]
    assert reverse_kl == ["−0.16", "−0.20 to −0.12", "▼"]


def test_best_values_are_bold_and_the_copy_competes(html):
    bold = Page(html).bold
    assert "40.1" in bold  # the copy's ROUGE-L
    assert "0.441" in bold
    assert "3.125" in bold  # lower NLL
    assert "0.251" in bold  # lower reverse KL
    assert not {"0.412", "37.9", "3.221", "3.0", "5.1"} & {*bold}


@pytest.mark.parametrize(
    ("row", "kind", "sign"),
    [("ROUGE-L", "above", "▲"), ("Reverse KL", "above", "▼"), ("NLL", "below", "▲")],
)
def test_marks_colour_what_is_better_and_not_what_is_higher(html, row, kind, sign):
    (line,) = [x for x in html.splitlines() if "distilled student" in x and row in x]
    assert re.search(rf'class="{kind}"[^>]*>{sign}<', line)


@pytest.mark.parametrize(
    ("low", "high", "sign"),
    [(0.01, 0.02, "▲"), (-0.02, -0.01, "▼"), (-0.01, 0.01, "○"), (0.0, 0.02, "○")],
)
def test_an_interval_counts_only_beyond_zero(images, low, high, sign):
    summary = make_summary()
    summary["online"]["differences"] = [
        undefined("click", BEFORE),
        difference("click", COPY, low, high),
    ]
    rows = {row[0]: row[1:] for row in Page(page.render(summary, images)).rows}
    assert rows["Click"][3] == ""
    assert rows["Click"][4].endswith(sign)


HOSTILE = [
    EVIL,
    '"><img src=x onerror=alert(1)>',
    "</style></section><!-- {{ 7 * 7 }} {% raw %} {gains} %s",
    "&amp; &lt;b&gt; 3/4\" x 2'",
    "\u202eكابل شاحن\u202c \u2066usb\u2069",
    "waterproof " * 400 + "x" * 4000,
]


def made_of(text) -> dict:
    """A valid summary with the text in every place where a run may put any text."""
    summary = make_summary()
    summary["name"] = text
    summary["about"] |= dict.fromkeys(("command", "source", "device", "version"), text)
    summary["about"]["labels"][1]["name"] = text
    summary["relevance"]["rows"][1]["ranker"] = text
    served = summary["served"]
    served["fitted"][0]["way"] = served["segments"][0]["segment"] = text
    served["fitted"][0]["gate"][0]["feature"] = text
    served["examples"][0] |= {"query": text, "gained": [text, "t2", "t3"]}
    summary["offline"]["rows"][1]["model"] = text
    summary["offline"]["comparisons"][0] |= {"model": text, "than": text}
    online = summary["online"]
    online["rows"][2]["system"] = text
    online["failed"][text] = online["failed"].pop(AFTER)
    for item in online["differences"]:
        item["system"] = text
    example, other = summary["rewrites"]
    other |= {"query": "plain", "by_step": dict.fromkeys(other["by_step"], "plain")}
    example |= {"query": text, "by_step": dict.fromkeys(example["by_step"], text)}
    return summary


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_every_text_arrives_as_text(images, html, text):
    summary = made_of(text)
    assert schema.problems(summary) == []
    alt = {name: image._replace(alt=text) for name, image in images.items()}
    parsed = Page(page.render(summary, alt))
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in Page(html).tags]
    # title, h1, what is served: way, gate, kind, query and gained; source twice, gains,
    # BM25 twice, Table 2, its comparison twice, Table
    # 3 and its two differences, query, six steps, run, command, device, version
    assert "".join(parsed.words).count(text) == 29
    assert [a["alt"] for tag, a in parsed.tags if tag == "img"] == [text] * 4


def test_no_text_is_marked_as_safe():
    folder = Path(page.__file__).parent
    for path in (*folder.glob("*.py"), *folder.glob("templates/*")):
        assert not re.search(
            r"\|\s*safe\b|Markup|autoescape false", path.read_text()
        ), path
    for path in folder.glob("*.py"):
        assert not re.search(r"</?[a-z]+[^-]*>", path.read_text().split('"""', 2)[2])


def test_the_page_is_self_contained(html):
    parsed = Page(html)
    targets = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    for _, attrs in parsed.tags:
        for name in {"src", "href", "srcset", "action", "data"} & attrs.keys():
            link = attrs[name] or ""
            assert link.startswith("data:image/png;base64,") or link[1:] in targets
        assert not [name for name in attrs if name.startswith("on")]
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.tags}
    assert not re.search(r"url\(|@import|https?:", html)


def test_images_have_words_and_are_not_blank(images):
    from matplotlib.image import imread

    assert {*images} == {*figures.NAMES}
    for image in images.values():
        pixels = imread(io.BytesIO(image.png))[..., :3]
        assert pixels.shape[1] == 1680
        assert pixels.std() > 0.02
        blue = np.array([0x00, 0x72, 0xB2]) / 255
        assert (np.abs(pixels - blue).max(axis=-1) < 0.02).sum() > 100
        assert len(image.alt) > 40
        assert "nan" not in image.alt
    assert "Relevance +0.059 (0.041 to 0.077) against before" in images["table-3"].alt
    assert images["table-3"].alt.count("Relevance") == 2
    assert images["table-3"].alt.count("Diversity") == 1  # not against the copy
    assert "Relevance 0.300 to 0.500, copy 0.412" in images["rewards"].alt


def test_the_forest_shows_worse_as_another_colour():
    from matplotlib.image import imread

    online = make_summary()["online"]
    online["differences"] = [difference("click", COPY, -0.2, -0.1)]
    pixels = imread(io.BytesIO(figures.forest(online).png))[..., :3]
    vermilion = np.array([0xD5, 0x5E, 0x00]) / 255
    assert (np.abs(pixels - vermilion).max(axis=-1) < 0.02).sum() > 100


def test_names_in_figures_are_no_formulas():
    summary = make_summary()
    before = r"before ($\frac{$)"
    summary["online"]["rows"][1]["system"] = before
    for item in summary["online"]["differences"]:
        if item["than"] == BEFORE:
            item["than"] = before
    image = figures.draw({"online": summary["online"]})["table-3"]
    assert f"against {before}" in image.alt


def test_moving_average_is_the_mean_of_what_is_known():
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    values[[3, 10, 11, 12, 13, 14, 15]] = np.nan
    expected = []
    for end in range(1, 41):
        known = [x for x in values[max(end - 5, 0) : end] if not math.isnan(x)]
        expected.append(sum(known) / len(known) if known else math.nan)
    np.testing.assert_allclose(drawing.moving_average(values, 5), expected)
    assert math.isnan(expected[14])


# The verdict


def judged(relevance, *, ndcg=(0.01, 0.05), before=(0.01, 0.05), total=None):
    """The verdict where these are the intervals, to the copy but for `before`."""
    summary = make_summary() | {"served": None}
    summary["online"]["differences"] = [
        difference("relevance", COPY, *relevance),
        difference("ndcg", COPY, *ndcg),
        difference("relevance", BEFORE, *before),
        difference("ndcg", BEFORE, *ndcg),
        *([difference("total", BEFORE, *total)] if total else []),
    ]
    return verdict(summary)


POSITIVE, NULL, NEGATIVE = (0.01, 0.05), (-0.02, 0.03), (-0.05, -0.01)


@pytest.mark.parametrize(
    ("relevance", "ndcg", "opening"),
    [
        (POSITIVE, POSITIVE, "Rewriting helps:"),
        (POSITIVE, NULL, "Rewriting may help:"),
        (POSITIVE, NEGATIVE, "Mixed evidence: relevance is above"),
        (NULL, NULL, "No clear gain:"),
        (NULL, NEGATIVE, "No clear gain:"),
        (NEGATIVE, NULL, "Copying the query is better:"),
        (NEGATIVE, NEGATIVE, "Copying the query is better:"),
        (NEGATIVE, POSITIVE, "Mixed evidence: relevance is below"),
    ],
)
def test_the_headline_follows_the_intervals(relevance, ndcg, opening):
    assert judged(relevance, ndcg=ndcg).headline.startswith(opening)


@pytest.mark.parametrize(
    ("before", "words"),
    [(POSITIVE, "more relevant."), (NULL, "not clearly"), (NEGATIVE, "less relevant.")],
)
def test_the_headline_tells_what_training_did(before, words):
    assert words in judged(POSITIVE, before=before).headline.split(". ")[1] + "."


def test_the_verdict_gives_numbers_and_admits_intervals_that_include_zero():
    first = judged(NULL, before=POSITIVE).paragraphs[0]
    assert first == (
        "After 1,000 updates the rewriter's relevance on 214 held-out queries is "
        "0.441, against 0.354 before (difference +0.030, 95 % interval 0.010 to 0.050) "
        "and 0.412 for copying the query (difference +0.005, 95 % interval −0.020 to "
        "0.030, which includes 0)."
    )


def test_the_verdict_says_how_diversity_moved_and_what_failed():
    *_, first, second = verdict(make_summary()).paragraphs
    assert "Diversity rose, from 0.480 to 0.520 (difference +0.059" in first
    assert "guard purchase and judged nDCG are higher" in second
    assert "6.2\xa0% copy the query and 50.0\xa0% find nothing." in second
    assert "synthetic shop" in second


def test_the_verdict_warns_when_the_reward_is_gamed():
    warning = "The reward rose while judged nDCG fell"
    assert warning in judged(POSITIVE, ndcg=NEGATIVE, total=POSITIVE).paragraphs[1]
    assert warning not in judged(POSITIVE, ndcg=NULL, total=POSITIVE).paragraphs[1]
    assert warning not in judged(POSITIVE, ndcg=NEGATIVE, total=NULL).paragraphs[1]


def changed(recall, ndcg, opened=0.625):
    """The verdict on a run whose served lists differ so from the query's."""
    summary = make_summary()
    summary["served"]["fitted"][0]["open"] = opened
    for item in summary["served"]["differences"]:
        if (item["system"], item["than"]) == (SERVED, QUERY):
            low, high = recall if item["metric"] == "recall@50" else ndcg
            item |= {"difference": (low + high) / 2, "low": low, "high": high}
    return verdict(summary)


@pytest.mark.parametrize(
    ("recall", "ndcg", "opened", "opening"),
    [
        (POSITIVE, NULL, 0.5, "Rewrites help search: more"),
        (POSITIVE, NEGATIVE, 0.5, "Mixed evidence: served with rewrites"),
        (NULL, POSITIVE, 0.5, "Rewrites do not measurably help"),
        (NEGATIVE, NULL, 0.5, "Rewrites harm search"),
        (NULL, NULL, 0.0, "Rewrites do not help search: the gate serves"),
    ],
)
def test_the_first_sentence_is_what_search_gains(recall, ndcg, opened, opening):
    assert changed(recall, ndcg, opened).headline.startswith(opening)


def test_the_first_paragraph_gives_the_numbers_of_what_is_served():
    answer, online, *_ = verdict(make_summary()).paragraphs
    assert answer == (
        "Of all relevant products of 321 held-out queries, the first 50 served hold "
        "0.478, against 0.412 for the query as typed (difference +0.066, 95 % interval "
        "0.056 to 0.076). That is better than expanding the query by RM3 without any "
        "training, 0.431 (difference +0.047, 95 % interval 0.037 to 0.057). nDCG@10 is "
        "0.391, against 0.351 (difference +0.040, 95 % interval 0.030 to 0.050). "
        "37.0\xa0% of the queries are better served, 4.0\xa0% worse."
    )
    assert online.startswith("Rewriting")


@pytest.mark.parametrize(
    ("low", "opening"),
    [(0.01, "Rewrites help search"), (-0.01, "Search is helped, but not clearly by")],
)
def test_rewrites_have_to_do_more_than_first_products(low, opening):
    summary = make_summary()
    served = summary["served"]
    for rows in (served["rows"], served["segments"][0]["rows"]):
        rows.append(rows[2] | {"system": ALONE})
    known = [x for x in served["differences"] if x["than"] == QUERY]
    served["differences"] += [
        x | {"system": ALONE} for x in known if x["system"] == SERVED
    ] + [
        {"metric": metric, "system": SERVED, "than": ALONE}
        | {"difference": low + 0.02, "low": low, "high": low + 0.04}
        for metric in served["metrics"]
    ]
    assert schema.problems(summary) == []
    told = verdict(summary)
    assert told.headline.startswith(opening)
    assert (
        "Without rewrites, words of the first products alone hold 0.467 (diff"
        in (told.paragraphs[0])
    )


def test_what_is_served_is_told_row_by_row(html):
    parsed = Page(html)
    rows = {row[0]: row[1:] for row in parsed.rows}
    assert rows[SERVED] == [
        *("0.478", "0.391", "+0.066 0.056 to 0.076 ▲"),
        *("37.0\xa0%", "4.0\xa0%", "1.2"),
    ]
    assert rows[QUERY][2] == ""
    # the best of what can be had; the ceiling is none
    assert {"0.478", "0.391"} <= {*parsed.bold}
    assert "0.912" not in parsed.bold
    assert rows["misspelled"][:4] == ["77", "0.312", "0.331", "0.378"]
    assert rows["gain"][:2] == ["+0.500", "t1; t2 and 1 more"]
    assert "62.5 % of the queries, those of confidence −1.250 or more" in parsed.text


def test_the_verdict_without_the_online_stage():
    summary = make_summary()
    del summary["online"]
    told = verdict(summary)
    assert told.headline == "No model has a higher ROUGE-L than copying the query."
    assert "distilled student has the highest" in told.paragraphs[0]
    summary["offline"]["rows"][1]["rouge_l"] = 45.0
    told = verdict(summary)
    assert told.headline == "SFT student has a higher ROUGE-L than copying the query."
    del summary["offline"]
    assert verdict(summary).headline == "Nothing has been evaluated yet."


# Sections


@pytest.mark.parametrize(
    ("key", "stage", "lost"),
    [
        ("served", "online_dpo", set()),
        ("pairs", "prepare", set()),
        ("relevance", "relevance", set()),
        ("offline", "distill", set()),
        ("online", "online_dpo", {"table-3"}),
        ("training", "online_dpo", {"figure-4"}),
        ("curves", "online_dpo", {"rewards", "drift"}),
        ("rewrites", "online_dpo", set()),
    ],
)
def test_a_missing_section_is_left_out_with_its_command(html, images, key, stage, lost):
    summary = make_summary()
    del summary[key]
    kept = {name: image for name, image in images.items() if name not in lost}
    shorter = Page(page.render(summary, kept)).text
    sentence = f"To make it: python -m experiments.{stage} PRESET , then"
    assert shorter.count(sentence) == 1
    assert sentence not in Page(html).text


def test_a_run_without_sections_has_a_page(tmp_path):
    written(tmp_path, make_summary())
    summary = {"name": "bare", "about": make_summary()["about"]}
    path = written(tmp_path, summary | {"curves": [], "online": None})
    assert Page(path.read_text()).text.count("Not part of this run yet.") == 8
    assert not list((tmp_path / "figures").iterdir())  # those of the page before


def test_numbers_that_are_not_defined_are_dashes(tmp_path):
    def without_numbers(given):
        if isinstance(given, dict):
            return {k: without_numbers(v) for k, v in given.items()}
        if isinstance(given, list):
            return [without_numbers(x) for x in given]
        return None if isinstance(given, float) else given

    summary = without_numbers(make_summary())
    summary["about"] = make_summary()["about"]
    summary["online"]["failed"] = make_summary()["online"]["failed"]
    summary["training"][7]["chosen_score"] = summary["curves"][2]["kl"] = math.nan
    text = written(tmp_path, summary).read_text()
    rows = {row[0]: row[1:] for row in Page(text).rows}
    assert rows["SFT student"] == ["–"] * 8
    assert rows["Without results"] == [*["–"] * 3, "", ""]
    assert "Not defined in this run: Reward, Relevance, Diversity, Click" in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()


def test_one_undefined_number_is_a_dash_and_its_difference_is_left_out(images):
    summary = make_summary()
    summary["online"]["rows"][0]["relevance"] = None
    summary["online"]["differences"][0] = undefined("total", BEFORE)
    rows = {row[0]: row[1:] for row in Page(page.render(summary, images)).rows}
    assert rows["Relevance"][:3] == ["–", "0.354", "0.441"]
    assert rows["Reward"][3] == ""


def test_table_3_counts_the_queries_where_not_all_are_known(images):
    summary = make_summary()
    online = summary["online"]
    online["counts"]["click"] = 209
    online["failed"] = {COPY: 0.0, BEFORE: 0.0125, AFTER: 0.04}
    parsed = Page(page.render(summary, images))
    heads = [row[0] for row in parsed.rows]
    assert "Click (209)" in heads
    assert "Judged nDCG (115)" in heads
    assert "Reward" in heads
    rows = {row[0]: row[1:] for row in parsed.rows}
    assert rows["Not scored"] == ["0.0\xa0%", "1.2\xa0%", "4.0\xa0%", "", ""]
    caption = "In parentheses: how many of the 214 queries the measure is known for"
    assert caption in parsed.text
    assert "Judged nDCG counts only fully judged queries." in parsed.text
    assert "4.0\xa0% could not be scored and are left out." in " ".join(
        verdict(summary).paragraphs
    )
    online["counts"] = dict.fromkeys(online["counts"], 214)
    online["metrics"].remove("ndcg")
    text = Page(page.render(summary, images)).text
    assert "In parentheses" not in text
    assert "fully judged queries." not in text


def test_the_split_of_table_and_curves_is_said(images):
    summary = make_summary()
    text = Page(page.render(summary, images)).text
    assert "on test queries, the curves below on validation queries." in text
    assert "parts, measured on validation queries; dashed: sending the query" in text
    assert "on the test queries of Table 3" in text
    assert "on validation queries" in images["rewards"].alt
    summary["online"]["split"], summary["curves_split"] = "validation", "train"
    text = Page(page.render(summary, images)).text
    assert "on validation queries, the curves below on train queries." in text
    without = {k: v for k, v in summary.items() if not k.startswith("curves")}
    text = Page(page.render(without, images)).text
    assert "Measured on validation queries. Bold" in text
    del summary["online"]
    text = Page(page.render(summary, images)).text
    assert "measured on train queries. Every panel" in text


def test_curves_say_how_many_queries_an_evaluation_could_not_score(images):
    summary = make_summary()
    assert "could not be scored" not in page.render(summary, images)
    summary["curves"][4]["failed"] = 0.031
    assert "At most 3.1\xa0% of the queries of an" in page.render(summary, images)


def test_the_gains_of_the_labels_are_those_of_the_collection(images, html):
    assert "its expected gain counts Exact 1, Partial 0.5, Irrelevant 0." in html
    summary = make_summary()
    summary["about"]["labels"] = [{"name": "{0}", "gain": 0.125}]
    assert "gain counts {0} 0.125." in page.render(summary, images)


def test_examples_show_evenly_spaced_steps(html):
    rows = Page(html).rows
    (head,) = [row for row in rows if row[0] == "query"]
    steps = [0, 20, 40, 60, 80, 100]
    assert head[1:] == [f"t{i}: update {step}" for i, step in enumerate(steps)]
    (shoes,) = [row for row in rows if row[0] == "red shoes"]
    rewards = ["0.00", "0.20", "0.40", "0.60", "0.80", "1.00"]
    texts = [f"red shoes at {n} {r}" for n, r in zip("000111", rewards, strict=True)]
    assert shoes[1:] == texts
    kinds = re.findall(r'<span class="(same|new)" dir="auto">red shoes at', html)
    assert kinds == ["new", "same", "same", "new", "same", "same"]


def test_an_empty_rewrite_is_named_and_a_missing_one_is_blank(images):
    summary = make_summary()
    del summary["rewrites"][0]["by_step"]["0"]
    summary["rewrites"][0]["total_by_step"]["40"] = None
    summary["rewrites"][0]["by_step"]["20"] = " "
    cells = {r[0]: r[1:] for r in Page(page.render(summary, images)).rows}["red shoes"]
    assert cells[:3] == ["", "(empty) 0.20", "red shoes at 0 –"]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 20, 21])
def test_spaced_keeps_both_ends(count):
    steps = list(range(0, 50 * count, 50))
    chosen = tables.spaced(steps, 6)
    assert len(chosen) == min(count, 6)
    assert chosen == sorted({*chosen})
    assert (chosen[0], chosen[-1]) == (steps[0], steps[-1])
    gaps = np.diff(chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= 50


def test_m1_that_does_not_beat_bm25_is_not_trusted(images):
    summary = make_summary()
    assert "Do not trust" not in page.render(summary, images)
    summary["relevance"]["rows"][0]["ndcg"] = 0.8
    assert "<bdi>BM25</bdi>, 0.823. Do not trust" in page.render(summary, images)


# What cannot be read


def test_a_missing_summary_names_the_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"summary\.json.*experiments\.evaluate"
    ):
        report.write(tmp_path)


def broken(change):
    summary = copy.deepcopy(make_summary())
    change(summary)
    return json.dumps(summary)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "summary is [], expected an object"),
        (b"\xff\xfe", "not JSON"),
        (broken(lambda s: s.pop("name")), "summary lacks name"),
        (broken(lambda s: s.update(about=None)), "summary.about is null, expected an"),
        (broken(lambda s: s.update(curves={"step": 1})), "curves is {"),
        (
            broken(lambda s: s["offline"].update(rows=3)),
            "offline.rows is 3, expected a",
        ),
        (broken(lambda s: s.update(training=[1, 2])), "training[0] is 1, expected an"),
        (broken(lambda s: s["online"].update(k=True)), "k is true, expected a whole"),
        (broken(lambda s: s["online"].update(k=1.5)), "k is 1.5, expected a whole"),
        (broken(lambda s: s["online"].update(split="all")), "expected train or valid"),
        (broken(lambda s: s["pairs"]["splits"].update(dev={})), 'is "dev", expected'),
        (
            broken(lambda s: s["about"].update(seed="7")),
            'seed is "7", expected a whole',
        ),
        (
            broken(lambda s: s["curves"][3].update(kl="1")),
            'curves[3].kl is "1", expect',
        ),
        (broken(lambda s: s["online"]["rows"].pop()), "expected 'copy the query'"),
        (broken(lambda s: s["online"]["rows"].reverse()), "expected 'copy the query'"),
        (
            broken(lambda s: s["online"]["rows"][1].update(ndcg="high")),
            'rows[1].ndcg is "high", expected a number',
        ),
        (
            broken(lambda s: s["online"]["metrics"].extend(["recall", "clicks"])),
            "online.metrics has unknown metrics clicks, recall; known: ['total'",
        ),
        (
            broken(lambda s: s["offline"]["comparisons"][0].update(metric="bleu")),
            "offline.comparisons has unknown metrics bleu",
        ),
        (
            broken(lambda s: s["online"]["metrics"].remove("click")),
            "metrics lacks click",
        ),
        (
            broken(lambda s: s["online"]["differences"].pop(2)),
            "from 'after online DPO' to 'before (distill)' lacks diversity",
        ),
        (broken(lambda s: s["online"].update(metrics=[])), "metrics lacks total, rele"),
        (broken(lambda s: s.pop("curves_split")), "summary lacks curves_split"),
        (
            broken(lambda s: s["rewrites"][1]["total_by_step"].pop("10")),
            "rewrites[1].total_by_step lacks 10",
        ),
        (
            broken(lambda s: s["rewrites"][1]["by_step"].update(last="x")),
            "rewrites[1].by_step has the keys ['last']",
        ),
    ],
)
def test_a_corrupt_summary_is_refused_and_the_page_kept(tmp_path, text, problem):
    (tmp_path / "report.html").write_text("before")
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(problem)) as error:
        report.write(tmp_path)
    assert str(tmp_path / "summary.json") in str(error.value)
    assert "python -m experiments.evaluate PRESET" in str(error.value)
    assert (tmp_path / "report.html").read_text() == "before"


def fields(given, place="summary"):
    """(place, object, key) of every key of the objects in a summary."""
    if isinstance(given, dict):
        for key, inner in given.items():
            yield place, given, key
            yield from fields(inner, f"{place}.{key}")
    elif isinstance(given, list):
        for i, inner in enumerate(given[:2]):
            yield from fields(inner, f"{place}[{i}]")


NEEDED = [
    (place, key)
    for place, _, key in fields(make_summary())
    if not re.search(r"shared_at_least$|splits$|by_step$", place)  # keys of any name
    and (place != "summary" or key in ("name", "about", "curves_split"))
    and not (place.startswith("summary.training") and key in ("reward", "loss"))
    and not (place.startswith("summary.curves") and key == "ndcg")
]


@pytest.mark.parametrize(("place", "key"), NEEDED, ids=lambda x: x)
def test_no_field_can_be_missing(tmp_path, place, key):
    summary = make_summary()
    (owner,) = [o for p, o, k in fields(summary) if (p, k) == (place, key)]
    del owner[key]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="lacks") as error:
        report.read(tmp_path)
    assert f"{place} lacks {key}" in str(error.value)
    assert "write it with `python -m experiments.evaluate PRESET`" in str(error.value)


def test_all_missing_fields_of_all_sections_are_listed_at_once(tmp_path):
    summary = make_summary()
    del summary["online"]["k"], summary["online"]["failed"], summary["about"]["seed"]
    del summary["offline"]["rows"][2]["words"], summary["offline"]["queries"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="lacks") as error:
        report.read(tmp_path)
    for words in (
        "summary.online lacks k, failed",
        "summary.about lacks seed",
        "summary.offline lacks queries",
        "summary.offline.rows[2] lacks words",
    ):
        assert words in str(error.value)


def test_further_fields_are_ignored(tmp_path, html):
    summary = make_summary() | {"later": {"x": 1}}
    summary["relevance"]["rows"][0]["nll"] = 0.7
    assert written(tmp_path, summary).read_text() == html


def test_the_templates_are_package_data():
    root = Path(__file__).parent.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    folder = root / "jaxqr" / "report"
    packed = {
        path
        for pattern in settings["package-data"]["jaxqr.report"]
        for path in folder.glob(pattern)
    }
    assert {p for p in folder.rglob("*") if p.suffix in (".j2", ".css")} == packed
    assert len(packed) > len(page.SECTIONS)


def test_importing_it_is_cheap():
    code = (
        "import sys, jaxqr.report;"
        "print({'jax', 'matplotlib', 'flax', 'pandas'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
