"""User Behavior Insights: documents as the schema has them, and the way back."""

import json

import numpy as np
import pytest

from jaxqr.data import ubi
from jaxqr.records import Impressions

QUERIES = [
    {
        "application": "primary-search",
        "query_id": "q1",
        "client_id": "browser-1",
        "user_query": "Red  Shoe",
        "object_id_field": "sku",
        "query_attributes": {"page": 1},
        "query_response_id": "r1",
        "query_response_hit_ids": ["B07XLFYN6S", "é-2", "3"],
        "timestamp": "2018-11-13T20:20:39Z",
    },
    {"query_id": "q2", "user_query": "日本"},  # what was shown is in the events
    {"query_id": "q3", "user_query": "nothing", "query_response_hit_ids": []},
]


def event(action, query, product, ordinal=None):
    position = {} if ordinal is None else {"ordinal": ordinal}
    attributes = {"object": {"object_id": product}, "position": position}
    return {
        "action_name": action,
        "query_id": query,
        "timestamp": "2018-11-13T20:20:39Z",
        "event_attributes": attributes,
    }


EVENTS = [
    event("click_through", "q1", "é-2", 2),
    event("click", "q1", "é-2", 2),  # the same thing again
    event("purchase", "q1", 3),  # ids may be numbers
    event("click", "q1", "elsewhere"),
    event("impression", "q2", "b", 2),
    event("impression", "q2", "a", 1),
    event("impression", "q2", "a", 1),
    event("add_to_cart", "q2", "b"),
    event("click", "unknown", "a"),
    {"action_name": "login", "timestamp": "2018-11-13T20:20:39Z"},
    {"action_name": "click", "query_id": "q1", "timestamp": "2018-11-13T20:20:39Z"},
]


def assert_equal(one: Impressions, other: Impressions):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype.kind == b.dtype.kind


def test_queries_and_events_are_joined():
    found, counts = ubi.join(QUERIES, EVENTS)
    assert found.list_id.tolist() == ["q1"] * 3 + ["q2"] * 2
    assert found.query.tolist() == ["Red  Shoe"] * 3 + ["日本"] * 2
    assert found.product_id.tolist() == ["B07XLFYN6S", "é-2", "3", "a", "b"]
    assert found.rank.tolist() == [1, 2, 3, 1, 2]
    assert found.click.tolist() == [False, True, True, False, True]
    assert found.add_to_cart.tolist() == [False, False, True, False, True]
    assert found.purchase.tolist() == [False, False, True, False, False]
    # 1 click, 1 purchase, 3 impressions and an addition count.
    assert counts == ubi.Statistics(3, 6, {"login": 1}, 1, 2, 1)


def test_action_names_are_mapped():
    found, counts = ubi.join(
        QUERIES, [event("pdp", "q1", "3")], actions={"pdp": "click"}
    )
    assert found.click.tolist() == [False, False, True]
    assert counts.other_actions == {}
    with pytest.raises(ValueError, match=r"actions that mean \['bought'\]"):
        ubi.join([], [], actions={"x": "bought"})


@pytest.mark.parametrize("kind", ["ndjson", "parquet"])
def test_files_come_back(kind, tmp_path):
    found, _ = ubi.join(QUERIES, EVENTS)
    ubi.save(tmp_path / "new", found, kind=kind)
    again, counts = ubi.load(tmp_path / "new")
    assert_equal(again, found)
    assert counts == ubi.Statistics(2, 6, {}, 0, 0, 0)  # a purchase is three events
    # Each document is one of the schema's, with all that it requires.
    queries, events = ubi.documents(found)
    assert all(isinstance(query["user_query"], str) for query in queries)
    assert all({"action_name", "timestamp"} <= set(e) for e in events)
    assert all(e["event_attributes"]["position"]["ordinal"] >= 1 for e in events)


def test_nothing_at_all(tmp_path):
    found, counts = ubi.join([], [])
    assert len(found.query) == counts.lists == 0
    ubi.save(tmp_path, found)
    assert_equal(ubi.load(tmp_path)[0], found)


@pytest.mark.parametrize(
    ("queries", "events", "message"),
    [
        ([{"user_query": "a"}], [], r"queries, row 1: query_id is None"),
        ([{"query_id": "1", "user_query": 3}], [], "row 1: user_query is 3"),
        ([QUERIES[0], QUERIES[0]], [], "row 2: the query_id 'q1' occurs twice"),
        (
            [QUERIES[0] | {"query_response_hit_ids": ["a", "a"]}],
            [],
            "row 1: query_response_hit_ids is .*distinct",
        ),
        (QUERIES, [{"query_id": "q1"}], "events, row 1: action_name is None"),
        (QUERIES, [event("impression", "q2", "a", 0)], "row 1: position.ordinal is 0"),
        (QUERIES, [event("impression", "q2", "a")], "position.ordinal is None"),
        (
            QUERIES,
            [event("view", "q2", "a", 1), event("view", "q2", "b", 1)],
            "row 2: 'b' is shown at place 1, where 'a' is",
        ),
        (QUERIES, [event("click", "q1", 1.5)], "object_id is 1.5"),
        (
            QUERIES,
            [{"action_name": "click", "query_id": "q1", "event_attributes": "x"}],
            "event_attributes is no object",
        ),
    ],
)
def test_what_is_at_fault_is_named(queries, events, message):
    with pytest.raises(ValueError, match=message):
        ubi.join(queries, events, names=("queries", "events"))


def test_files_at_fault(tmp_path):
    with pytest.raises(FileNotFoundError, match="no ubi_queries in"):
        ubi.load(tmp_path)
    (tmp_path / "ubi_queries.ndjson").write_text(json.dumps(QUERIES[0]) + "\n\n{\n")
    (tmp_path / "ubi_events.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"ubi_queries.ndjson, row 3: not JSON"):
        ubi.load(tmp_path)
    (tmp_path / "ubi_queries.ndjson").write_text("[]\n")
    with pytest.raises(ValueError, match="row 1: expected a JSON object"):
        ubi.load(tmp_path)
