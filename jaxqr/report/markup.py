"""Pieces of HTML. Texts go in plain and come out escaped, unless called `html`."""

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

MISSING = "–"
_MARKS = {
    1: ("▲", "above", "interval above 0"),
    -1: ("▼", "below", "interval below 0"),
    0: ("○", "unclear", "interval includes 0"),
}


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus sign and without a negative zero.

    >>> number(-0.0001), number(-1.25, 1), number(float("nan"))
    ('0.000', '−1.2', '–')
    """
    if not math.isfinite(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def signed(value: float, digits: int = 3) -> str:
    """A difference, with its sign unless it rounds to 0.

    >>> signed(0.0614), signed(-0.5, 1), signed(0.0001)
    ('+0.061', '−0.5', '0.000')
    """
    text = number(value, digits)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def percent(value: float, digits: int = 1) -> str:
    r"""A share, with a space that does not break.

    >>> percent(0.125)
    '12.5\xa0%'
    """
    return f"{number(100 * value, digits)}\xa0%" if math.isfinite(value) else MISSING


def best_bold(values: Sequence[float], digits: int, *, better: int) -> list[str]:
    """Cells of one measure; the best ones, as printed, are bold.

    Args:
        values: one per system.
        digits: after the point.
        better: 1 if higher, -1 if lower is better, 0 if neither.

    >>> best_bold([0.5, 0.7, float("nan")], 1, better=1)
    ['0.5', '<b>0.7</b>', '–']
    """
    cells = [number(value, digits) for value in values]
    known = [value for value in values if math.isfinite(value)]
    if not better or len({*cells} - {MISSING}) < 2:
        return cells
    best = number(max(known) if better > 0 else min(known), digits)
    return [f"<b>{cell}</b>" if cell == best else cell for cell in cells]


def mark(clear: int, *, good: int = 1) -> str:
    """A sign for where an interval lies, coloured by whether that is an improvement.

    Args:
        clear: 1 above 0, -1 below 0, 0 if it includes 0.
        good: the side that is an improvement, 0 if neither.
    """
    sign, _, words = _MARKS[clear]
    kind = _MARKS[clear * good][1]
    return f'<span class="{kind}" role="img" aria-label="{words}">{sign}</span>'


class Row(NamedTuple):
    """Cells of a table row, as HTML; the first is its heading."""

    html: Sequence[str]
    kind: str = ""


def table(
    head: Sequence[str], rows: Sequence[Row], *, caption: str, kind: str = ""
) -> str:
    """A table that scrolls sideways on narrow screens. `caption` is HTML."""
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join(
        f'<tr class="{row.kind}"><th scope="row">{row.html[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row.html[1:])
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<figure class="table {kind}"><div class="scroll" tabindex="0"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def picture(png: bytes, alt: str, *, caption: str) -> str:
    """A figure with its picture inside the page. `caption` is HTML."""
    data = base64.b64encode(png).decode()
    return (
        '<figure class="picture"><div class="scroll" tabindex="0">'
        f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(text)}</p>\n"


def definitions(items: Sequence[tuple[str, str]], *, kind: str = "") -> str:
    """A list of plain terms and their plain meanings."""
    body = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(meaning)}</dd></div>\n"
        for term, meaning in items
    )
    return f'<dl class="{kind}">\n{body}</dl>\n'
