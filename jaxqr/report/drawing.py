"""What all pictures of a report share: style, size, curves, intervals.

matplotlib is imported when the first picture is drawn. Colours are Okabe and Ito's,
told apart with any colour vision; nothing is told by colour alone.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxqr.report.definitions import clear, column, value
from jaxqr.report.format import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 200  # twice what is shown at the page's width
_WIDTH = 8.4  # inches
BLUE, VERMILION, GREY, INK = "#0072B2", "#D55E00", "#767676", "#222222"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
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


def draw_interval(axes: "Axes", y: int, item: Mapping[str, Any]) -> None:
    """A bar from bound to bound and a point, filled if the bar leaves 0 out."""
    sign = clear(item)
    color = {1: BLUE, -1: VERMILION, 0: GREY}[sign]
    bounds = [value(item, "low"), value(item, "high")]
    axes.plot(bounds, [y, y], color=color, lw=1.8, solid_capstyle="butt")
    fill = color if sign else "white"
    point = value(item, "difference")
    axes.plot(point, y, "o", ms=6, color=color, mfc=fill, mew=1.4)


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


def new_figure(height: float) -> "Figure":
    """A figure of the page's width; the height is in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def png(figure: "Figure") -> bytes:
    """The picture as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def legend_line(color: str, name: str, **style: Any):
    """A line of a legend that no axes have drawn."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=name, **style)


def curve(
    axes: "Axes",
    curves: Sequence[Mapping[str, Any]],
    name: str,
    color: str,
    *,
    marker: str = "o",
    label: str | None = None,
) -> None:
    """One number of every evaluation, over the steps."""
    steps, values = column(curves, "step"), column(curves, name)
    axes.plot(steps, values, color=color, marker=marker, label=label)


def ends(values: Sequence[float]) -> str:
    """The first and the last value, in words."""
    return f"{number(values[0])} to {number(values[-1])}"


def legend_above(axes: "Axes") -> None:
    """A legend above the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def from_zero(axes: "Axes", values: Sequence[float]) -> None:
    """A vertical axis that includes 0."""
    if known := [x for x in values if np.isfinite(x)]:
        low, high = min(0.0, *known), max(0.0, *known)
        axes.set_ylim(low, high + 0.08 * (high - low) or 1.0)


def at_least(axes: "Axes", span: float) -> None:
    """Widens the vertical axis, so that noise does not fill the picture."""
    low, high = axes.get_ylim()
    if high - low < span:
        middle = (low + high) / 2
        axes.set_ylim(middle - span / 2, middle + span / 2)
