"""A run folder becomes figures and one page: `write(run)`.

Reads `run/summary.json`; writes `run/figures/*.png` and `run/report.html`, one file
without scripts that needs no network. The page says first, in words made from the
numbers, whether rewriting beats sending the query unchanged, then shows MiniELM's
Tables 2, 3 and 5 and its Figure 4 (arXiv 2501.18056), always beside that baseline.

summary.json
============

One JSON object (UTF-8), which `python -m experiments.evaluate PRESET` writes. `null`
stands for a number that is not defined in its place. Only `name` and `about` must be
there; every other section may be missing, `null` or empty, and is then left out of
the page with the command that makes it. In a section that is there the fields below
are expected; additional ones are ignored.

`name`          the run's name, a text
`about`         what was run: `command`, `source` ("shop", "esci" or "tables"),
                `products` and `queries` (counts), `device`, `version` of jaxqr, `seed`

`pairs`         the query pairs, `jaxqr.data.q2q.Statistics` as an object; each pair is
                counted once here, though both directions are used
  `queries`, `products`      queries with a relevant product; products relevant to one
  `skipped_products`         products that are relevant to too many queries
  `shared_at_least`          {"n": query pairs that share n or more products}
  `candidates`               pairs that share enough products
  `copies`, `rejected`       dropped: equal up to case and blanks; by the filter
  `verified`                 whether there was a filter for equivalence
  `pairs`                    pairs that were kept
  `components`, `largest_component`   connected components; queries in the largest
  `splits`                   {"train" | "validation" | "test":
                             {"pairs", "queries", "components"}}

`relevance`     M1 on judgements of held-out queries
  `rows`                     {"ranker", "accuracy", "macro_f1", "ndcg"} for "M1" and
                             for what it is compared with; all in [0, 1], nDCG@10 over
                             judged products
  `test_rows`, `test_queries`   how many judgements of how many queries

`offline`       rewrites against the held-out pairs: Table 2
  `pairs`, `queries`         how many held-out pairs (in one direction each), queries
  `rows`                     one per model, "copy the query" among them:
    `model`                  its name
    `exact_match`, `rouge_l`         of the greedy rewrite, in percent
    `rouge_l_sampled`        mean over 5 samples at temperature 1, in percent
    `nll_per_token`, `nll_per_sequence`   cross-entropy of the reference, in nats
    `reverse_kl`             KL(model || teacher), in nats per token; null for the
                             teacher itself
    `tokens`, `words`        mean length of a rewrite
  `comparisons`              {"metric", "model", "than", "difference", "low", "high"}:
                             mean paired difference `model - than` of a metric above
                             and its 95 % bootstrap interval, in the metric's unit

`online`        rewrites sent to the search engine: Table 3
  `queries`, `k`, `updates`  held-out queries, length of the lists, DPO updates
  `metrics`                  which of the metrics below the rows have, in table order:
    `total`                  the reward, a weighted mean of the next five
    `relevance`, `diversity`, `click`, `add_to_cart`, `purchase`   its parts
    `guard_click`, `guard_add_to_cart`, `guard_purchase`   by the guard shoppers,
                             whom training never meets
    `ndcg`                   nDCG@k over judged products
    `true_gain`              mean true gain, where a synthetic shop knows it
  `rows`                     one per system: "copy the query" first, then the rewriter
                             before, at last the rewriter after online training
    `system`                 its name
    every metric             mean over the queries, in [0, 1]
    `empty`, `no_results`, `copies`   shares of rewrites without text, without results,
                             and equal to the query, in [0, 1]
    `length`                 mean length of a rewrite in tokens
  `differences`              {"metric", "system", "than", "difference", "low", "high"}:
                             like `comparisons`, of the last system to the others

`curves`        the same held-out measures during training, one object per evaluation:
                `step`, the reward and its parts, `guard_purchase`, `kl` (to the policy
                at step 0) and `entropy` in nats per token, `length` in words
`training`      one object per update: `step`, `chosen_score` and `rejected_score`
                (mean reward of the two sides of the pairs that count), `reward`
                (of all candidates), `loss`, `tied` and `failed` (shares of queries
                without a preference, and of candidates whose judge failed)
`rewrites`      a few held-out queries over training: Table 5. Each has `query`,
                `by_step` {"step": rewrite} and `total_by_step` {"step": reward}
"""

import json
from pathlib import Path
from typing import Any

from jaxqr.report import figures, page
from jaxqr.report.definitions import COPY

_REMEDY = "write it with `python -m experiments.evaluate PRESET`"

_DIFFERENCE = "than metric difference low high"
_FIELDS: dict[str, tuple[type, str]] = {
    "name": (str, ""),
    "about": (dict, ""),
    "pairs": (dict, "splits"),
    "relevance": (dict, "rows test_rows test_queries"),
    "relevance.rows": (list, "ranker"),
    "offline": (dict, "pairs queries rows comparisons"),
    "offline.rows": (list, "model"),
    "offline.comparisons": (list, f"model {_DIFFERENCE}"),
    "online": (dict, "queries k updates metrics rows differences"),
    "online.rows": (list, "system"),
    "online.differences": (list, f"system {_DIFFERENCE}"),
    "curves": (list, "step"),
    "training": (list, "step"),
    "rewrites": (list, "query by_step total_by_step"),
}
"""JSON type of each part, and the fields of it or its items that cannot be missing."""


def write(run: Path) -> Path:
    """Writes `run/figures/*.png` and `run/report.html` and returns the page's path.

    Every file is written beside its place and renamed, the page last. A figure of an
    earlier page that this summary has no numbers for is removed.

    Raises:
        FileNotFoundError: there is no `run/summary.json`.
        ValueError: it is not JSON, or a section lacks a field.
    """
    summary = read(run)
    images = figures.draw(summary)
    html = page.render(summary, images)
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    for name in figures.NAMES:
        if name in images:
            _replace(folder / f"{name}.png", images[name].png)
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)
    path = run / "report.html"
    _replace(path, html.encode())
    return path


def read(run: Path) -> dict[str, Any]:
    """The checked `run/summary.json`, without the sections that are empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or a section lacks a field.
    """
    path = run / "summary.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: {_REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {_REMEDY}") from None
    problem = _problem(given)
    if problem:
        raise ValueError(f"{path}: {problem}: {_REMEDY}")
    return {name: part for name, part in given.items() if part and name in _FIELDS}


def _problem(given: Any) -> str:
    """What keeps a parsed summary from being shown; empty if nothing does."""
    if not isinstance(given, dict):
        return "not a JSON object"
    for name, (kind, fields) in _FIELDS.items():
        section, _, field = name.partition(".")
        part: Any = given.get(section)
        if not part and section not in ("name", "about"):
            continue
        part = part[field] if field else part
        if not isinstance(part, kind):
            return f"{name!r} is {type(part).__name__}, expected {kind.__name__}"
        for item in part if kind is list else [part]:
            known = item if isinstance(item, dict) else {}
            missing = [x for x in fields.split() if x not in known]
            if missing:
                return f"{name!r} lacks {', '.join(missing)}"
    if given.get("online"):
        names = [row["system"] for row in given["online"]["rows"]]
        if len(names) < 3 or names[0] != COPY:
            return (
                f"'online.rows' are {names}, expected {COPY!r}, the rewriter before "
                "and the rewriter after online training"
            )
    return ""


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
