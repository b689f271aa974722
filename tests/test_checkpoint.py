"""Checkpoints: the same bits come back, whole or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxqr import sharding
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.types import TrainState


def toy(seed, rows=3):
    key = jax.random.key(seed)
    params = {"w": jax.random.normal(key, (rows, 64)), "b": jnp.full(2, jnp.nan)}
    moments = (jnp.int32(seed), {"w": params["w"] / 3}, ())
    return TrainState(params, moments, jax.random.split(key)[1], jnp.int32(seed))


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


def test_a_state_comes_back_to_the_bit(checkpoints):
    host = {
        "best": float("-inf"),
        "queue": [
            {"tokens": np.arange(6, dtype=np.int32).reshape(2, 3), "name": "a"},
            {"mask": np.array([[True, False]]), "total": np.float32([0.1, np.nan])},
        ],
        "texts": np.array(["red", "größer"]),
        "empty": np.zeros((0, 4), np.int64),
        "place": {"next_index": 7, "deep": [1, 2.5, None, True, "é"]},
    }
    checkpoints.save(4, toy(4), host)
    state, restored = checkpoints.restore(toy(5))
    tiny.assert_same_bits(state, toy(4))
    assert jax.random.uniform(state.key) == jax.random.uniform(toy(4).key)
    assert restored.keys() == host.keys()
    assert restored["best"] == host["best"]
    assert restored["place"] == host["place"]
    for name in ("texts", "empty"):
        np.testing.assert_array_equal(restored[name], host[name], strict=True)
    for there, here in zip(restored["queue"], host["queue"], strict=True):
        assert there.keys() == here.keys()
        for name, value in here.items():
            np.testing.assert_array_equal(there[name], value)
            assert np.asarray(there[name]).dtype == np.asarray(value).dtype


def test_a_sharded_state_keeps_its_placement(checkpoints):
    mesh = sharding.make_mesh(8)
    state = sharding.shard_params(toy(1, rows=64), mesh)
    checkpoints.save(1, state, {})
    restored, _ = checkpoints.restore(sharding.shard_params(toy(2, rows=64), mesh))
    tiny.assert_same_bits(restored, state)
    assert {s.data.shape for s in restored.params["w"].addressable_shards} == {(8, 64)}
    # And what one mesh has saved goes onto another.
    restored, _ = checkpoints.restore(toy(2, rows=64))
    tiny.assert_same_bits(restored, toy(1, rows=64))


def test_nothing_to_restore(checkpoints):
    assert checkpoints.restore(toy(0)) is None


def test_only_the_newest_are_kept(checkpoints, tmp_path):
    for step in (1, 2, 5):
        checkpoints.save(step, toy(step), {"step": step})
    state, host = checkpoints.restore(toy(0))
    assert (int(state.step), host) == (5, {"step": 5})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["5"]

    several = Checkpoints(tmp_path / "several", keep=2)
    for step in (1, 2, 5):
        several.save(step, toy(step), {})
    several.close()
    assert sorted(p.name for p in (tmp_path / "several").iterdir()) == ["2", "5"]


def test_saving_a_step_again_changes_nothing(checkpoints):
    checkpoints.save(3, toy(3), {"n": 1})
    checkpoints.save(3, toy(4), {"n": 2})
    state, host = checkpoints.restore(toy(0))
    tiny.assert_same_bits(state, toy(3))
    assert host == {"n": 1}


def test_remains_of_a_kill_do_no_harm(tmp_path):
    folder = tmp_path / "checkpoints"
    first = Checkpoints(folder)
    first.save(3, toy(3), {"n": 3})
    first.close()
    # A newer one that was being written, and an older one that was being removed.
    for name in ("4.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-1234", "2"):
        (folder / name / "state").mkdir(parents=True)
        (folder / name / "state" / "manifest.ocdbt").write_text("half")
    second = Checkpoints(folder)
    state, host = second.restore(toy(0))
    tiny.assert_same_bits(state, toy(3))
    assert host == {"n": 3}
    second.save(4, toy(4), {"n": 4})
    state, host = second.restore(toy(0))
    second.close()
    tiny.assert_same_bits(state, toy(4))
    assert host == {"n": 4}
    assert [p.name for p in folder.iterdir()] == ["4"]


def test_a_checkpoint_of_another_state_is_refused(checkpoints):
    checkpoints.save(1, toy(1), {})
    params = toy(1).params

    def refused(like, message):
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(like)

    refused(
        toy(1, rows=4),
        r"opt_state\.1\.w = float32\(3, 64\), expected float32\(4, 64\): it",
    )
    more = params | {"more": jnp.ones(2)}
    refused(
        toy(1)._replace(params=more), r"params\.more = None, expected float32\(2,\)"
    )
    fewer = {"w": params["w"]}
    refused(toy(1)._replace(params=fewer), r"params\.b = float32\(2,\), expected None")
    half = params | {"b": params["b"].astype(jnp.bfloat16)}
    refused(
        toy(1)._replace(params=half), r"params\.b = float32\(2,\), expected bfloat16"
    )
