"""Every table of a run, on held-out queries, as data.

    python -m experiments.evaluate quickstart

Writes `runs/NAME/summary.json` (fields: `jaxqr.report`): Table 2 on test pairs, copy
baseline first; Table 3 before and after online DPO beside copying the query, with
paired bootstrap intervals; the curves of Figure 4; Table 5's rewrites over time.
CPU: a minute and a half for quickstart.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxqr
from experiments import prepare, scoring, training
from experiments.layout import launch, require, write_json
from experiments.online_dpo import sample
from jaxqr import metrics
from jaxqr.report.definitions import COPY
from jaxqr.rewards.reward import PARTS
from jaxqr.train import rollout
from jaxqr.train.log import read_metrics
from jaxqr.train.rollout import Sampling

INTERACTIONS = ("click", "add_to_cart", "purchase")


@dataclass(frozen=True)
class Config:
    """Evaluation of a run's finished stages."""

    run: Path = Path("runs/quickstart")
    pairs: int = 10_000
    """Most test pairs in the offline table."""
    queries: int = 500
    """Most held-out queries in the online table."""
    online: str = "online"
    """The online stage that is evaluated."""
    seed: int = 0


PRESETS = {name: Config(run=Path("runs") / name) for name in prepare.PRESETS}

MODELS = {
    "warmed-up student": "warmup-student",
    "SFT student": "sft-student",
    "distilled student": "distill",
    "SFT teacher": "sft-teacher",
}
"""Rows of the offline table and the stages they come from; further distillations in
`distill-*` follow."""


class Offline(NamedTuple):
    """Numbers of one system, one entry per test pair."""

    exact_match: np.ndarray
    rouge_l: np.ndarray
    rouge_l_sampled: np.ndarray
    tokens: np.ndarray
    words: np.ndarray
    nll: np.ndarray | None = None
    target_tokens: np.ndarray | None = None
    reverse_kl: np.ndarray | None = None

    def row(self, name: str) -> dict[str, Any]:
        """The line of the table: means over pairs, per token where it says so."""
        row: dict[str, Any] = {
            "model": name,
            "exact_match": 100 * float(self.exact_match.mean()),
            "rouge_l": 100 * float(self.rouge_l.mean()),
            "rouge_l_sampled": 100 * float(self.rouge_l_sampled.mean()),
            "nll_per_token": None,
            "nll_per_sequence": None,
            "reverse_kl": None,
            "tokens": float(self.tokens.mean()),
            "words": float(self.words.mean()),
        }
        if self.nll is not None and self.target_tokens is not None:
            row["nll_per_token"] = float(self.nll.sum() / self.target_tokens.sum())
            row["nll_per_sequence"] = float(self.nll.mean())
        if self.reverse_kl is not None and self.target_tokens is not None:
            row["reverse_kl"] = float(self.reverse_kl.sum() / self.target_tokens.sum())
        return row


def main(config: Config) -> None:
    """Evaluates what is there."""
    data = prepare.load(config.run)
    console = Console()
    summary: dict[str, Any] = {
        "name": config.run.name,
        "about": _about(config, data),
        "pairs": _read(config.run / "data" / "statistics.json")["pairs"],
    }
    if (config.run / "relevance" / "evaluation.json").exists():
        summary["relevance"] = _read(config.run / "relevance" / "evaluation.json")
    if (config.run / "sft-teacher" / "done").exists():
        summary["offline"] = offline(config, data)
        _show(console, "Offline, test pairs", _turned(summary["offline"]["rows"]))
    if (config.run / config.online / "done").exists():
        summary["online"] = online(config, data)
        _show(console, "Online, held-out queries", _by_metric(summary["online"]))
        lines = read_metrics(config.run / config.online / "metrics.jsonl")
        summary["curves"] = [x for x in lines if x["kind"] == "evaluation"]
        summary["training"] = [x for x in lines if x["kind"] == "train"]
        summary["rewrites"] = _rewrites(config.run / config.online / "rewrites.jsonl")
    write_json(config.run / "summary.json", summary)
    console.print(f"wrote {config.run / 'summary.json'}")


def _about(config: Config, data: prepare.Prepared) -> dict[str, Any]:
    settings = _read(config.run / "data" / "config.json")
    return {
        "source": settings["source"],
        "products": len(data.collection.products),
        "queries": len(data.collection.split),
        "device": jax.devices()[0].device_kind,
        "version": jaxqr.__version__,
        "seed": settings["seed"],
        "command": " ".join(["python -m", *_command()]),
    }


