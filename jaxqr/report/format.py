"""Numbers as texts, in the page, in figures and in the verdict."""

import math

MISSING = "–"


def number(value: int | float | None, digits: int = 3) -> str:
    """A number with a true minus sign and without a negative zero; a dash if unknown.

    >>> number(-0.0001), number(-1.25, 1), number(1234, 0), number(None)
    ('0.000', '−1.2', '1,234', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def signed(value: int | float | None, digits: int = 3) -> str:
    """A difference, with its sign unless it rounds to 0.

    >>> signed(0.0614), signed(-0.5, 1), signed(0.0001)
    ('+0.061', '−0.5', '0.000')
    """
    text = number(value, digits)
    return f"+{text}" if value and value > 0 and text.strip("0.") else text


def percent(value: int | float | None, digits: int = 1) -> str:
    r"""A share, with a space that does not break.

    >>> percent(0.125)
    '12.5\xa0%'
    """
    text = number(value and 100 * value, digits)
    return text if text == MISSING else f"{text}\xa0%"
