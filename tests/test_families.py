"""What every language model promises, decoder-only or not, on one tiny model each."""

import dataclasses
from functools import partial

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxqr import decode, models, vocab
from jaxqr.models import combine, partition
from jaxqr.models.t5 import bucket_table
from jaxqr.types import Pairs, PromptBatch

FAMILIES = {"gpt2": tiny.GPT2, "llama": tiny.LLAMA, "t5": tiny.T5}
CAUSAL = ("gpt2", "llama")
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, tiny.VOCAB, (3, 10), np.int32)
SOURCE_MASK = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
TARGET_MASK = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 6], bool)
PAIRS = Pairs(TOKENS[:, :4], SOURCE_MASK, TOKENS[:, 4:], TARGET_MASK)
PROMPTS = PromptBatch(TOKENS[:, :4], SOURCE_MASK)
WINDOW = np.pad(TARGET_MASK, ((0, 0), (1, 0)), constant_values=True)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """Its name, the module, and parameters under which nothing is near to uniform."""
    model = FAMILIES[request.param]
    return request.param, model, tiny.params(model=model)


def completion(model, params, pairs=PAIRS):
    return golden.apply(model, params, pairs, method="completion")


@pytest.fixture(scope="module")
def hidden(family):
    return completion(*family[1:])[0].hidden


def assert_close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def changed(model, **fields):
    return models.build(dataclasses.replace(model.config, **fields))


def test_the_window_holds_the_target(family, hidden):
    _, model, params = family
    features, tokens, mask = completion(model, params)
    assert features.hidden.shape == (3, 7, 32)
    assert tokens[:, 1:].tolist() == PAIRS.target.tolist()
    assert not mask[:, 0].any()
    assert mask[:, 1:].tolist() == TARGET_MASK.tolist()


def test_padding_changes_nothing(family, hidden):
    _, model, params = family
    left, right = ((0, 0), (3, 0)), ((0, 0), (0, 2))
    padded = Pairs(
        np.pad(PAIRS.source, left, constant_values=7),
        np.pad(SOURCE_MASK, left),
        np.pad(PAIRS.target, right, constant_values=9),
        np.pad(TARGET_MASK, right),
    )
    out = completion(model, params, padded)[0].hidden[:, :7]
    assert_close(out[WINDOW], hidden[WINDOW])
    garbage = PAIRS._replace(source=np.where(SOURCE_MASK, PAIRS.source, 11))
    assert_close(completion(model, params, garbage)[0].hidden, hidden)


def test_the_source_matters(family, hidden):
    """Its first token reaches the last column of the target."""
    _, model, params = family
    source = PAIRS.source.copy()
    source[1, 0] += 1
    out = completion(model, params, PAIRS._replace(source=source))[0].hidden
    assert np.abs(out[1, 1:] - hidden[1, 1:]).max() > 1e-3
    assert_close(out[0], hidden[0])


def test_later_tokens_are_not_seen(family, hidden):
    _, model, params = family
    target = PAIRS.target.copy()
    target[:, 3] += 1
    out = completion(model, params, PAIRS._replace(target=target))[0].hidden
    assert_close(out[:, :4], hidden[:, :4])
    assert np.abs(out[:, 4] - hidden[:, 4]).max() > 1e-3


def test_a_cache_changes_nothing(family, hidden):
    _, model, params = family
    features, cache = golden.apply(
        model, params, PROMPTS, max_new_tokens=6, method="prefill"
    )
    assert_close(features.hidden, hidden[:, :1])
    step = jax.jit(partial(model.apply, params, method="decode_step"))
    for t in range(6):
        features, cache = step(cache, TOKENS[:, 4 + t])
        seen = TARGET_MASK[:, t]
        assert_close(features.hidden[seen, 0], hidden[seen, t + 1])
    assert step._cache_size() == 1


def test_a_cache_repeats_and_reorders_its_rows(family):
    _, model, params = family
    _, cache = golden.apply(model, params, PROMPTS, max_new_tokens=3, method="prefill")
    step = jax.jit(partial(model.apply, params, method="decode_step"))
    # Rows 2b and 2b+1 are of prompt b. They read different tokens, then change places.
    first = np.arange(6, dtype=np.int32) + 20
    second = np.arange(6, dtype=np.int32) + 40
    _, twice = step(cache.repeat(2), first)
    swap = np.array([1, 0, 3, 2, 4, 4])
    within = jnp.asarray(swap.reshape(3, 2) % 2)
    out, _ = step(twice.take(within), second)
    target = np.stack([first[swap], second], axis=1)
    pairs = Pairs(*PROMPTS, target, np.ones(target.shape, bool))
    assert_close(out.hidden[:, 0], completion(model, params, pairs)[0].hidden[:, 2])


