"""Whether two tokenizers turn every text into the same ids, and if not, why."""

import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

# What truncates, pads and frames a text is not part of how its ids are made.
FRAME = {"version", "truncation", "padding", "post_processor"}


def difference(one: Any, two: Any, names: tuple[str, str]) -> str | None:
    """The first difference of two transformers tokenizers in words; None if none.

    Compared are token -> id with the added tokens, then what the tokenizers library
    saves of normalizer, pre-tokenizer, model and decoder.
    """
    return _vocabularies(one.get_vocab(), two.get_vocab(), names) or _backends(
        one.backend_tokenizer.to_str(), two.backend_tokenizer.to_str(), names
    )


def _vocabularies(
    one: Mapping[str, int], two: Mapping[str, int], names: tuple[str, str]
) -> str | None:
    if one == two:
        return None
    _, token = min((index, token) for token, index in one.items() ^ two.items())
    ids = [
        f"{held.get(token, 'absent')} for the {name} ({len(held)} tokens)"
        for held, name in zip((one, two), names, strict=True)
    ]
    return f"the id of token {token!r} is {ids[0]} and {ids[1]}"


def _backends(one: str, two: str, names: tuple[str, str]) -> str | None:
    parts = [
        {name: part for name, part in json.loads(text).items() if name not in FRAME}
        for text in (one, two)
    ]
    if parts[0] == parts[1]:
        return None
    path, first, second = _first(parts[0], parts[1])
    return (
        f"{path} in tokenizer.json is {_short(first)} for the {names[0]} and "
        f"{_short(second)} for the {names[1]}"
    )


def _first(one: Any, two: Any, path: str = "") -> tuple[str, Any, Any]:
    """Where two unequal JSON values differ first, and the two values there."""
    if isinstance(one, dict) and isinstance(two, dict):
        for name in one | two:
            if one.get(name) != two.get(name):
                inner = f"{path}.{name}" if path else name
                return _first(one.get(name), two.get(name), inner)
    if isinstance(one, list) and isinstance(two, list):
        for i, (mine, theirs) in enumerate(zip_longest(one, two)):
            if mine != theirs:
                return _first(mine, theirs, f"{path}[{i}]")
    return path, one, two


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + " ..."
