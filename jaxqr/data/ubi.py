"""User Behavior Insights, a common format for logs of search (schema 1.3.0).

Two files or indices: queries, each with the ids of what was shown, and events, each an
action on one product (https://github.com/o19s/ubi). They are joined by the query id.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxqr.records import Impressions

ACTIONS = {
    "impression": "shown",
    "view": "shown",
    "click": "click",
    "click_through": "click",
    "add_to_cart": "add_to_cart",
    "purchase": "purchase",
}
"""The schema's action names that are read, and what they mean here."""

QUERIES, EVENTS = "ubi_queries", "ubi_events"
"""Names of the files, without their endings, and of the indices."""

_MEANINGS = ("shown", "click", "add_to_cart", "purchase")
_FORMATS = (".ndjson", ".jsonl", ".parquet")
_EPOCH = "1970-01-01T00:00:00Z"


class Statistics(NamedTuple):
    """What was read, and what was passed over."""

    lists: int
    events: int
    """Events that count."""
    other_actions: dict[str, int]
    """Events by an action name that means nothing here."""
    without_query: int
    """Events of no query, or of one that is not there."""
    not_shown: int
    """Events on a product that was not in the list."""
    repeated: int
    """Events that are there already: each counts once for a list and a product."""


def load(
    folder: str | os.PathLike[str], *, actions: Mapping[str, str] = ACTIONS
) -> tuple[Impressions, Statistics]:
    """Reads `ubi_queries` and `ubi_events` as ndjson or parquet.

    Args:
        folder: holds the two files.
        actions: what each action name means: shown, click, add_to_cart or purchase.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line or a field is at fault.
    """
    paths = [_find(Path(folder), name) for name in (QUERIES, EVENTS)]
    queries, events = (list(_documents(path)) for path in paths)
    return join(queries, events, actions=actions, names=(str(paths[0]), str(paths[1])))