def test_targets_of_one_source_do_not_see_each_other(family):
    """Read together with their source, they are what each is alone with it."""
    _, model, params = family
    targets = np.stack([PAIRS.target, PAIRS.target[::-1]], axis=1).reshape(6, 6)
    mask = np.stack([TARGET_MASK, TARGET_MASK[::-1]], axis=1).reshape(6, 6)
    both = PAIRS._replace(target=targets, target_mask=mask)
    features, window, counted = completion(model, params, both)
    for n in range(2):
        alone = PAIRS._replace(target=targets[n::2], target_mask=mask[n::2])
        expected = completion(model, params, alone)
        assert_close(features.hidden[n::2], expected[0].hidden)
        assert window[n::2].tolist() == expected[1].tolist()
        assert counted[n::2].tolist() == expected[2].tolist()
    with pytest.raises(ValueError, match="5 targets for 3 sources"):
        model.apply(
            params,
            PAIRS._replace(target=targets[:5], target_mask=mask[:5]),
            method="completion",
        )


def test_generation_is_teacher_forcing_and_compiles_once(family):
    _, model, params = family
    before = decode.generation._generate._cache_size()
    for temperature in (1.0, 0.0):
        drawn = decode.generate(
            model, params, PROMPTS, jax.random.key(3),
            max_new_tokens=6, n=2, temperature=temperature,
        )  # fmt: skip
        pairs = Pairs(*PROMPTS, drawn.tokens, drawn.mask)
        features, tokens, mask = completion(model, params, pairs)
        logps = np.where(mask, vocab.token_logps(features, tokens), 0.0)
        np.testing.assert_allclose(drawn.logps, logps[:, 1:], rtol=0, atol=1e-4)
    assert decode.generation._generate._cache_size() == before + 1
    logits = np.asarray(features.hidden @ features.unembed.T)
    best = np.argmax(logits[:, :-1], axis=-1)
    assert (best == drawn.tokens)[np.asarray(drawn.mask)].all()


def test_beams_hold_what_they_say(family):
    _, model, params = family
    found = decode.beam_search(model, params, PROMPTS, max_new_tokens=6, num_beams=2)
    target, mask = (np.asarray(x).reshape(6, 6) for x in (found.tokens, found.mask))
    features, tokens, counted = completion(model, params, Pairs(*PROMPTS, target, mask))
    logps = np.where(counted, vocab.token_logps(features, tokens), 0.0).sum(axis=1)
    np.testing.assert_allclose(found.logps.reshape(-1), logps, atol=1e-4)
    assert (np.diff(found.scores, axis=1) <= 0).all()


def gradient_of(model, rest=None):
    """The gradient of a sum over the window by what is trained."""

    def loss(params):
        params = combine(params, rest or {})
        hidden = model.apply(params, PAIRS, method="completion")[0].hidden
        return jnp.square(hidden.astype(jnp.float32) * WINDOW[..., None]).mean()

    return jax.jit(jax.grad(loss))


def test_empty_rows_are_finite(family):
    _, model, params = family
    source_mask = SOURCE_MASK.copy()
    source_mask[1] = False
    empty = PAIRS._replace(
        source_mask=source_mask, target_mask=np.zeros_like(TARGET_MASK)
    )

    def loss(params):
        hidden = model.apply(params, empty, method="completion")[0].hidden
        return jnp.square(hidden).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_bfloat16_is_close(family, hidden):
    _, model, params = family
    half = changed(model, dtype="bfloat16")
    features = completion(half, params)[0]
    assert features.hidden.dtype == features.unembed.dtype == jnp.bfloat16
    error = np.linalg.norm(features.hidden.astype(np.float32) - hidden)
    assert 0 < error < 0.05 * np.linalg.norm(hidden)
    features, cache = jax.eval_shape(
        partial(half.apply, max_new_tokens=2, method="prefill"), params, PROMPTS
    )
    assert cache.layers[0].keys.dtype == features.hidden.dtype == jnp.bfloat16
    features, _ = jax.eval_shape(
        partial(half.apply, method="decode_step"), params, cache, TOKENS[:, 0]
    )
    assert features.hidden.dtype == jnp.bfloat16
    gradient = jax.eval_shape(gradient_of(half), params)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_rematerialisation_changes_nothing(family):
    name, model, params = family
    remat = changed(model, remat="dots" if name == "llama" else "full")
    assert "remat" in str(gradient_of(remat).trace(params).jaxpr)
    jax.tree.map(assert_close, gradient_of(remat)(params), gradient_of(model)(params))


# Adapters


def adapted(model, params, scale=0.0):
    """The model with adapters, the second ones of each at `scale`."""
    model = changed(model, lora_rank=2, lora_alpha=6.0)
    lora = models.init(model, jax.random.key(5))["lora"]
    drawn = tiny.scrambled(lora, 0.3)
    return model, {**params, "lora": drawn if scale else lora}


