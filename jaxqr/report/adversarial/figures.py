"""The pictures of an adversarial run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxqr.report.adversarial.schema import NONE
from jaxqr.report.definitions import column, value
from jaxqr.report.drawing import (
    BLUE,
    GREY,
    INK,
    STYLE,
    VERMILION,
    Image,
    at_least,
    draw_interval,
    ends,
    moving_average,
    new_figure,
    png,
)
from jaxqr.report.format import number, signed

NAMES = ("strategies", "cycles", "ppo")
WINDOW = 5
"""Rollouts in the moving average of their numbers."""

PARTS = {"cold": "products never met", "test": "products sold already"}
"""Parts of the split, as titles."""

PANELS = {
    "score": ("Terminal reward", "nats"),
    "classifier_loss": ("Classifier's loss", "nats"),
    "kl": ("KL to the start", "nats per query"),
    "entropy": ("Entropy", "nats per token"),
    "length": ("Length", "tokens"),
    "clipped": ("Clipped losses", "share"),
}
"""Numbers of the rollouts, with title and unit."""


def draw(summary: Mapping[str, Any]) -> dict[str, Image]:
    """All of them, by name."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return {
            "strategies": forest(summary["strategies"]),
            "cycles": cycles(summary["cycles"], summary["strategies"]),
            "ppo": ppo(summary["training"]),
        }


def forest(strategies: Mapping[str, Any]) -> Image:
    """The differences of PR-AUC with their intervals, on both parts of the split."""
    tables = {part: strategies[part] for part in PARTS}
    lines = {
        part: [x for x in table["differences"] if x["metric"] == "pr_auc"]
        for part, table in tables.items()
    }
    count = max(map(len, lines.values()))
    figure = new_figure(1.2 + 0.32 * count)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    words = []
    for axes, (part, items) in zip(panels, lines.items(), strict=True):
        axes.axvline(0, color=INK, lw=0.9)
        for y, item in enumerate(items):
            draw_interval(axes, y, item)
            low, high = (number(value(item, bound)) for bound in ("low", "high"))
            words.append(
                f"{item['strategy']} minus {item['than']}, {PARTS[part]}, "
                f"{signed(value(item, 'difference'))} ({low} to {high})"
            )
        axes.set_title(PARTS[part])
        axes.set_xlabel("difference of PR-AUC, with 95 % interval")
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    names = [f"{x['strategy']} - {x['than']}" for x in lines["cold"]]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(count - 0.4, -0.6)
    return Image(png(figure), f"Differences of PR-AUC: {'; '.join(words)}.")


def cycles(by_cycle: Mapping[str, Any], strategies: Mapping[str, Any]) -> Image:
    """PR-AUC of each cycle's classifier, and of the one without synthetic queries."""
    figure = new_figure(3.2)
    panels = figure.subplots(1, 2)
    words = []
    for axes, part in zip(panels, PARTS, strict=True):
        rows = by_cycle[part]["rows"]
        points = np.array(column(rows, "pr_auc"))
        bounds = np.array([row["pr_auc_interval"] for row in rows], float)
        steps = np.arange(len(rows))
        axes.fill_between(steps, *bounds.T, color=BLUE, alpha=0.15, lw=0)
        axes.plot(steps, points, "o-", color=BLUE)
        none = next(r for r in strategies[part]["rows"] if r["strategy"] == NONE)
        axes.axhline(value(none, "pr_auc"), color=GREY, ls=(0, (4, 3)), lw=1.3)
        axes.set(title=PARTS[part], xlabel="cycle", ylabel="PR-AUC", xticks=steps)
        at_least(axes, 0.05)
        words.append(f"{PARTS[part]} {ends(points.tolist())}")
    return Image(png(figure), f"PR-AUC from the first to the last cycle: {words}.")


def ppo(training: Sequence[Mapping[str, Any]]) -> Image:
    """What the rollouts were like, cycle after cycle."""
    figure = new_figure(4.6)
    panels = figure.subplots(2, 3, sharex=True).ravel()
    starts = [
        i
        for i, line in enumerate(training)
        if i and line["cycle"] != training[i - 1]["cycle"]
    ]
    words = []
    for axes, (name, (title, unit)) in zip(panels, PANELS.items(), strict=True):
        raw = np.array(column(training, name))
        smooth = moving_average(raw, WINDOW)
        for start in starts:
            axes.axvline(start, color=GREY, lw=0.7, ls=":")
        axes.plot(raw, ".", color=BLUE, alpha=0.3, ms=3.5, mew=0)
        axes.plot(smooth, color=VERMILION, lw=1.4)
        axes.set(title=title, ylabel=unit)
        words.append(f"{title} {ends(smooth.tolist())} {unit}")
    for axes in panels[3:]:
        axes.set_xlabel("rollout, all cycles")
    return Image(png(figure), f"Over the rollouts of all cycles: {'; '.join(words)}.")


def ablation(result: Mapping[str, Any]) -> Image:
    """PR-AUC and label fidelity by the values of one setting: the paper's Figure 3."""
    import matplotlib

    points = result["points"]
    places, words = np.arange(len(points)), []
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.2)
        panels = figure.subplots(1, 3)
        for axes, part in zip(panels, PARTS, strict=False):
            values = np.array(column(points, f"pr_auc_{part}"))
            bounds = np.array([point[f"interval_{part}"] for point in points], float)
            errors = np.abs(bounds.T - values)
            axes.errorbar(places, values, errors, fmt="o-", color=BLUE, capsize=3)
            axes.set(title=PARTS[part], ylabel="PR-AUC")
            words.append(f"{PARTS[part]} {', '.join(map(number, values))}")
        panels[2].plot(places, column(points, "fidelity"), "o-", color=VERMILION)
        panels[2].set(title="Label fidelity", ylabel="share", ylim=(0, 1))
        for axes in panels:
            axes.set_xticks(places, [point["value"] for point in points])
            axes.set_xlabel(result["parameter"])
        return Image(png(figure), f"By {result['parameter']}: {'; '.join(words)}.")
