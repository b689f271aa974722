"""One setting of an adversarial run at several values: Figure 3 and Table 3.

Of "Reinforcement Learning for Adversarial Query Generation".

    python -m experiments.ablate shop --parameter alpha --values 0.5 0.9 1.0
    python -m experiments.ablate shop --parameter kl-coef --values 0 0.1 0.85
    python -m experiments.ablate shop --parameter pgen-sign --values formula prose
    python -m experiments.ablate shop --parameter generator --values t5-tiny t5-3x192

Every value is a run in `runs/NAME/ablation/PARAMETER-VALUE`; stages that do not depend
on it are those of the run itself, linked. Writes `ablation/PARAMETER.json` and
`figures/ablation-PARAMETER.png`. What a further cycle adds is in the run's own report.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from experiments import runs
from experiments.adversarial import cycles, evaluate, generator, world
from experiments.adversarial.config import Adversarial
from experiments.adversarial.presets import PRESETS
from experiments.adversarial.world import World
from experiments.cli import launch
from jaxqr import models
from jaxqr.report.adversarial.figures import ablation
from jaxqr.report.adversarial.schema import ADVERSARIAL
from jaxqr.rewards.adversarial import PgenSign

SHARED = ("checker", "none")
"""Stages of a seed that no value changes."""
BEFORE_PPO = (*SHARED, "generator", "cycle-0")
"""Stages of a seed that PPO's settings do not change."""


@dataclass(frozen=True)
class Ablation(Adversarial):
    """An adversarial run, and what is varied of it."""

    parameter: Literal["alpha", "kl-coef", "pgen-sign", "generator"] = "alpha"
    """`generator` is its size: a preset of `jaxqr.models`, pretrained first."""
    values: tuple[str, ...] = ("0.5", "0.9", "1.0")


def main(run: Path, config: Ablation) -> None:
    """Runs every value, and draws the figure."""
    base = Adversarial(**{f.name: getattr(config, f.name) for f in fields(Adversarial)})
    for value in config.values:
        _check(config.parameter, value)
    world.check_folders(base)
    world.prepare(run, base.data)
    data = World(run)
    if base.pretrain:
        generator.pretrained(run, data, base.pretrain)
    points = []
    for value in config.values:
        varied = _varied(run, data, base, config.parameter, value)
        here = run / "ablation" / f"{config.parameter}-{value}"
        shared = SHARED if config.parameter == "generator" else BEFORE_PPO
        for seed in base.seeds:
            cycles.before_ppo(run, seed, data, base)
            _link(
                run, here, ["data", "pretrain", *(f"seed-{seed}/{s}" for s in shared)]
            )
            cycles.main(here, seed, data, varied)
        points.append(_point(here, value, evaluate.summary(here, varied)))
    result = {"parameter": config.parameter, "points": points}
    runs.write_json(run / "ablation" / f"{config.parameter}.json", result)
    path = run / "figures" / f"ablation-{config.parameter}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(ablation(result).png)
    _show(result)
    Console().print(f"wrote {path}")


def _check(parameter: str, value: str) -> None:
    """Refuses a value before anything is run.

    Raises:
        ValueError: it is not one of the parameter's.
    """
    if parameter == "pgen-sign" and value not in get_args(PgenSign):
        raise ValueError(
            f"{parameter} {value!r}: expected {' or '.join(get_args(PgenSign))}"
        )
    if parameter == "generator" and value not in models.PRESETS:
        raise ValueError(
            f"{parameter} {value!r}: expected one of {', '.join(models.PRESETS)}"
        )
    if parameter in ("alpha", "kl-coef"):
        try:
            float(value)
        except ValueError:
            raise ValueError(f"{parameter} {value!r}: expected a number") from None


def _varied(
    run: Path, data: World, base: Adversarial, parameter: str, value: str
) -> Adversarial:
    """The settings with one value.

    Raises:
        ValueError: sizes of a generator, and nothing is trained from scratch.
    """
    if parameter == "generator":
        if not base.pretrain:
            raise ValueError(
                "sizes of a generator are pretrained from scratch, which this preset "
                "has no stage for: run the preset once per --generator.init instead"
            )
        folder = run / "ablation" / f"pretrain-{value}"
        pretrain = replace(base.pretrain, model=value)
        generator.pretrained(run, data, pretrain, folder)
        return replace(base, generator=replace(base.generator, init=folder / "model"))
    given: Any = value if parameter == "pgen-sign" else float(value)
    name = parameter.replace("-", "_")
    return replace(base, ppo=replace(base.ppo, **{name: given}))


def _link(run: Path, here: Path, stages: list[str]) -> None:
    """Finished stages of the run, as those of one value."""
    for stage in stages:
        link = here / stage
        if (run / stage).exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((run / stage).resolve(), target_is_directory=True)


def _point(here: Path, value: str, summary: dict[str, Any]) -> dict[str, Any]:
    rows = {
        part: next(
            row
            for row in summary["strategies"][part]["rows"]
            if row["strategy"] == ADVERSARIAL
        )
        for part in ("cold", "test")
    }
    runs.write_json(here / "summary.json", summary)
    last = summary["synthetic"][-1]
    return {
        "value": value,
        **{f"pr_auc_{part}": row["pr_auc"] for part, row in rows.items()},
        **{f"interval_{part}": row["pr_auc_interval"] for part, row in rows.items()},
        **{name: last[name] for name in ("fidelity", "kl", "classifier_loss", "kept")},
    }


def _show(result: dict[str, Any]) -> None:
    table = Table(title=f"PR-AUC by {result['parameter']}")
    for name in ("value", "cold", "95 %", "test", "fidelity", "KL", "kept"):
        table.add_column(name)
    for point in result["points"]:
        low, high = point["interval_cold"]
        table.add_row(
            point["value"],
            f"{point['pr_auc_cold']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{point['pr_auc_test']:.3f}",
            f"{point['fidelity']:.3f}",
            f"{point['kl']:.2f}",
            f"{point['kept']:.0f}",
        )
    Console().print(table)


CONFIGS = {
    name: Ablation(**{f.name: getattr(run, f.name) for f in fields(Adversarial)})
    for name, run in PRESETS.items()
}

if __name__ == "__main__":
    launch(main, CONFIGS, __doc__, prefix="adversarial-")
