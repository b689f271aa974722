"""The pictures of a report, as PNG bytes with a text for those who cannot see them.

matplotlib is imported when the first picture is drawn. Colours are Okabe and Ito's,
told apart with any colour vision; nothing is told by colour alone.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxqr.report.definitions import (
    COPY,
    CURVES,
    ONLINE,
    REWARD,
    clear,
    column,
    differences,
    systems,
    value,
)
from jaxqr.report.format import number, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("table-3", "figure-4", "rewards", "drift")
WINDOW = 5
"""Updates in the moving average of Figure 4, as in MiniELM's."""

_DPI = 200  # twice what is shown at the page's width
_WIDTH = 8.4  # inches
_BLUE, _VERMILION, _GREY, _INK = "#0072B2", "#D55E00", "#767676", "#222222"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "text.parse_math": False,  # a name may hold any character
}


class Image(NamedTuple):
    """A picture and what it shows, in words."""

    png: bytes
    alt: str


def draw(summary: Mapping[str, Any]) -> dict[str, Image]:
    """The pictures that the summary has numbers for, by name."""
    import matplotlib

    online, curves = summary.get("online"), summary.get("curves")
    images = {}
    with matplotlib.rc_context(_STYLE):
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
    figure = _figure(3.4)
    axes = figure.subplots()
    words = []
    for name, field, color in (
        ("chosen", "chosen_score", _BLUE),
        ("rejected", "rejected_score", _VERMILION),
    ):
        raw = np.array(column(training, field))
        smooth = moving_average(raw, WINDOW)
        axes.plot(steps, raw, ".", color=color, alpha=0.3, ms=3.5, mew=0)
        axes.plot(steps, smooth, color=color, lw=1.4, label=name)
        words.append(f"{name} {_ends(smooth.tolist())}")
    axes.set(xlabel="update", ylabel="reward (0 to 1)")
    axes.margins(x=0.01)
    _legend(axes)
    return Image(
        _png(figure),
        f"Reward per update, moving average over {WINDOW}: {', '.join(words)}.",
    )


def rewards(
    curves: Sequence[Mapping[str, Any]], split: str, online: Mapping[str, Any] | None
) -> Image:
    """The reward and its parts on a split, the copy's of Table 3 as dashed lines."""
    figure = _figure(4.6)
    panels = figure.subplots(2, 3, sharex=True).ravel()
    words = []
    for axes, name in zip(panels, REWARD, strict=True):
        _curve(axes, curves, name, _BLUE)
        told = f"{ONLINE[name].label} {_ends(column(curves, name))}"
        if online:
            floor = value(systems(online).copy, name)
            axes.axhline(floor, color=_GREY, ls=(0, (4, 3)), lw=1.3)
            told += f", copy {number(floor)}"
        _at_least(axes, 0.05)
        axes.set_title(ONLINE[name].label)
        words.append(told)
    for axes in panels[3:]:
        axes.set_xlabel("update")
    for axes in panels[::3]:
        axes.set_ylabel("mean, 0 to 1")
    handles = [_line(_BLUE, f"the rewriter, {split} queries", marker="o")]
    if online:
        name = f"{COPY}, {online['split']} queries"
        handles.append(_line(_GREY, name, ls=(0, (4, 3)), lw=1.3))
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return Image(
        _png(figure),
        f"Rewards on {split} queries from the first to the last evaluation: "
        f"{'; '.join(words)}.",
    )