def test_fresh_adapters_change_nothing(family, hidden):
    _, model, params = family
    model, params = adapted(model, params)
    assert_close(completion(model, params)[0].hidden, hidden, 1e-6)
    # A pair for every linear map of the blocks, and nowhere else.
    layers = {"gpt2": 2 * 4, "llama": 2 * 7, "t5": 2 * (4 + 3) + 2 * (8 + 3)}
    assert len(jax.tree.leaves(params["lora"])) == 2 * layers[family[0]]


def test_adapters_are_all_that_is_trained(family):
    _, model, params = family
    model, params = adapted(model, params, scale=1.0)
    trained, kept = partition(params)
    gradient = gradient_of(model, kept)(trained)
    assert jax.tree.structure(gradient) == jax.tree.structure(trained)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


def test_adapters_are_merged_on_export(family, hidden, tmp_path):
    _, model, params = family
    with_adapters, params = adapted(model, params, scale=1.0)
    expected = completion(with_adapters, params)[0].hidden
    assert np.abs(expected - hidden).max() > 0.01
    models.save_pretrained(tmp_path, with_adapters, params)
    merged, loaded = models.load_pretrained(tmp_path)
    assert merged.config.lora_rank == 0
    assert_close(completion(merged, loaded)[0].hidden, expected, 1e-4)
    # Loaded for more training, it begins where it ended.
    with pytest.raises(ValueError, match="lora_rank=3: pass `key=`"):
        models.load_pretrained(tmp_path, lora_rank=3)
    again, loaded = models.load_pretrained(tmp_path, lora_rank=3, key=jax.random.key(0))
    assert again.config.lora_rank == 3
    assert_close(completion(again, loaded)[0].hidden, expected, 1e-4)


# Vocabularies


def test_ids_that_do_not_exist_are_never_predicted(family):
    _, model, params = family
    fewer = changed(model, num_tokens=250)
    features, _, _ = completion(fewer, params)
    assert features.unembed.shape == (250, 32)
    drawn = decode.generate(
        fewer, params, PROMPTS, jax.random.key(0), max_new_tokens=6, temperature=9.0
    )
    assert np.asarray(drawn.tokens).max() < 250
    with pytest.raises(ValueError, match="num_tokens=301 is more than vocab_size=300"):
        completion(changed(model, num_tokens=301), params)


def test_rounded_vocabularies_are_exact(family, hidden, tmp_path):
    """Rows for the mesh change nothing, and are not exported."""
    _, model, params = family
    models.save_pretrained(tmp_path, model, params)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    wide, loaded = models.load_pretrained(tmp_path, vocab_multiple=128)
    fresh = models.init(wide, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, loaded)
    tables = [x for x in jax.tree.leaves(loaded) if x.shape[0] == 384]
    assert tables
    assert all((x[300:] == 0).all() for x in tables)
    features, _, _ = completion(wide, loaded)
    assert_close(features.hidden, hidden, 0)
    assert features.unembed.shape == (300, 32)
    models.save_pretrained(tmp_path, wide, loaded)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_teacher_and_student_of_other_vocabularies(family):
    """Their divergence is that of the ids that both have."""
    _, model, params = family
    teacher = changed(model, vocab_size=310, num_tokens=290)
    other = tiny.params(1, model=changed(model, vocab_size=310))
    student = changed(model, num_tokens=290)
    p, q = completion(teacher, other)[0], completion(student, params)[0]
    kl = vocab.divergence(q, p, kind="reverse_kl")
    logq, logp = (
        jax.nn.log_softmax(np.float32(f.hidden @ f.unembed.T)) for f in (q, p)
    )
    expected = (np.exp(logq) * (logq - logp)).sum(axis=-1)
    assert_close(kl[:, 1:], expected[:, :-1], 1e-4)
    with pytest.raises(ValueError, match="290 and 300 tokens"):
        vocab.divergence(q, completion(model, params)[0])
    with pytest.raises(ValueError, match="290 and 300 tokens"):
        decode.generate_mixture(
            student, params, model, params, PROMPTS, jax.random.key(0),
            alpha=0.2, max_new_tokens=4,
        )  # fmt: skip


# Classes


def test_classes_of_padded_texts(family):
    name, model, params = family
    headed = changed(model, num_labels=4)
    params = tiny.params(2, model=headed)
    mask = np.ones(TOKENS.shape, bool)
    mask[1, 7:] = False
    segments = np.zeros_like(TOKENS)
    classify = partial(golden.apply, headed, params, method="classify")
    logits = classify(TOKENS, mask, segments)
    assert logits.shape == (3, 4)
    assert logits.dtype == jnp.float32
    assert np.abs(logits[0] - logits[1]).max() > 0.01
    around = ((0, 0), (2, 1))
    padded = np.pad(TOKENS, around, constant_values=5)
    again = classify(padded, np.pad(mask, around), np.pad(segments, around))
    assert_close(again, logits)
    # The last word counts, the padding after it does not.
    other = TOKENS.copy()
    other[:, 6] += 1
    assert (np.abs(classify(other, mask, segments) - logits).max(axis=1) > 1e-3).all()
    other = np.where(mask, TOKENS, 3)
    assert_close(classify(other, mask, segments), logits)
    kinds = {"gpt2": "GPT2", "llama": "Llama", "t5": "T5"}
    with pytest.raises(ValueError, match=f"this {kinds[name]} has no classification"):
        golden.apply(model, params, TOKENS, mask, segments, method="classify")


