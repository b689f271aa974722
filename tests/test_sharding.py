"""Eight devices compute what one does, and each holds its part only."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from jaxqr import decode, models, sharding
from jaxqr.models.value import init_value
from jaxqr.train import state as train_state
from jaxqr.train import steps
from jaxqr.types import Preferences, PromptBatch

OPTIMIZER = optax.sgd(0.1, momentum=0.9)
STATIC = {"model": tiny.GPT2, "optimizer": OPTIMIZER}
BATCH = tiny.pairs(tiny.rows(8))
PROMPTS = PromptBatch(BATCH.source, BATCH.source_mask)


def start(params):
    return train_state.create(params, OPTIMIZER, jax.random.key(0))


def two_steps(state, batch, like=None):
    step = steps.compile_step(steps.sft_step, like=like, **STATIC)
    for _ in range(2):
        state, metrics = step(state, batch, {})
    assert step._cache_size() == 1  # the second step found the state where it was
    return state, metrics


def generated(params, prompts):
    return decode.generate(
        tiny.GPT2, params, prompts, jax.random.key(1), max_new_tokens=6
    )


@pytest.fixture(scope="module")
def single():
    return two_steps(start(tiny.params()), BATCH), generated(tiny.params(), PROMPTS)


def parts(x):
    return {shard.data.shape for shard in x.addressable_shards}


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_eight_devices_compute_what_one_does(single, fsdp):
    (expected, expected_metrics), expected_tokens = single
    mesh = sharding.make_mesh(fsdp)
    assert dict(mesh.shape) == {"data": 8 // fsdp, "fsdp": fsdp}
    params = sharding.shard_params(tiny.params(), mesh)
    state = start(params)  # made in its place, the optimizer's part too
    batch = sharding.shard_batch(BATCH, state.params)
    assert parts(batch.source) == {(1, 7)}
    placements = jax.tree.map(lambda x: x.sharding, state)

    state, metrics = two_steps(state, batch, like=state)
    for x, before in zip(
        jax.tree.leaves(state), jax.tree.leaves(placements), strict=True
    ):
        assert x.sharding.is_equivalent_to(before, x.ndim)
        assert len(x.sharding.device_set) == 8

    kernel = state.params["params"]["h_0"]["c_fc"]["kernel"]
    momentum = state.opt_state[0].trace["params"]["h_0"]["c_fc"]["kernel"]
    for x in (kernel, momentum):  # [32, 128] along its larger axis
        assert parts(x) == {(32, 128 // fsdp)}
        assert x.sharding.spec == (P(None, "fsdp") if fsdp > 1 else P())
    assert parts(state.params["params"]["h_0"]["c_fc"]["bias"]) == {(128,)}

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.device_get(state.params),
        jax.device_get(expected.params),
    )
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)

    if fsdp == 2:  # both axes are in use; each mesh compiles a program of its own
        sharded = generated(params, sharding.shard_batch(PROMPTS, params))
        np.testing.assert_array_equal(sharded.tokens, expected_tokens.tokens)
        np.testing.assert_array_equal(sharded.mask, expected_tokens.mask)
        np.testing.assert_allclose(sharded.logps, expected_tokens.logps, atol=1e-4)


def test_an_encoder_decoder_computes_the_same(monkeypatch):
    """A step, samples and beams on both axes, with a table rounded up for the mesh."""
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    model = tiny.T5
    wide = models.build(dataclasses.replace(model.config, vocab_multiple=128))

    def widened(x):
        return np.pad(x, ((0, 84), (0, 0))) if x.shape[0] == tiny.VOCAB else x

    params = tiny.params(model=model)
    placed = sharding.shard_params(jax.tree.map(widened, params), sharding.make_mesh(2))
    assert parts(placed["params"]["shared"]["embedding"]) == {(192, 32)}

    def all_of(model, params):
        batch, prompts = (sharding.shard_batch(x, params) for x in (BATCH, PROMPTS))
        new = {"max_new_tokens": 6}
        drawn = decode.generate(model, params, prompts, jax.random.key(1), **new)
        beams = decode.beam_search(
            model, params, prompts, num_beams=4, num_groups=2, diversity_penalty=0.5,
            **new,
        )  # fmt: skip
        state = start(params)
        static = {"model": model, "optimizer": OPTIMIZER}
        step = steps.compile_step(
            steps.sft_step, like=state if model is wide else None, **static
        )
        state, metrics = step(state, batch, {})
        return jax.device_get((state.params, metrics, drawn, beams))

    expected, found = all_of(model, params), all_of(wide, placed)
    narrow = jax.tree.map(lambda x, y: x[: len(y)], found[0], expected[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (narrow, found[1]),
        expected[:2],
    )
    for one, other in zip(found[2:], expected[2:], strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-4)


LORA = models.build(
    dataclasses.replace(
        tiny.GPT2.config, dtype="bfloat16", remat="full", lora_rank=2, lora_alpha=4.0
    )
)
HALF = models.build(dataclasses.replace(tiny.GPT2.config, dtype="bfloat16"))


def preference_case():
    """A reference with adapters of its own."""
    rejected = tiny.pairs(tiny.rows(8, seed=1))
    batch = Preferences(
        *BATCH, rejected.target, rejected.target_mask, np.ones(8, np.float32)
    )
    return steps.dpo_step, {"beta": 0.3}, batch, adapted(1)


def distillation_case():
    rng = np.random.default_rng(0)
    old, theirs = (
        np.where(BATCH.target_mask, rng.uniform(-6, -2, (8, 8)), 0).astype(np.float32)
        for _ in range(2)
    )
    corpus = tiny.pairs(tiny.rows(8, source=1, seed=2))
    # A token that the clip drops on one machine alone would be a difference.
    settings = steps.MiniLLM.mode("paper", clip=1e3)
    static = {"teacher": HALF, "settings": settings}
    batch = steps.MiniLLMBatch(BATCH, old, theirs, corpus)
    return steps.minillm_step, static, batch, tiny.params(1)


def policy_case():
    """No frozen model but the base; a value head is trained with the adapters."""
    rng = np.random.default_rng(0)
    mask = BATCH.target_mask
    columns = [np.where(mask, rng.normal(size=mask.shape), 0) for _ in range(3)]
    logps = np.where(mask, rng.uniform(-6, -2, mask.shape), 0)
    batch = steps.PPOBatch(BATCH, *np.float32([logps, *columns]))
    # A token that the clip drops on one machine alone would be a difference.
    return steps.ppo_step, {"clip": 1e3, "value_clip": 1e3}, batch, None


def adapted(seed):
    lora = models.init(LORA, jax.random.key(seed))["lora"]
    return {**tiny.params(seed), "lora": tiny.scrambled(lora, 0.2, seed)}


@pytest.mark.parametrize("case", [preference_case, distillation_case, policy_case])
def test_adapters_in_half_precision_with_remat_compute_the_same(case, monkeypatch):
    """On both axes; the frozen model is split, too. Adapters alone are trained."""
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    step, static, batch, frozen = case()
    optimizer = optax.sgd(0.1)
    start_params, collections = adapted(0), {"lora"}
    if case is policy_case:
        start_params, collections = init_value(LORA, start_params), {"lora", "value"}

    def train(place):
        trained, base = models.partition(place(start_params))
        other = [] if frozen is None else [place(frozen)]
        state = train_state.create(trained, optimizer, jax.random.key(0))
        before = jax.device_get(state.params)
        compiled = steps.compile_step(
            step, like=state, model=LORA, optimizer=optimizer, **static
        )
        placed = sharding.shard_batch(batch, base)
        losses, places = [], jax.tree.map(lambda x: x.sharding, state)
        for _ in range(2):
            state, metrics = compiled(state, placed, base, *other)
            losses.append(float(metrics["loss"]))
        assert compiled._cache_size() == 1
        assert jax.tree.map(lambda x: x.sharding, state) == places
        assert state.params.keys() == collections
        after = jax.device_get(state.params)
        moves = jax.tree.map(lambda a, b: np.ravel(a - b), before, after)
        split = [not x.is_fully_replicated for x in jax.tree.leaves((base, other))]
        return losses, np.concatenate(jax.tree.leaves(moves)), any(split)

    mesh = sharding.make_mesh(2)
    expected_losses, expected, alone = train(lambda params: params)
    losses, moves, split = train(lambda params: sharding.shard_params(params, mesh))
    assert (alone, split) == (False, True)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-2)
    assert np.linalg.norm(moves - expected) < 0.03 * np.linalg.norm(expected)


def test_what_is_small_or_odd_is_replicated(monkeypatch):
    mesh = sharding.make_mesh(8)
    monkeypatch.setattr(sharding, "SMALLEST", 1)
    arrays = {
        "odd": np.zeros((3, 5)),
        "rows": np.zeros((16, 3)),
        "columns": np.zeros((8, 24)),
        "scalar": np.zeros(()),
    }
    placed = sharding.shard_params(arrays, mesh)
    specs = {name: x.sharding.spec for name, x in placed.items()}
    assert specs == {
        "odd": P(),
        "rows": P("fsdp"),
        "columns": P(None, "fsdp"),
        "scalar": P(),
    }


def test_a_batch_that_does_not_divide_is_replicated():
    mesh = sharding.make_mesh(2)
    params = sharding.shard_params(np.zeros(3), mesh)
    batch = {"a": np.zeros((7, 2)), "b": np.zeros(16)}
    placed = sharding.shard_batch(batch, params)
    assert parts(placed["a"]) == {(7, 2)}
    assert parts(placed["b"]) == {(2,)}
    assert sharding.shard_batch(batch, tiny.params()) is batch  # never placed


def test_devices_that_do_not_divide():
    with pytest.raises(ValueError, match="fsdp=3 does not divide the 8 devices"):
        sharding.make_mesh(3)