def _command() -> list[str]:
    """The module that was started, and its arguments."""
    return [f"experiments.{Path(sys.argv[0]).stem}", *sys.argv[1:]]


def offline(config: Config, data: prepare.Prepared) -> dict[str, Any]:
    """Table 2: every finished stage on the test pairs, the copy baseline first."""
    pairs = training.sample_pairs(data.pairs["test"], config.pairs, config.seed)
    queries = list(dict.fromkeys(query for query, _ in pairs))
    *teacher, teachers, how = training.load_stage(config.run / "sft-teacher")
    settings = _read(config.run / "sft-teacher" / "config.json")
    sampling = Sampling(settings["max_source"], settings["max_target"], temperature=0.0)
    copies = {query: query for query in queries}
    systems = {COPY: _texts(data.tokenizer, copies, [copies], pairs)}
    stages = MODELS | {"student after online DPO": config.online}
    stages |= {path.name: path.name for path in sorted(config.run.glob("distill-*"))}
    for name, stage in stages.items():
        if not (config.run / stage / "done").exists():
            continue
        if stage == "sft-teacher":
            system, beside = (*teacher, teachers), None
        else:
            *system, _ = training.load_stage(config.run / stage, how.fsdp)
            beside = teacher
            try:
                teachers.check_same(system[2], "teacher", name)
            except ValueError as error:
                Console().print(f"{name}: no reverse KL to the teacher, as {error}")
                beside = None
        systems[name] = _offline(system, pairs, queries, beside, sampling)
    comparisons = [
        comparison
        for better, worse in (
            ("SFT student", "warmed-up student"),
            ("distilled student", "SFT student"),
        )
        if better in systems and worse in systems
        for comparison in _compare_offline(systems, better, worse, pairs)
    ]
    return {
        "pairs": len(pairs),
        "queries": len(queries),
        "rows": [system.row(name) for name, system in systems.items()],
        "comparisons": comparisons,
    }


def _texts(
    tokenizer, greedy: Mapping[str, str], samples: Sequence[Mapping[str, str]], pairs
) -> Offline:
    """Numbers of texts, each given by query."""
    references = [rewrite for _, rewrite in pairs]

    def of_pairs(texts: Mapping[str, str]) -> list[str]:
        return [texts[query] for query, _ in pairs]

    written = of_pairs(greedy)
    sampled = [metrics.rouge_l(of_pairs(texts), references) for texts in samples]
    return Offline(
        metrics.exact_match(written, references),
        metrics.rouge_l(written, references),
        np.mean(sampled, axis=0),
        np.array([len(ids) for ids in tokenizer.encode(written)]),
        np.array([len(text.split()) for text in written]),
    )


def _offline(system, pairs, queries, teacher, sampling: Sampling) -> Offline:
    """Numbers of a model; of its divergence from the teacher, if one is given."""
    model, params, tokenizer = system
    greedy, drawn = (
        rollout.rewrite(
            model, params, tokenizer, queries, jax.random.key(0), sampling=s, n=n
        )
        for s, n in (
            (sampling, 1),
            (sampling._replace(temperature=1.0), training.SAMPLES),
        )
    )
    written, *samples = (
        dict(zip(queries, texts, strict=True))
        for texts in (*zip(*greedy, strict=True), *zip(*drawn, strict=True))
    )
    columns = training.measured(
        model,
        params,
        tokenizer,
        pairs,
        max_source=sampling.max_source,
        max_target=sampling.max_new_tokens,
        teacher=teacher,
    )
    return _texts(tokenizer, written, samples, pairs)._replace(
        nll=columns.nll,
        target_tokens=columns.tokens,
        reverse_kl=columns.reverse_kl if teacher else None,
    )


def _compare_offline(systems, better, worse, pairs) -> list[dict[str, Any]]:
    """Paired differences per query, so that a query with many pairs counts once."""
    names = [query for query, _ in pairs]
    results = []
    scales = {"rouge_l": 100, "rouge_l_sampled": 100, "nll": 1, "reverse_kl": 1}
    for metric, scale in scales.items():
        a, b = (getattr(systems[name], metric) for name in (worse, better))
        if a is None or b is None:
            continue
        if scale == 1:
            # Per token, as in the table.
            a = a / systems[worse].target_tokens
            b = b / systems[better].target_tokens
        results.append(
            {
                "metric": "nll_per_token" if metric == "nll" else metric,
                "model": better,
                "than": worse,
            }
            | _difference(scale * by_query(a, names), scale * by_query(b, names))
        )
    return results


