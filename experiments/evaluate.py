"""Every table of a run, on test queries, as data.

    python -m experiments.evaluate quickstart

Writes `runs/NAME/summary.json` (fields: `jaxqr.report`): Table 2 on test pairs, copy
baseline first; Table 3 before and after online DPO with copying the query, and paired
bootstrap intervals; the curves of Figure 4; Table 5's rewrites over time.
CPU: a minute and a half for quickstart.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxqr
from experiments import runs, training
from experiments.cli import command, launch
from experiments.config import (
    SFT,
    ComputeConfig,
    Distill,
    Evaluate,
    OnlineDPO,
    Pretrain,
)
from experiments.online_dpo import write
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from experiments.search import Search, Writer
from experiments.serving import held_out
from experiments.system import System
from jaxqr.data.tokenize import Tokenizer
from jaxqr.decode import Sampling
from jaxqr.evaluation import pairs, search
from jaxqr.lm import LM
from jaxqr.report.definitions import COPY
from jaxqr.train.log import read_metrics

STAGES: dict[str, tuple[str, type]] = {
    "pretrained student": ("pretrain-student", Pretrain),
    "SFT student": ("sft-student", SFT),
    "distilled student": ("distill", Distill),
    "SFT teacher": ("sft-teacher", SFT),
}
"""Rows of the offline table, the stages they come from, and the class of their
settings; the online stage and further distillations in `distill-*` follow."""

COMPARED = (
    ("SFT student", "pretrained student"),
    ("distilled student", "SFT student"),
)
"""Rows of the offline table whose differences are shown."""


def main(run: Path, config: Evaluate) -> None:
    """Evaluates what is there."""
    data = Prepared(run)
    console = Console()
    summary: dict[str, Any] = {
        "name": run.name,
        "about": _about(data),
        "pairs": runs.read_json(run / "data" / "statistics.json")["pairs"],
    }
    if (run / "relevance" / "evaluation.json").exists():
        summary["relevance"] = runs.read_json(run / "relevance" / "evaluation.json")
    if (run / "sft-teacher" / "done").exists():
        summary["offline"] = offline(run, config, data)
        _show(console, "Offline, test pairs", _turned(summary["offline"]["rows"]))
    if (run / config.online / "done").exists():
        settings = runs.read(run / config.online, OnlineDPO)
        policy = load_stage(run / config.online, OnlineDPO)
        write_all = Writer(policy, config.rewrites, data.lengths)
        search_of = Search(run, data, settings.system, config.encoder)
        if found := held_out(search_of, config, write_all):
            summary["served"] = found.table()
            show_served(console, summary["served"])
        summary["online"] = online(run, config, data)
        _show(console, "Online, test queries", _by_metric(summary["online"]))
        lines = read_metrics(run / config.online / "metrics.jsonl")
        summary["curves"] = [x for x in lines if x["kind"] == "evaluation"]
        summary["curves_split"] = "validation"
        summary["training"] = [x for x in lines if x["kind"] == "train"]
        summary["rewrites"] = _rewrites(run / config.online / "rewrites.jsonl")
    runs.write_json(run / "summary.json", summary)
    console.print(f"wrote {run / 'summary.json'}")


def _about(data: Prepared) -> dict[str, Any]:
    labels = zip(data.labels.names, data.labels.gains, strict=True)
    return {
        "source": data.settings.source,
        "products": len(data.products),
        "queries": len(data.split),
        "labels": [{"name": name, "gain": gain} for name, gain in labels],
        "device": jax.devices()[0].device_kind,
        "version": jaxqr.__version__,
        "seed": data.settings.seed,
        "command": command(),
    }


def load_stage(folder: Path, kind: type, fsdp: int | None = None) -> LM:
    """The model of a finished stage, to compute as it did there.

    Models that meet in one computation must share `fsdp`, if it is not the stage's.
    """
    compute: ComputeConfig = runs.read(folder, kind).compute
    if fsdp is not None:
        compute = ComputeConfig(compute.dtype, compute.remat, fsdp)
    return training.load_frozen(folder / "model", compute)


def load_named(run: Path, stage: str, online: str) -> LM:
    """The model of a finished stage by its folder's name; `online` is online DPO's."""
    kinds = dict(STAGES.values()) | {online: OnlineDPO}
    folder = runs.require(run / stage, "python -m experiments.pipeline PRESET")
    return load_stage(folder, kinds.get(stage, Distill))


def offline(run: Path, config: Evaluate, data: Prepared) -> dict[str, Any]:
    """Table 2: every finished stage on the test pairs, the copy baseline first."""
    rows = training.sample_pairs(data.pairs["test"], config.pairs, config.seed)
    lengths = data.lengths
    teacher = load_stage(run / "sft-teacher", SFT)
    fsdp = runs.read(run / "sft-teacher", SFT).compute.fsdp
    systems = {COPY: pairs.copy_columns(data.tokenizer, rows)}
    stages = STAGES | {"student after online DPO": (config.online, OnlineDPO)}
    stages |= {p.name: (p.name, Distill) for p in sorted(run.glob("distill-*"))}
    for name, (stage, kind) in stages.items():
        if not (run / stage / "done").exists():
            continue
        if stage == "sft-teacher":
            lm, measured_to = teacher, None
        else:
            lm = load_stage(run / stage, kind, fsdp)
            measured_to = _comparable(teacher, lm, name)
        systems[name] = pairs.lm_columns(
            lm,
            rows,
            max_source=lengths.source,
            max_target=lengths.target,
            teacher=measured_to,
        )
    return pairs.table(systems, rows, COMPARED)


def _comparable(teacher: LM, lm: LM, name: str) -> LM | None:
    """The teacher, if its tokens are the model's own."""
    try:
        teacher.tokenizer.check_same(lm.tokenizer, "teacher", name)
    except ValueError as error:
        Console().print(f"{name}: no reverse KL to the teacher, as {error}")
        return None
    return teacher