def test_a_head_with_adapters_is_trained_and_exported(family, tmp_path):
    _, model, _ = family
    headed = changed(model, num_labels=4, lora_rank=2)
    params = tiny.scrambled(models.init(headed, jax.random.key(0)), 0.3)
    trained, kept = partition(params)
    shapes = {x.shape for x in jax.tree.leaves(trained)}
    assert (32, 4) in shapes
    assert (32, 4) not in {x.shape for x in jax.tree.leaves(kept)}
    mask = np.ones(TOKENS.shape, bool)
    expected = golden.apply(headed, params, TOKENS, mask, mask * 0, method="classify")
    models.save_pretrained(tmp_path, headed, params)
    merged, loaded = models.load_pretrained(tmp_path)
    assert (merged.config.num_labels, merged.config.lora_rank) == (4, 0)
    logits = golden.apply(merged, loaded, TOKENS, mask, mask * 0, method="classify")
    assert_close(logits, expected, 1e-4)


def test_a_language_model_becomes_a_classifier(family, tmp_path):
    """Its own head is left out, and a new one is drawn from the key."""
    _, model, params = family
    models.save_pretrained(tmp_path, model, params)
    with pytest.raises(ValueError, match=r"expected .* found none"):
        models.load_pretrained(tmp_path, num_labels=4)
    key = jax.random.key(7)
    headed, loaded = models.load_pretrained(tmp_path, num_labels=4, key=key)
    fresh = models.init(headed, key)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), fresh, loaded)
    drawn = {name for name, part in same["params"].items() if jax.tree.all(part)}
    assert {"score", "classifier"} & drawn
    mask = np.ones(TOKENS.shape, bool)
    logits = golden.apply(headed, loaded, TOKENS, mask, mask * 0, method="classify")
    assert np.isfinite(logits).all()


# What one family has and another has not


@pytest.mark.parametrize("name", CAUSAL)
def test_plain_sequences_padded_on_either_side(name):
    model = FAMILIES[name]
    params = tiny.params(model=model)
    whole = np.ones(TOKENS.shape, bool)
    expected = golden.apply(model, params, TOKENS, whole).hidden
    for around in ((3, 0), (0, 3), (2, 1)):
        widths = ((0, 0), around)
        padded = np.pad(TOKENS, widths, constant_values=5)
        mask = np.pad(whole, widths)
        out = golden.apply(model, params, padded, mask).hidden
        assert_close(out[mask], expected.reshape(-1, 32))


@pytest.mark.parametrize("name", CAUSAL)
def test_too_many_tokens(name):
    model = FAMILIES[name]
    tokens = np.zeros((1, 65), np.int32)
    with pytest.raises(ValueError, match=r"65 tokens .* 64 positions"):
        golden.apply(model, {}, tokens, tokens == 0)
    prompts = PromptBatch(tokens[:, :60], tokens[:, :60] == 0)
    with pytest.raises(ValueError, match=r"66 tokens .* 64 positions"):
        golden.apply(model, {}, prompts, max_new_tokens=6, method="prefill")


def test_distances_and_their_buckets():
    """Table 8 of the T5 paper's code: 32 buckets, 128 tokens."""
    table = bucket_table(models.T5Config(), both_ways=False)
    assert table[:16].tolist() == list(range(16))
    assert table[[16, 20, 63, 64, 127, 128]].tolist() == [16, 17, 26, 26, 31, 31]
    table = bucket_table(models.T5Config(), both_ways=True)
    assert table[:8].tolist() == list(range(8))
    assert table[[8, 12, 127, 128]].tolist() == [8, 9, 15, 15]


def test_configs_that_cannot_be():
    with pytest.raises(ValueError, match="4 query heads do not share 3"):
        models.preset("llama-tiny", num_key_value_heads=3)
    with pytest.raises(ValueError, match="128 does not split into 3 heads"):
        models.preset("llama-tiny", num_attention_heads=3)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2-large", 774_030_080),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("flan-t5-small", 76_961_152),
        ("flan-t5-large", 783_150_080),
        ("flan-t5-xl", 2_849_757_184),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, count):
    model = models.build(models.preset(name))
    shapes = jax.eval_shape(partial(models.init, model), jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count