def by_query(values: np.ndarray, queries: Sequence[str]) -> np.ndarray:
    """Means of the rows of each query, in order of first appearance."""
    index = {query: i for i, query in enumerate(dict.fromkeys(queries))}
    rows = np.array([index[query] for query in queries])
    return np.bincount(rows, values) / np.bincount(rows)


def online(config: Config, data: prepare.Prepared) -> dict[str, Any]:
    """Table 3: copying, before and after online DPO, on held-out queries."""
    settings = _read(config.run / config.online / "config.json")
    queries = sample(data.searchable["test"], config.queries, config.seed)
    scorers = scoring.build(
        config.run, data, k=settings["k"], weights=settings["weights"]
    )
    sampling = Sampling(
        settings["max_source"], settings["max_new_tokens"], temperature=0.0
    )
    before = f"before ({settings['start']})"
    after = "after online DPO"
    systems = {
        COPY: queries,
        before: _write(config.run / settings["start"], queries, sampling),
        after: _write(config.run / config.online, queries, sampling),
    }
    numbers, flags = {}, {}
    for name, rewrites in systems.items():
        numbers[name], flags[name] = _online(scorers, queries, rewrites)
    shown = list(numbers[after])
    return {
        "queries": len(queries),
        "k": settings["k"],
        "updates": settings["optimisation"]["num_steps"],
        "metrics": shown,
        "rows": [
            {"system": name}
            | {metric: float(np.nanmean(numbers[name][metric])) for metric in shown}
            | flags[name]
            | _length(data.tokenizer, systems[name])
            for name in systems
        ],
        "differences": [
            {"metric": metric, "system": after, "than": than}
            | _difference(numbers[than][metric], numbers[after][metric])
            for than in (before, COPY)
            for metric in shown
        ],
    }


def _write(stage: Path, queries: Sequence[str], sampling: Sampling) -> list[str]:
    model, params, tokenizer, _ = training.load_stage(
        require(stage, "python -m experiments.pipeline PRESET")
    )
    texts = rollout.rewrite(
        model, params, tokenizer, queries, jax.random.key(0), sampling=sampling
    )
    return [text[0] for text in texts]


def _online(
    scorers: scoring.Scorers, queries: Sequence[str], rewrites: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    reward, guard = scorers.reward(queries, rewrites), scorers.guard(queries, rewrites)

    def known(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        return np.where(valid, values, np.nan)

    numbers = {"total": known(reward.total, reward.valid)}
    numbers |= {name: known(reward.parts[name], reward.valid) for name in PARTS}
    numbers |= {
        f"guard_{name}": known(guard.parts[name], guard.valid) for name in INTERACTIONS
    }
    ndcg = scorers.ndcg(queries, rewrites)
    if not np.isnan(ndcg).all():
        numbers["ndcg"] = ndcg
    if scorers.true_gain:
        numbers["true_gain"] = scorers.true_gain(queries, rewrites)
    renamed = {"copy": "copies"}
    flags = {renamed.get(k, k): float(np.mean(v)) for k, v in reward.flags.items()}
    return numbers, flags


def _length(tokenizer, texts: Sequence[str]) -> dict[str, float]:
    return {"length": float(np.mean([len(ids) for ids in tokenizer.encode(texts)]))}


def _difference(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Paired bootstrap over the rows that both know."""
    known = ~(np.isnan(before) | np.isnan(after))
    interval = metrics.paired_bootstrap(before[known], after[known])
    return {
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
    }


def _rewrites(path: Path) -> list[dict[str, Any]]:
    by_query: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for query, (text, total) in record["rewrites"].items():
            row = by_query.setdefault(
                query, {"query": query, "by_step": {}, "total_by_step": {}}
            )
            row["by_step"][str(record["step"])] = text
            row["total_by_step"][str(record["step"])] = total
    return list(by_query.values())


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _turned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line per number, a column per model: models have the shorter names."""
    return [
        {"": name.replace("_", " ")} | {row["model"]: row[name] for row in rows}
        for name in rows[0]
        if name != "model"
    ]


def _by_metric(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The online table with a line per metric: it has more metrics than systems."""
    lines = []
    for metric in table["metrics"]:
        line = {"metric": metric.replace("_", " ")}
        line |= {row["system"]: row[metric] for row in table["rows"]}
        for difference in table["differences"]:
            if difference["metric"] == metric:
                than = difference["than"]
                low, high = difference["low"], difference["high"]
                line[f"against {than}"] = f"{low:+.3f} to {high:+.3f}"
        lines.append(line)
    return lines


def _show(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    console.print(table)


_cell: Callable[[Any], str] = lambda value: (  # noqa: E731
    "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