def join(
    queries: Iterable[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
    *,
    actions: Mapping[str, str] = ACTIONS,
    names: tuple[str, str] = (QUERIES, EVENTS),
) -> tuple[Impressions, Statistics]:
    """Joins documents, such as those of two indices.

    What was shown is `query_response_hit_ids`, in that order; where a query has none,
    its shown events, in the order of their `position.ordinal`, from 1 on. An addition
    counts as a click too, a purchase as both.

    Args:
        queries: with `query_id` and `user_query`.
        events: with `action_name`, `query_id` and `event_attributes`.
        actions: what each action name means.
        names: what the two are called in errors.

    Raises:
        ValueError: a field is missing or of another kind, a query id occurs twice, two
            products are at one place, or an action means something else than these.
    """
    if wrong := set(actions.values()) - set(_MEANINGS):
        raise ValueError(
            f"actions that mean {sorted(wrong)}: expected {', '.join(_MEANINGS)}"
        )
    texts: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for place, query in enumerate(queries, 1):
        where = f"{names[0]}, row {place}"
        query_id = _text(query, "query_id", where)
        if query_id in texts:
            raise ValueError(
                f"{where}: the query_id {query_id!r} occurs twice: give every search "
                "an id of its own"
            )
        texts[query_id] = _text(query, "user_query", where)
        hits = query.get("query_response_hit_ids")
        if hits is not None:
            if not isinstance(hits, list) or len(set(map(str, hits))) < len(hits):
                raise ValueError(
                    f"{where}: query_response_hit_ids is {str(hits)[:60]}, expected a "
                    "list of distinct ids"
                )
            lists[query_id] = [str(hit) for hit in hits]

    counted: Counter[str] = Counter()
    others: Counter[str] = Counter()
    shown: dict[str, dict[int, str]] = defaultdict(dict)
    done: dict[tuple[str, str], set[str]] = defaultdict(set)
    for place, event in enumerate(events, 1):
        where = f"{names[1]}, row {place}"
        name = _text(event, "action_name", where)
        if name not in actions:
            others[name] += 1
            continue
        meaning, query_id = actions[name], event.get("query_id")
        if query_id not in texts:
            counted["without_query"] += 1
            continue
        product = _object(event, where)
        if product is None:
            counted["not_shown"] += 1
            continue
        if meaning == "shown":
            if query_id not in lists:
                rank = _ordinal(event, where)
                if shown[query_id].setdefault(rank, product) != product:
                    raise ValueError(
                        f"{where}: {product!r} is shown at place {rank}, where "
                        f"{shown[query_id][rank]!r} is: give each its own ordinal"
                    )
            counted["events"] += 1
        elif meaning in done[query_id, product]:
            counted["repeated"] += 1
        else:
            done[query_id, product].add(meaning)
    for query_id, ranks in shown.items():
        lists[query_id] = [ranks[rank] for rank in sorted(ranks)]

    rows: list[tuple[str, str, str, int]] = []
    for query_id, ids in lists.items():
        rows += [(query_id, texts[query_id], p, r) for r, p in enumerate(ids, 1)]
    acted = [done.get((query_id, product), set()) for query_id, _, product, _ in rows]
    on_lists = sum(map(len, acted))
    counted["events"] += on_lists
    counted["not_shown"] += sum(map(len, done.values())) - on_lists
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    ids, queried, products = (np.array(c, dtype=np.str_) for c in columns[:3])
    purchase = np.array(["purchase" in a for a in acted], np.bool_)
    added = np.array(["add_to_cart" in a for a in acted], np.bool_) | purchase
    click = np.array(["click" in a for a in acted], np.bool_) | added
    ranks = np.array(columns[3], np.int32)
    return Impressions(ids, queried, products, ranks, click, added, purchase), (
        Statistics(
            len(lists),
            counted["events"],
            dict(others),
            counted["without_query"],
            counted["not_shown"],
            counted["repeated"],
        )
    )


def documents(
    impressions: Impressions, *, application: str = "jaxqr"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Queries and events of the schema, for files or indices."""
    queries: dict[str, dict[str, Any]] = {}
    events = []
    for list_id, query, product, rank, *acted in zip(
        *(column.tolist() for column in impressions), strict=True
    ):
        one = queries.setdefault(
            list_id,
            {
                "application": application,
                "query_id": list_id,
                "user_query": query,
                "query_response_id": list_id,
                "query_response_hit_ids": [],
                "timestamp": _EPOCH,
            },
        )
        one["query_response_hit_ids"].append(product)
        for meaning, happened in zip(_MEANINGS[1:], acted, strict=True):
            if happened:
                event = {
                    "application": application,
                    "action_name": meaning,
                    "query_id": list_id,
                    "timestamp": _EPOCH,
                    "event_attributes": {
                        "object": {"object_id": product},
                        "position": {"ordinal": rank},
                    },
                }
                events.append(event)
    return list(queries.values()), events


def save(
    folder: str | os.PathLike[str],
    impressions: Impressions,
    *,
    kind: Literal["ndjson", "parquet"] = "ndjson",
) -> None:
    """Writes the two files, which `load` reads back."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip((QUERIES, EVENTS), documents(impressions), strict=True):
        path = folder / f"{name}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            with path.open("w", encoding="utf-8") as file:
                file.writelines(lines)


def _find(folder: Path, name: str) -> Path:
    for ending in _FORMATS:
        if (path := folder / f"{name}{ending}").exists():
            return path
    raise FileNotFoundError(
        f"no {name} in {folder}: expected {name}.ndjson, .jsonl or .parquet"
    )


def _documents(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        yield from pq.read_table(path).to_pylist()
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, row {number}: not JSON ({error}): give one object a line"
                ) from None
            if not isinstance(document, dict):
                raise ValueError(f"{path}, row {number}: expected a JSON object")
            yield document


def _text(document: Mapping[str, Any], name: str, where: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {value!r}, expected a text")
    return value


def _object(event: Mapping[str, Any], where: str) -> str | None:
    """The product that was acted on, if it was one."""
    attributes = event.get("event_attributes") or {}
    if not isinstance(attributes, Mapping):
        raise ValueError(f"{where}: event_attributes is no object")
    thing = attributes.get("object") or {}
    found = thing.get("object_id") if isinstance(thing, Mapping) else thing
    if found is not None and not isinstance(found, str | int):
        raise ValueError(
            f"{where}: object_id is {found!r}, expected a text or a number"
        )
    return None if found is None else str(found)


def _ordinal(event: Mapping[str, Any], where: str) -> int:
    position = (event.get("event_attributes") or {}).get("position") or {}
    rank = position.get("ordinal") if isinstance(position, Mapping) else None
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(
            f"{where}: position.ordinal is {rank!r}, expected a place from 1 on"
        )
    return rank
