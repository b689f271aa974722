"""Cross-validation over queries: who is dealt where, and what no pair may know."""

from collections import Counter

import numpy as np
import pytest

from jaxqr.data.folds import deal, without
from jaxqr.records import Collection, Judgements

QUERIES = [f"query {i}" for i in range(13)]


def test_queries_are_dealt_out_evenly_and_at_random():
    dealt = deal(QUERIES, 5)
    assert sorted(Counter(dealt.values()).values()) == [2, 2, 3, 3, 3]
    assert dealt == deal(QUERIES[::-1], 5)
    assert dealt != deal(QUERIES, 5, seed=1)
    assert [dealt[q] for q in QUERIES] != [i % 5 for i in range(13)]


def test_forms_of_one_query_share_a_fold():
    for seed in range(5):
        dealt = deal([*QUERIES, "Query  3", "QUERY 3"], 5, seed)
        assert dealt["query 3"] == dealt["Query  3"] == dealt["QUERY 3"]


@pytest.mark.parametrize("folds", [1, 14])
def test_as_many_folds_as_there_can_be(folds):
    with pytest.raises(ValueError, match=f"{folds} folds of 13 queries"):
        deal(QUERIES, folds)


def test_judgements_of_some_queries_are_left_out():
    rows = [("a", "1", "E"), ("A ", "2", "S"), ("b", "1", "E")]
    weight = np.array([1.0, 2.0, 3.0])
    judged = Judgements(*map(np.array, zip(*rows, strict=True)), weight)
    collection = Collection({}, {"a": "test", "A ": "test", "b": "train"}, judged)
    left = without(collection, {"a"})
    assert [column.tolist() for column in left.judgements] == [["b"], ["1"], ["E"], [3]]
    assert left.split == collection.split
    assert without(collection, ()).judgements.weight.tolist() == weight.tolist()