def online(run: Path, config: Evaluate, data: Prepared) -> dict[str, Any]:
    """Table 3: copying, before and after online DPO, on test queries."""
    settings = runs.read(run / config.online, OnlineDPO)
    queries = training.sample(data.searchable["test"], config.queries, config.seed)
    lengths = data.lengths
    sampling = Sampling(lengths.source, lengths.target)
    texts = {
        stage: write(load_named(run, stage, config.online), queries, sampling)
        for stage in (settings.start, config.online)
    }
    systems = {
        COPY: queries,
        f"before ({settings.start})": texts[settings.start],
        "after online DPO": texts[config.online],
    }
    with System(run, data, settings.system).scorers() as scorers:
        table = search.table(
            queries, systems, scorers, length=_mean_tokens(data.tokenizer)
        )
    return table | {"split": "test", "updates": settings.optimizer.num_steps}


def _mean_tokens(tokenizer: Tokenizer) -> Callable[[Sequence[str]], float]:
    return lambda texts: float(np.mean([len(ids) for ids in tokenizer.encode(texts)]))


def _rewrites(path: Path) -> list[dict[str, Any]]:
    by_query: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for query, (text, total) in record["rewrites"].items():
            row = by_query.setdefault(
                query, {"query": query, "by_step": {}, "total_by_step": {}}
            )
            row["by_step"][str(record["step"])] = text
            row["total_by_step"][str(record["step"])] = total
    return list(by_query.values())


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
        count = table["counts"][metric]
        few = f" ({count})" if count < table["queries"] else ""
        line = {"metric": metric.replace("_", " ") + few}
        line |= {row["system"]: row[metric] for row in table["rows"]}
        for difference in table["differences"]:
            if difference["metric"] == metric:
                than = difference["than"]
                low, high = difference["low"], difference["high"]
                line[f"against {than}"] = f"{low:+.3f} to {high:+.3f}"
        lines.append(line)
    return lines


def show_served(console: Console, served: dict[str, Any]) -> None:
    """A line per system: recall, nDCG, and who is better or worse for it."""
    names = ("recall@50", "ndcg@10", "win", "loss", "searches")
    rows = [
        {"system": row["system"]} | {name: row[name] for name in names}
        for row in served["rows"]
    ]
    _show(console, f"Search, {served['queries']:,} test queries", rows)


def _show(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    launch(main, {name: run.evaluate for name, run in PRESETS.items()}, __doc__)
