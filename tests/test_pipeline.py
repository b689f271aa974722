"""Batches: every row once per epoch, and a place that can be saved."""

import json

import numpy as np
import pytest
import tiny

from jaxqr.data.pipeline import (
    Batches,
    bucket,
    collate_encoder,
    collate_pairs,
    in_order,
    pair_batches,
)
from jaxqr.data.tokenize import EncoderRow, Row

ROWS = list(range(7))


def numbers(batch_size=2, seed=0, rows=ROWS):
    return Batches(rows, list, batch_size=batch_size, seed=seed)


def take(batches, count):
    return [batches.next(None) for _ in range(count)]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 10])
def test_epochs_hold_every_row_once(batch_size):
    epochs = 4 * batch_size  # a whole number of batches
    batches = take(numbers(batch_size), len(ROWS) * 4)
    assert {len(batch) for batch in batches} == {batch_size}
    flat = np.concatenate(batches).reshape(epochs, len(ROWS))
    np.testing.assert_array_equal(np.sort(flat, axis=1), [ROWS] * epochs)
    assert len({tuple(epoch) for epoch in flat.tolist()}) > 1


def test_the_seed_decides_the_order():
    one, again, other = (take(numbers(seed=seed), 8) for seed in (3, 3, 4))
    assert one == again
    assert one != other


@pytest.mark.parametrize("before", [0, 1, 5, 7, 11])
def test_a_saved_place_goes_on_with_the_next_batch(before):
    batches = numbers()
    take(batches, before)
    saved = json.loads(json.dumps(batches.save()))
    expected = take(batches, 9)

    fresh = numbers()
    fresh.load(saved)
    assert take(fresh, 9) == expected
    # And an object that has gone astray, with batches waiting in its queue.
    batches.load(saved)
    assert take(batches, 9) == expected


def test_asking_for_the_place_moves_nothing():
    plain, asked = numbers(), numbers()
    for _ in range(9):
        asked.save()
        assert asked.next(None) == plain.next(None)


def test_no_rows():
    with pytest.raises(ValueError, match="no rows to make batches of"):
        numbers(rows=[])


def test_buckets():
    assert [bucket(n) for n in (0, 1, 16, 17, 1024)] == [1, 1, 16, 32, 1024]
    assert bucket(5, (4, 8)) == 8
    with pytest.raises(
        ValueError, match="length 1025 exceeds the largest bucket, 1024"
    ):
        bucket(1025)


def test_pairs_are_padded_to_their_buckets():
    rows = [Row([1] * 3, [2] * 17), Row([3], [4])]
    batch = collate_pairs(rows, fill=9)
    assert batch.source.shape == batch.source_mask.shape == (2, 16)
    assert batch.target.shape == batch.target_mask.shape == (2, 32)
    assert batch.source[1].tolist() == [9] * 15 + [3]
    assert batch.target[1].tolist() == [4] + [9] * 31
    assert batch.source_mask.sum(axis=1).tolist() == [3, 1]
    assert batch.target_mask.sum(axis=1).tolist() == [17, 1]


def test_encoder_rows_are_padded_on_the_right():
    rows = [EncoderRow([5, 6, 7], [0, 0, 1], 2), EncoderRow([5], [1], 0, 0.25)]
    batch = collate_encoder(rows, fill=9)
    assert batch.tokens[:, :4].tolist() == [[5, 6, 7, 9], [5, 9, 9, 9]]
    assert batch.segments[:, :4].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert batch.mask.sum(axis=1).tolist() == [3, 1]
    assert batch.label.tolist() == [2, 0]
    assert all(x.shape == (2, 16) for x in batch[:3])
    assert batch.weight.tolist() == [1.0, 0.25]
    assert [x.dtype for x in batch] == [np.int32, bool, np.int32, np.int32, np.float32]


def test_pair_batches_have_one_shape_per_bucket():
    rows = tiny.tokenizer().pairs(tiny.PAIRS, max_source=16, max_target=16)
    batches = take(pair_batches(rows, batch_size=6, seed=0, fill=tiny.EOS), 8)
    assert {x.shape for batch in batches for x in batch} == {(6, 16)}
    seen = [
        (row[mask].tolist(), target[target_mask].tolist())
        for batch in batches
        for row, mask, target, target_mask in zip(*batch, strict=True)
    ]
    assert sorted(seen) == sorted((row.source, row.target) for row in rows)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 9])
def test_in_order_counts_what_is_real(batch_size):
    parts = list(in_order(ROWS, list, batch_size=batch_size))
    assert {len(batch) for batch, _ in parts} == {batch_size}
    assert [row for batch, real in parts for row in batch[:real]] == ROWS
    assert [real for _, real in parts[:-1]] == [batch_size] * (len(parts) - 1)
    batch, real = parts[-1]
    assert set(batch[real:]) <= {ROWS[-1]}


def test_nothing_in_order():
    assert list(in_order([], list, batch_size=3)) == []
