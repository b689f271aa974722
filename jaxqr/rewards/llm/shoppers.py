"""A pool of shoppers that a language model makes up (after MiniELM's Table 6)."""

import json
from collections.abc import Sequence
from typing import Any

from jaxqr.rewards.llm.client import LLM, NoAnswerError
from jaxqr.rewards.profiles import Profile

PROFILE_TOKENS = 200
TRIES = 3
"""Answers asked for per shopper that is wanted."""

_WRITE = (
    "Make up a shopper of an online shop, different from the usual. Answer with a JSON "
    'object that has just these fields: "gender" (text), "age" (whole number), '
    '"location" (city, suburb, small town or countryside), "income" (US dollars a '
    'year, whole number), "price_sensitivity" (0 for not at all to 1 for very), '
    '"brand_affinity" (list of brands, may be empty), "style" (one word or ""), '
    '"material" (one word or "").'
)
_TEXT, _WHOLE = {"type": "string"}, {"type": "integer"}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "gender": _TEXT,
        "age": _WHOLE,
        "location": _TEXT,
        "income": _WHOLE,
        "price_sensitivity": {"type": "number"},
        "brand_affinity": {"type": "array", "items": _TEXT},
        "style": _TEXT,
        "material": _TEXT,
    },
    "required": list(Profile._fields),
    "additionalProperties": False,
}


def write_profiles(
    llm: LLM, n: int, seed: int, *, brands: Sequence[str] = ()
) -> list[Profile]:
    """Asks for `n` shoppers, each with a seed of its own, at temperature 1.

    Answers that are no shopper are counted (`no_profile`) and asked for again.

    Args:
        llm: what is asked.
        n: how many.
        seed: other shoppers where it differs.
        brands: what the shop sells, of which they may like some.

    Raises:
        NoAnswerError: the server does not answer.
        RuntimeError: fewer than `n` after `TRIES` times as many answers.
    """
    text = _WRITE
    if brands:
        text += f" The shop sells the brands {', '.join(brands)}."
    schema = _SCHEMA if llm.abilities().schema else None

    def ask(number: int) -> Profile | None:
        try:
            answer = llm.ask(
                [{"role": "user", "content": text}],
                max_tokens=PROFILE_TOKENS,
                schema=schema,
                temperature=1.0,
                seed=seed * 1_000_003 + number,
            )
        except NoAnswerError:
            return None
        profile = read_profile(answer.text)
        if profile is None:
            llm.count("no_profile")
        return profile

    found: list[Profile] = []
    for start in range(0, TRIES * n, n):
        written = llm.map(ask, range(start, start + n))
        found += [profile for profile in written if profile is not None]
        if len(found) >= n:
            return found[:n]
    raise RuntimeError(
        f"{llm.model} wrote {len(found)} of {n} shoppers in {TRIES * n} answers: use a "
        "larger model, or the shoppers that are drawn (`sample_profiles`)"
    )


def read_profile(text: str) -> Profile | None:
    """The shopper in an answer; None where a field is missing or out of range.

    >>> read_profile('{"age": 30}')
    """
    begin, end = text.find("{"), text.rfind("}")
    try:
        fields = json.loads(text[begin : end + 1])
        profile = Profile(**{name: fields[name] for name in Profile._fields})
        profile = profile._replace(brand_affinity=tuple(profile.brand_affinity))
    except (ValueError, TypeError, KeyError):
        return None
    texts = (profile.gender, profile.location, profile.style, profile.material)
    wholes = (profile.age, profile.income)
    sensitivity = profile.price_sensitivity
    good = (
        all(isinstance(x, str) for x in (*texts, *profile.brand_affinity))
        and all(isinstance(x, int) and not isinstance(x, bool) for x in wholes)
        and 10 <= profile.age <= 110
        and profile.income >= 0
        and isinstance(sensitivity, int | float)
        and 0 <= sensitivity <= 1
    )
    return profile if good else None
