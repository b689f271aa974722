"""The pictures of a rewriter's report, as PNG with a text for who cannot see them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxqr.report.definitions import (
    COPY,
    CURVES,
    ONLINE,
    REWARD,
    column,
    differences,
    systems,
    value,
)
from jaxqr.report.drawing import (
    BLUE,
    GREY,
    INK,
    STYLE,
    VERMILION,
    Image,
    at_least,
    curve,
    draw_interval,
    ends,
    from_zero,
    legend_above,
    legend_line,
    moving_average,
    new_figure,
    png,
)
from jaxqr.report.format import number, signed

if TYPE_CHECKING:
    pass

NAMES = ("table-3", "figure-4", "rewards", "drift")
WINDOW = 5
"""Updates in the moving average of Figure 4, as in MiniELM's."""


def draw(summary: Mapping[str, Any]) -> dict[str, Image]:
    """The pictures that the summary has numbers for, by name."""
    import matplotlib

    online, curves = summary.get("online"), summary.get("curves")
    images = {}
    with matplotlib.rc_context(STYLE):
        if online:
            images["table-3"] = forest(online)
        if training := summary.get("training"):
            images["figure-4"] = chosen_and_rejected(training)
        if curves:
            images["rewards"] = rewards(curves, summary["curves_split"], online)
            images["drift"] = drift(curves)
    return images


def chosen_and_rejected(training: Sequence[Mapping[str, Any]]) -> Image:
    """Figure 4: mean reward of the preferred and of the other rewrites, per update."""
    steps = column(training, "step")
    figure = new_figure(3.4)
    axes = figure.subplots()
    words = []
    for name, field, color in (
        ("chosen", "chosen_score", BLUE),
        ("rejected", "rejected_score", VERMILION),
    ):
        raw = np.array(column(training, field))
        smooth = moving_average(raw, WINDOW)
        axes.plot(steps, raw, ".", color=color, alpha=0.3, ms=3.5, mew=0)
        axes.plot(steps, smooth, color=color, lw=1.4, label=name)
        words.append(f"{name} {ends(smooth.tolist())}")
    axes.set(xlabel="update", ylabel="reward (0 to 1)")
    axes.margins(x=0.01)
    legend_above(axes)
    return Image(
        png(figure),
        f"Reward per update, moving average over {WINDOW}: {', '.join(words)}.",
    )


def rewards(
    curves: Sequence[Mapping[str, Any]], split: str, online: Mapping[str, Any] | None
) -> Image:
    """The reward and its parts on a split, the copy's of Table 3 as dashed lines."""
    figure = new_figure(4.6)
    panels = figure.subplots(2, 3, sharex=True).ravel()
    words = []
    for axes, name in zip(panels, REWARD, strict=True):
        curve(axes, curves, name, BLUE)
        told = f"{ONLINE[name].label} {ends(column(curves, name))}"
        if online:
            floor = value(systems(online).copy, name)
            axes.axhline(floor, color=GREY, ls=(0, (4, 3)), lw=1.3)
            told += f", copy {number(floor)}"
        at_least(axes, 0.05)
        axes.set_title(ONLINE[name].label)
        words.append(told)
    for axes in panels[3:]:
        axes.set_xlabel("update")
    for axes in panels[::3]:
        axes.set_ylabel("mean, 0 to 1")
    handles = [legend_line(BLUE, f"the rewriter, {split} queries", marker="o")]
    if online:
        name = f"{COPY}, {online['split']} queries"
        handles.append(legend_line(GREY, name, ls=(0, (4, 3)), lw=1.3))
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return Image(
        png(figure),
        f"Rewards on {split} queries from the first to the last evaluation: "
        f"{'; '.join(words)}.",
    )


def drift(curves: Sequence[Mapping[str, Any]]) -> Image:
    """What moves when a policy games its reward: KL, entropy, length, the guard."""
    figure = new_figure(4.6)
    panels = figure.subplots(2, 2, sharex=True).ravel()
    words = []
    units = ("nats per token", "nats per token", "words")
    for axes, (name, term), unit in zip(panels, CURVES.items(), units, strict=False):
        curve(axes, curves, name, BLUE)
        axes.set(title=term.label, ylabel=unit)
        from_zero(axes, column(curves, name))
        words.append(f"{term.label} {ends(column(curves, name))} {unit}")
    curve(panels[3], curves, "purchase", BLUE, label="training shoppers")
    guard = {"marker": "s", "label": "guard shoppers"}
    curve(panels[3], curves, "guard_purchase", VERMILION, **guard)
    panels[3].set(title="Purchase", ylabel="mean, 0 to 1")
    at_least(panels[3], 0.05)
    panels[3].legend(loc="best")
    for axes in panels[2:]:
        axes.set_xlabel("update")
    words += [
        f"{ONLINE[name].label} {ends(column(curves, name))}"
        for name in ("purchase", "guard_purchase")
    ]
    return Image(png(figure), f"Over training: {'; '.join(words)}.")


def forest(online: Mapping[str, Any]) -> Image:
    """Table 3's differences with their intervals, to before and to copying.

    The copy's diversity is 0 by definition, so the difference to it is left out.
    """
    copy, before, after = (row["system"] for row in systems(online))
    panes = {than: differences(online, than) for than in (before, copy)}
    panes[copy].pop("diversity", None)
    shown = [
        name
        for name in online["metrics"]
        if any(name in pane for pane in panes.values())
    ]
    lines: list[tuple[str, str | None]] = []  # label, metric; a title has none
    for title, unseen in (
        ("the reward and its parts", False),
        ("never seen by training", True),
    ):
        if names := [name for name in shown if ONLINE[name].unseen == unseen]:
            lines += [(title, None), *((ONLINE[name].label, name) for name in names)]
    figure = new_figure(1.0 + 0.28 * len(lines))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    words = []
    for axes, (than, by_metric) in zip(panels, panes.items(), strict=True):
        axes.axvline(0, color=INK, lw=0.9)
        for y, (label, name) in enumerate(lines):
            if name in by_metric:
                draw_interval(axes, y, by_metric[name])
                words.append(f"{label} {_told(by_metric[name])}")
        axes.set_title(f"compared with: {than}")
        axes.set_xlabel("difference of means, with 95 % interval")
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(lines)), [label for label, _ in lines])
    for tick, (_, name) in zip(panels[0].get_yticklabels(), lines, strict=True):
        tick.set(color=INK, style="normal" if name else "italic")
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    return Image(png(figure), f"Differences of {after}: {'; '.join(words)}.")


def _told(item: Mapping[str, Any]) -> str:
    low, high = (number(value(item, bound)) for bound in ("low", "high"))
    difference = signed(value(item, "difference"))
    return f"{difference} ({low} to {high}) against {item['than']}"