def drift(curves: Sequence[Mapping[str, Any]]) -> Image:
    """What moves when a policy games its reward: KL, entropy, length, the guard."""
    figure = _figure(4.6)
    panels = figure.subplots(2, 2, sharex=True).ravel()
    words = []
    units = ("nats per token", "nats per token", "words")
    for axes, (name, term), unit in zip(panels, CURVES.items(), units, strict=False):
        _curve(axes, curves, name, _BLUE)
        axes.set(title=term.label, ylabel=unit)
        _from_zero(axes, column(curves, name))
        words.append(f"{term.label} {_ends(column(curves, name))} {unit}")
    _curve(panels[3], curves, "purchase", _BLUE, label="training shoppers")
    guard = {"marker": "s", "label": "guard shoppers"}
    _curve(panels[3], curves, "guard_purchase", _VERMILION, **guard)
    panels[3].set(title="Purchase", ylabel="mean, 0 to 1")
    _at_least(panels[3], 0.05)
    panels[3].legend(loc="best")
    for axes in panels[2:]:
        axes.set_xlabel("update")
    words += [
        f"{ONLINE[name].label} {_ends(column(curves, name))}"
        for name in ("purchase", "guard_purchase")
    ]
    return Image(_png(figure), f"Over training: {'; '.join(words)}.")


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
    figure = _figure(1.0 + 0.28 * len(lines))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    words = []
    for axes, (than, by_metric) in zip(panels, panes.items(), strict=True):
        axes.axvline(0, color=_INK, lw=0.9)
        for y, (label, name) in enumerate(lines):
            if name in by_metric:
                _interval(axes, y, by_metric[name])
                words.append(f"{label} {_told(by_metric[name])}")
        axes.set_title(f"compared with: {than}")
        axes.set_xlabel("difference of means, with 95 % interval")
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(lines)), [label for label, _ in lines])
    for tick, (_, name) in zip(panels[0].get_yticklabels(), lines, strict=True):
        tick.set(color=_INK, style="normal" if name else "italic")
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    return Image(_png(figure), f"Differences of {after}: {'; '.join(words)}.")


def _interval(axes: "Axes", y: int, item: Mapping[str, Any]) -> None:
    """A bar from bound to bound and a point, filled if the bar leaves 0 out."""
    sign = clear(item)
    color = {1: _BLUE, -1: _VERMILION, 0: _GREY}[sign]
    bounds = [value(item, "low"), value(item, "high")]
    axes.plot(bounds, [y, y], color=color, lw=1.8, solid_capstyle="butt")
    fill = color if sign else "white"
    point = value(item, "difference")
    axes.plot(point, y, "o", ms=6, color=color, mfc=fill, mew=1.4)


def _told(item: Mapping[str, Any]) -> str:
    low, high = (number(value(item, bound)) for bound in ("low", "high"))
    difference = signed(value(item, "difference"))
    return f"{difference} ({low} to {high}) against {item['than']}"


def moving_average(
    values: Float[np.ndarray, " T"], window: int
) -> Float[np.ndarray, " T"]:
    """Mean of each value and the `window - 1` before it, missing ones left out.

    >>> moving_average(np.array([1.0, 3.0, np.nan, 5.0]), 2)
    array([1., 2., 3., 5.])
    """
    known = np.isfinite(values)
    ones = np.ones(window)
    count = np.convolve(known, ones)[: len(values)]
    total = np.convolve(np.where(known, values, 0.0), ones)[: len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _png(figure: "Figure") -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _line(color: str, name: str, **style: Any):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=name, **style)


def _curve(
    axes: "Axes",
    curves: Sequence[Mapping[str, Any]],
    name: str,
    color: str,
    *,
    marker: str = "o",
    label: str | None = None,
) -> None:
    steps, values = column(curves, "step"), column(curves, name)
    axes.plot(steps, values, color=color, marker=marker, label=label)


def _ends(values: Sequence[float]) -> str:
    return f"{number(values[0])} to {number(values[-1])}"


def _legend(axes: "Axes") -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def _from_zero(axes: "Axes", values: Sequence[float]) -> None:
    if known := [x for x in values if np.isfinite(x)]:
        low, high = min(0.0, *known), max(0.0, *known)
        axes.set_ylim(low, high + 0.08 * (high - low) or 1.0)


def _at_least(axes: "Axes", span: float) -> None:
    """Widens the vertical axis, so that noise does not fill the picture."""
    low, high = axes.get_ylim()
    if high - low < span:
        middle = (low + high) / 2
        axes.set_ylim(middle - span / 2, middle + span / 2)
