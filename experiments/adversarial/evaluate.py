"""The tables of an adversarial run, over all its seeds, as data.

Writes `summary.json` (fields: `jaxqr.report.adversarial`), and all synthetic queries as
`synthetic.parquet` (labels and provenance) and `synthetic.csv` (query, product, label).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import jaxqr
from experiments import runs, training
from experiments.adversarial import classifier, synthesis
from experiments.adversarial.config import Adversarial
from experiments.adversarial.world import World
from experiments.cli import command
from jaxqr.decode import Sampling
from jaxqr.evaluation import strategies
from jaxqr.evaluation.synthetic import overlap, variety
from jaxqr.report.format import number, signed
from jaxqr.rewards.similarity import Encoder
from jaxqr.train.log import read_metrics

NONE, PROMPTED, TUNED, ADVERSARIAL = (
    "None",
    "Prompted",
    "Fine-tuned",
    "Adversarial RL",
)
COMPARED = (
    (PROMPTED, NONE),
    (TUNED, NONE),
    (ADVERSARIAL, NONE),
    (ADVERSARIAL, TUNED),
)
"""Strategies whose differences are told."""

PARTS = ("cold", "test")

SHOWN = 12
"""Hard queries on the page."""
REAL_QUERIES = 256
"""Real queries whose products and labels generators write for once more."""


def main(run: Path, config: Adversarial) -> None:
    """Evaluates all seeds of a run."""
    found = summary(run, config)
    _export(run, config)
    runs.write_json(run / "summary.json", found)
    _show(found)
    Console().print(f"wrote {run / 'summary.json'}")


def summary(run: Path, config: Adversarial) -> dict[str, Any]:
    """Everything that the page shows."""
    world = World(run)
    folders = _folders(run, config)
    last = f"cycle-{config.cycles}"
    stages = {NONE: "none", PROMPTED: "prompted", TUNED: "cycle-0", ADVERSARIAL: last}
    if not config.prompted:
        del stages[PROMPTED]
    by_cycle = {f"cycle {n}": f"cycle-{n}" for n in range(config.cycles + 1)}
    tables = {part: _table(folders, stages, by_cycle, world, part) for part in PARTS}
    return {
        "name": run.name,
        "about": _about(world, config),
        "split": world.statistics,
        "strategies": {part: _named(tables[part], stages) for part in PARTS},
        "cycles": {part: _named(tables[part], by_cycle) for part in PARTS},
        "synthetic": _synthetic(folders, config),
        "real": _real(folders, world, config),
        "training": _training(folders, config),
        "hard": _hard(folders[0], world, config),
    }


def _folders(run: Path, config: Adversarial) -> list[Path]:
    return [run / f"seed-{seed}" for seed in config.seeds]


def _about(world: World, config: Adversarial) -> dict[str, Any]:
    labels = zip(world.labels.names, world.labels.gains, strict=True)
    return {
        "source": world.settings.source,
        "labels": [{"name": name, "gain": gain} for name, gain in labels],
        "seeds": list(config.seeds),
        "cycles": config.cycles,
        "alpha": config.ppo.alpha,
        "kl_coef": config.ppo.kl_coef,
        "pgen_sign": config.ppo.pgen_sign,
        "max_loss": config.ppo.max_loss,
        "device": jax.devices()[0].device_kind,
        "version": jaxqr.__version__,
        "command": command(),
    }


def _table(
    folders: Sequence[Path],
    stages: dict[str, str],
    by_cycle: dict[str, str],
    world: World,
    part: str,
) -> dict[str, Any]:
    """Every classifier once, by its stage: strategies and cycles share some."""
    found = {}
    for stage in dict.fromkeys([*stages.values(), *by_cycle.values()]):
        within = stage if stage == "none" else f"{stage}/classifier"
        found[stage] = [classifier.predictions(f / within)[part] for f in folders]
    compared = [
        (stages[after], stages[before])
        for after, before in COMPARED
        if after in stages and before in stages
    ]
    rows = world.rows(part)
    categories = [world.products[id].category for id in rows.product_id]
    return strategies.table(
        *(found, rows, world.labels, compared),
        categories=np.array(categories),
        fully_judged=world.fully_judged,
    )


def _named(table: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The rows and differences of some stages, under and in the order of their names.

    Args:
        table: of stages.
        names: stage by the name that is shown.
    """
    rows = {row["strategy"]: row for row in table["rows"]}
    shown = {stage: name for name, stage in names.items()}
    return table | {
        "rows": [rows[stage] | {"strategy": name} for name, stage in names.items()],
        "differences": [
            item | {key: shown[item[key]] for key in ("strategy", "than")}
            for item in table["differences"]
            if item["strategy"] in shown and item["than"] in shown
        ],
        "categories": [
            line | {"pr_auc": {n: line["pr_auc"][stage] for n, stage in names.items()}}
            for line in table["categories"]
        ],
    }


