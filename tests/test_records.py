"""What travels between the host's modules, and its way over a wire."""

import json

import numpy as np
import pytest
import tiny

from jaxqr.records import Hits, Labels, Reward


def hits(ids, scores=None, valid=None):
    ids = np.array(ids, np.str_)
    given = np.zeros(ids.shape) if scores is None else scores
    valid = [True] * len(ids) if valid is None else valid
    return Hits(ids, np.array(given, np.float32), np.array(valid, np.bool_))


def reward(total, *, valid=None, hits=None, flags=(), **parts):
    total = np.array(total, np.float32)
    valid = [True] * len(total) if valid is None else valid
    return Reward(
        total,
        {name: np.array(part, np.float32) for name, part in parts.items()},
        np.array(valid, np.bool_),
        {name: np.array(flag, np.bool_) for name, flag in dict(flags).items()},
        hits,
    )


# The smallest and the largest float32, numbers that decimals only come near to, and
# both zeros.
ODD = [1e-45, 3.4028235e38, 1 / 3, 0.1, -0.0, 0.0, np.pi, 1.0000001]
REWARDS = {
    "numbers": reward(ODD, valid=[True] * 7 + [False], click=ODD[::-1], diversity=ODD),
    "flags": reward([0.5, 0], flags={"copy": [True, False], "empty": [False, True]}),
    "lists": reward(
        [0.5, 0.25, 0],
        valid=[True, True, False],
        hits=hits(
            [["B0", "靴"], ["0", ""], ["", ""]],
            [[1 / 3, 0.1], [7, 0], [0, 0]],
            [True, True, False],
        ),
    ),
    "lists of none": reward([0.5, 0.25], hits=hits(np.zeros((2, 0)))),
    "unknown": Reward.unknown(3),
    "no rows": reward([], click=[], flags={"copy": []}),
    "one": reward([1.0], hits=hits([["a"]])),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_goes_over_the_wire_bit_for_bit(name):
    sent = REWARDS[name]
    back = Reward.from_json(json.loads(json.dumps(sent.to_json())))
    assert list(back.parts) == list(sent.parts)
    assert list(back.flags) == list(sent.flags)
    assert (back.hits is None) == (sent.hits is None)
    tiny.assert_same_bits(
        (back.total, dict(back.parts), back.valid, dict(back.flags)),
        (sent.total, dict(sent.parts), sent.valid, dict(sent.flags)),
    )
    assert np.signbit(back.total).tolist() == np.signbit(sent.total).tolist()
    if sent.hits is not None:
        assert back.hits is not None
        for one, other in zip(back.hits, sent.hits, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype.kind == other.dtype.kind
    # And once more the same.
    assert json.dumps(back.to_json()) == json.dumps(sent.to_json())


def test_random_rewards_go_over_the_wire_bit_for_bit():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32)
    finite = np.where(np.isfinite(bits), bits, np.float32(0))
    sent = reward(finite, relevance=finite[::-1])
    back = Reward.from_json(json.loads(json.dumps(sent.to_json())))
    tiny.assert_same_bits(back.total, finite)
    tiny.assert_same_bits(back.parts["relevance"], finite[::-1])


def spoilt(**fields):
    """The JSON of two rows with other values; a field of None is left out."""
    value = reward(
        [0.5, 0.25], click=[1, 0], flags={"copy": [False, True]},
        hits=hits([["a", "b"], ["c", ""]]),
    ).to_json()  # fmt: skip
    value |= fields
    return {name: x for name, x in value.items() if x != "left out"}


def lists(**fields):
    return spoilt(hits=spoilt()["hits"] | fields)


@pytest.mark.parametrize("name", ["total", "parts", "valid", "flags", "hits"])
def test_a_reward_lacks_a_field(name):
    with pytest.raises(ValueError, match=f"without the field '{name}'"):
        Reward.from_json(spoilt(**{name: "left out"}))


@pytest.mark.parametrize("name", ["ids", "scores", "valid"])
def test_lists_lack_a_field(name):
    value = spoilt()
    del value["hits"][name]
    with pytest.raises(ValueError, match=f"without the field '{name}'"):
        Reward.from_json(value)


MALFORMED = {
    "nothing": None,
    "a list": [1, 2],
    "a text": "total",
    "a number": 3,
    "total a number": spoilt(total=0.5),
    "total of texts": spoilt(total=["0.5", "0.25"]),
    "total of none": spoilt(total=[None, 0.25]),
    "total of booleans": spoilt(total=[True, False]),
    "total of lists": spoilt(total=[[0.5], [0.25]]),
    "total ragged": spoilt(total=[[0.5], [0.25, 1]]),
    "total an object": spoilt(total={"0": 0.5}),
    "total longer": spoilt(total=[0.5, 0.25, 0.125]),
    "valid of numbers": spoilt(valid=[1, 0]),
    "valid of texts": spoilt(valid=["true", "false"]),
    "valid shorter": spoilt(valid=[True]),
    "valid of nobody": spoilt(valid=[]),
    "parts a list": spoilt(parts=[[0.5, 0.25]]),
    "a part shorter": spoilt(parts={"click": [0.5]}),
    "a part of texts": spoilt(parts={"click": ["a", "b"]}),
    "a part of lists": spoilt(parts={"click": [[1.0], [0.0]]}),
    "flags none": spoilt(flags=None),
    "a flag of numbers": spoilt(flags={"copy": [0, 1]}),
    "a flag longer": spoilt(flags={"copy": [True] * 3}),
    "hits a list": spoilt(hits=[]),
    "ids of numbers": lists(ids=[[1, 2], [3, 4]]),
    "ids flat": lists(ids=["a", "b", "c", ""]),
    "ids ragged": lists(ids=[["a", "b"], ["c"]]),
    "ids of fewer rows": lists(ids=[["a", "b"]]),
    "fewer scores than ids": lists(scores=[[1.0], [2.0]]),
    "scores flat": lists(scores=[1.0, 0.5, 0.25, 0.0]),
    "scores of texts": lists(scores=[["1", "2"], ["3", "4"]]),
    "lists of more rows": lists(valid=[True] * 3),
    "lists valid by numbers": lists(valid=[1, 1]),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_rewards_are_refused(fault):
    with pytest.raises(ValueError, match=r"reward|lists of") as raised:
        Reward.from_json(MALFORMED[fault])
    assert "\n" not in str(raised.value)


def test_further_fields_and_whole_numbers_are_fine():
    """As another version, or another language, may write them."""
    back = Reward.from_json(spoilt(total=[1, 0], version=2))
    assert back.total.tolist() == [1.0, 0.0]
    assert back.total.dtype == np.float32


def test_parts_are_nan_where_nothing_is_known():
    some = reward([0.5, 0.0], valid=[True, False], click=[1.0, 0.0])
    for name, first in (("total", 0.5), ("click", 1.0)):
        values = some.part(name)
        assert values.dtype == np.float64
        assert values[0] == first
        assert np.isnan(values[1])
    assert np.isnan(some.part("purchase")).all()


def test_unknown_rewards():
    nothing = Reward.unknown(3)
    assert not nothing.valid.any()
    assert nothing.total.tolist() == [0, 0, 0]
    assert np.isnan(nothing.part("total")).all()
    assert Reward.unknown(0).total.shape == (0,)


def test_some_rows_of_lists():
    some = hits([["a", "b"], ["c", ""], ["", ""]], valid=[True, True, False])
    taken = some.take(np.array([2, 0, 0]))
    assert taken.ids.tolist() == [["", ""], ["a", "b"], ["a", "b"]]
    assert taken.valid.tolist() == [False, True, True]


def test_labels():
    esci = Labels()
    assert [esci.gain(name) for name in esci.names] == [1.0, 0.1, 0.01, 0.0]
    assert set(esci.relevant) < set(esci.names)
    three = Labels(("exact", "partial", "none"), (1.0, 0.5, 0.0), ("exact",))
    assert (three.num_classes, three.gain("partial")) == (3, 0.5)
    with pytest.raises(ValueError, match="no such"):
        three.gain("no such")