def _synthetic(folders: Sequence[Path], config: Adversarial) -> list[dict[str, Any]]:
    """A line per cycle: what was written, means over seeds."""
    names = {f"cycle {cycle}": f"cycle-{cycle}" for cycle in range(config.cycles + 1)}
    if config.prompted:
        names = {PROMPTED: "prompted"} | names
    lines = []
    for name, stage in names.items():
        several = []
        for folder in folders:
            here = folder / stage / "synthetic"
            table = pq.read_table(here / synthesis.FILE, columns=["query", "product"])
            texts = (column.to_pylist() for column in table.itercolumns())
            several.append(runs.read_json(here / "report.json") | variety(*texts))
        lines.append({"set": name} | _mean(several))
    return lines


def _real(
    folders: Sequence[Path], world: World, config: Adversarial
) -> list[dict[str, Any]]:
    """What generators write for the products and labels of real queries.

    Of cold products and of the others, by the fine-tuned generator and the last one.
    """
    encoder = Encoder.load(config.encoder) if config.encoder else None
    writers = {TUNED: "generator"}
    writers[ADVERSARIAL] = f"cycle-{config.cycles}/ppo"
    lengths = world.settings.lengths
    sampling = Sampling(lengths.source, lengths.target)
    lines = []
    for part in PARTS:
        rows = world.rows(part).shuffled(0, REAL_QUERIES)
        asked = world.sources(rows.product_id.tolist(), rows.label.tolist())
        for name, stage in writers.items():
            several = []
            for folder in folders:
                lm = training.load_frozen(
                    folder / stage / "model", config.synthesis.compute
                )
                written = [one.text for (one,) in lm.rewrite(asked, sampling=sampling)]
                columns = overlap(written, rows.query.tolist(), encoder)
                several.append({k: float(x.mean()) for k, x in columns.items()})
            line = {"strategy": name, "part": part, "queries": len(asked)}
            lines.append(line | _mean(several))
    return lines


def _mean(several: Sequence[dict[str, float | None]]) -> dict[str, float]:
    """Over seeds; NaN, which JSON writes as null, where a number is not defined."""
    columns = {key: [one[key] for one in several] for key in several[0]}
    return {
        key: float(np.mean([np.nan if x is None else x for x in values]))
        for key, values in columns.items()
    }


def _training(folders: Sequence[Path], config: Adversarial) -> list[dict[str, Any]]:
    """Every rollout of PPO, of the first seed, cycle by cycle."""
    ppo = config.ppo
    minibatches = ppo.epochs * ppo.rollouts // ppo.optimizer.batch_size
    return [
        {"cycle": cycle} | line
        for cycle in range(1, config.cycles + 1)
        for line in read_metrics(folders[0] / f"cycle-{cycle}/ppo/metrics.jsonl")
        if line["kind"] == "train" and line["step"] % minibatches == 1 % minibatches
    ]


def _hard(folder: Path, world: World, config: Adversarial) -> list[dict[str, Any]]:
    """Queries of the last cycle that were hardest, and what each classifier says."""
    table = pq.read_table(folder / f"cycle-{config.cycles}/synthetic" / synthesis.FILE)
    order = np.argsort(-table["classifier_loss"].to_numpy(), kind="stable")[:SHOWN]
    rows = table.take(pa.array(order)).to_pylist()
    stages = {"none": "none", "before": f"cycle-{config.cycles - 1}/classifier"}
    stages["after"] = f"cycle-{config.cycles}/classifier"
    queries, products = ([row[name] for row in rows] for name in ("query", "product"))
    label = [world.labels.names.index(row["label"]) for row in rows]
    for name, stage in stages.items():
        loaded = classifier.load(folder / stage, config.classifier)
        found = classifier.probabilities(loaded, config.classifier, queries, products)
        for row, of_row, index in zip(rows, found, label, strict=True):
            row[name] = float(of_row[index])
    shown = ("query", "product", "label", "checker_label", *stages)
    return [{name: row[name] for name in shown} for row in rows]


def _export(run: Path, config: Adversarial) -> None:
    folders = _folders(run, config)
    parts = []
    for seed, folder in zip(config.seeds, folders, strict=True):
        for cycle in range(config.cycles + 1):
            part = pq.read_table(folder / f"cycle-{cycle}/synthetic" / synthesis.FILE)
            seeds = pa.array([seed] * len(part))
            parts.append(part.append_column("seed", seeds))
    table = pa.concat_tables(parts)
    pq.write_table(table, run / "synthetic.parquet")
    pyarrow.csv.write_csv(
        table.select(["query", "product_id", "label"]), run / "synthetic.csv"
    )


def _show(summary: dict[str, Any]) -> None:
    console = Console()
    for part, of_part in summary["strategies"].items():
        table = Table(title=f"{part}: {of_part['queries']} queries")
        for name in ("strategy", "PR-AUC", "95 %", "nDCG@10", "ECE"):
            table.add_column(name)
        for row in of_part["rows"]:
            low, high = map(number, row["pr_auc_interval"])
            means = [number(row[name]) for name in ("pr_auc", "ndcg", "ece")]
            table.add_row(row["strategy"], means[0], f"{low} to {high}", *means[1:])
        console.print(table)
        for item in of_part["differences"]:
            low, high = number(item["low"]), number(item["high"])
            console.print(
                f"{item['metric']}: {item['strategy']} - {item['than']} "
                f"{signed(item['difference'])} ({low} to {high})"
            )
