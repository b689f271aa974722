"""A language model in one piece: loaded, asked, measured, trained in part, saved."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from tiny import EOS

from jaxqr import decode, models, sharding
from jaxqr.decode import Sampling
from jaxqr.lm import LM, fresh_model

FAMILIES = {"gpt2": tiny.GPT2, "llama": tiny.LLAMA, "t5": tiny.T5}
SAMPLING = Sampling(16, 8)
GREEDY = SAMPLING._replace(temperature=0.0)
QUERIES = [query for query, _ in tiny.TRAIN]


def folder_of(name, folder, **fields):
    """A folder as another project would leave it: without `prompt.json`."""
    model = models.build(dataclasses.replace(FAMILIES[name].config, **fields))
    params = models.init(model, jax.random.key(0))
    tiny.tokenizer().save(folder)
    (folder / "prompt.json").unlink()
    models.save_pretrained(folder, model, params)
    return folder


# Folders


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_follows_the_model(name, tmp_path):
    folder = folder_of(name, tmp_path)
    kind = "prefix" if name == "t5" else "completion"
    assert LM.load(folder).tokenizer.prompt.kind == kind
    # It is kept, and what is kept counts, unless something else is asked for.
    asked = LM.load(folder, prompt="prefix", instruction="find: ")
    assert asked.tokenizer.prompt.parts[0] == "find: "
    asked.save(folder)
    assert LM.load(folder).tokenizer.prompt == asked.tokenizer.prompt
    other = LM.load(folder, prompt="prefix", instruction="search: ")
    assert other.tokenizer.prompt.parts[0] == "search: "
    with pytest.raises(ValueError, match="no chat template"):
        LM.load(folder, prompt="chat")


def test_a_model_computes_as_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    folder = folder_of("llama", tmp_path, vocab_size=302)
    lm = LM.load(
        folder, dtype="bfloat16", mesh=sharding.make_mesh(2), remat="dots",
        lora_rank=2, lora_alpha=3.0,
    )  # fmt: skip
    config = lm.model.config
    assert (config.dtype, config.remat) == ("bfloat16", "dots")
    assert (config.lora_rank, config.lora_alpha) == (2, 3.0)
    # Ids beyond the tokenizer's are never predicted; the table splits evenly.
    assert (config.num_tokens, config.vocab_size) == (tiny.VOCAB, 302)
    table = lm.params["params"]["embed"]["embedding"]
    assert table.shape == (384, 32)
    assert {s.data.shape for s in table.addressable_shards} == {(192, 32)}
    assert len(table.sharding.device_set) == 8
    trained, base = lm.partition()
    assert (trained.keys(), base.keys()) == ({"lora"}, {"params"})

    # And without a word it is plain.
    lm = LM.load(folder)
    config = lm.model.config
    assert (config.dtype, config.remat, config.lora_rank) == ("float32", "none", 0)
    assert lm.params["params"]["embed"]["embedding"].shape == (302, 32)
    trained, base = lm.partition()
    assert trained is lm.params
    assert base == {}


def test_fresh_adapters_depend_on_the_seed_and_change_nothing(tmp_path):
    folder = folder_of("gpt2", tmp_path)
    plain, one, same, other = (
        LM.load(folder, lora_rank=rank, seed=seed)
        for rank, seed in ((0, 0), (2, 1), (2, 1), (2, 3))
    )
    tiny.assert_same_bits(one.params, same.params)
    tiny.assert_same_bits(one.params["params"], plain.params["params"])
    differs = jax.tree.map(
        lambda x, y: bool((x != y).any()), one.params["lora"], other.params["lora"]
    )
    assert any(jax.tree.leaves(differs))
    stats = [lm.token_stats(tiny.PAIRS[:3]) for lm in (plain, one)]
    tiny.assert_same_bits(*stats)


def test_folders_that_do_not_fit_their_tokenizer(tmp_path):
    folder = folder_of("gpt2", tmp_path / "ends", eos_token_id=7)
    with pytest.raises(ValueError, match=r"ends texts with token 7, the tokenizer.* 0"):
        LM.load(folder)
    folder = folder_of("gpt2", tmp_path / "several", eos_token_id=(7, EOS))
    lm = LM.load(folder)
    assert lm.model.config.eos_token_id == (7, 0)
    assert lm.tokenizer.eos == 0
    folder = folder_of("t5", tmp_path / "few", vocab_size=290)
    with pytest.raises(ValueError, match="tokenizer has 300 ids, the model 290"):
        LM.load(folder)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: give the"):
        LM.load(tmp_path / "nowhere")


def test_folders_that_write_no_text(tmp_path):
    """Refused before anything is read."""
    for name, fields in (("t5", {"num_labels": 4}), ("llama", {"num_labels": 4})):
        folder = folder_of(name, tmp_path / name, **fields)
        with pytest.raises(ValueError, match="classifier, which writes no text"):
            LM.load(folder)
    tiny.tokenizer().save(tmp_path / "bert")
    bert = models.build(dataclasses.replace(tiny.BERT.config, num_labels=0))
    params = models.init(bert, jax.random.key(0))
    models.save_pretrained(tmp_path / "bert", bert, params)
    with pytest.raises(ValueError, match="Bert encoder, which writes no text"):
        LM.load(tmp_path / "bert")


def test_adapters_want_a_pretrained_model():
    with pytest.raises(ValueError, match="lora_rank=2: adapters need a pretrained"):
        fresh_model("gpt2-tiny", tiny.tokenizer(), lora_rank=2)


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny", "t5-tiny", "bert-tiny"])
def test_fresh_models_have_the_tokenizers_ids(name):
    model = fresh_model(name, tiny.tokenizer())
    config = vars(model.config)
    assert config["vocab_size"] == tiny.VOCAB
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    assert {config.get(name, EOS) for name in ids} == {EOS}
    labeled = fresh_model(name, tiny.tokenizer(), num_labels=4)
    assert labeled.config.num_labels == 4
    assert labeled.config.vocab_size == tiny.VOCAB


# What is trained


def test_other_trained_parameters_leave_the_base_as_it_is(tmp_path):
    """In a model with adapters, and they are merged into what is saved."""
    lm = LM.load(folder_of("gpt2", tmp_path / "folder"), lora_rank=2, lora_alpha=3.0)
    trained, base = lm.partition()
    moved = jax.tree.map(lambda x: x + 0.3, trained)
    after = lm.with_params(moved)
    assert after.partition() == (moved, base)
    assert after.params["params"] is lm.params["params"]
    assert lm.partition()[0] is not moved  # the first is as it was
    tiny.assert_same_bits(models.combine(moved, base), after.params)

    after.save(tmp_path / "merged")
    merged = LM.load(tmp_path / "merged")
    assert merged.params.keys() == {"params"}
    assert "lora" not in json.loads((tmp_path / "merged/config.json").read_text())
    before, changed, again = (
        x.token_stats(tiny.PAIRS[:3]) for x in (lm, after, merged)
    )
    assert np.abs(changed.nll - before.nll).max() > 0.1
    for one, other in zip(changed, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_all_parameters_are_replaced_where_all_are_trained():
    lm, other = tiny.lm(0), tiny.params(1)
    assert lm.partition() == (lm.params, {})
    tiny.assert_same_bits(lm.with_params(other).params, other)


# Rewrites


def texts(rewrites):
    return [[rewrite.text for rewrite in of_query] for of_query in rewrites]


def test_rewrites_come_in_order_and_by_query():
    lm, queries = tiny.lm(), QUERIES[:5]
    drawn = lm.rewrite(queries, n=3, sampling=SAMPLING, batch_size=16)
    assert [len(of_query) for of_query in drawn] == [3] * 5
    assert len({text for of_query in texts(drawn) for text in of_query}) > 5
    once = lm.rewrite(queries, sampling=GREEDY, batch_size=16)
    thrice = lm.rewrite(queries, n=3, sampling=GREEDY, batch_size=16)
    assert texts(thrice) == [3 * of_query for of_query in texts(once)]
    # Across batches of another size, the last of them filled up.
    smaller = lm.rewrite(queries, sampling=GREEDY, batch_size=4)
    assert texts(smaller) == texts(once)
    backwards = lm.rewrite(queries[::-1], sampling=GREEDY, batch_size=16)
    assert texts(backwards) == texts(once)[::-1]


@pytest.fixture
def generated(monkeypatch):
    """What `decode.generate` was given and returned, call by call."""
    calls, generate = [], decode.generate

    def noted(model, params, prompts, key, **options):
        drawn = generate(model, params, prompts, key, **options)
        calls.append((prompts, options, jax.device_get(drawn)))
        return drawn

    monkeypatch.setattr(decode, "generate", noted)
    return calls


def test_one_rewrite_is_greedy_and_several_are_samples(generated):
    lm = tiny.lm()
    lm.rewrite(QUERIES[:2])
    lm.rewrite(QUERIES[:2], n=2)
    assert [options["temperature"] for _, options, _ in generated] == [0.0, 1.0]
    key = jax.random.key(5)
    one, same, other = (
        lm.rewrite(QUERIES[:2], n=3, sampling=SAMPLING, key=k)
        for k in (key, key, jax.random.key(6))
    )
    assert one == same
    assert one != other


def test_a_rewrite_has_its_log_probability_and_says_whether_it_ended(generated):
    ends = tuple(range(0, tiny.VOCAB, 10))  # any of them does
    config = dataclasses.replace(tiny.GPT2.config, eos_token_id=ends)
    lm = tiny.lm()._replace(model=models.build(config))
    rewrites = lm.rewrite(QUERIES[:7], n=4, sampling=SAMPLING, batch_size=32)
    ((prompts, _, drawn),) = generated
    sources = [row[mask].tolist() for row, mask in zip(*prompts, strict=True)]
    targets = [
        row[mask].tolist() for row, mask in zip(drawn.tokens, drawn.mask, strict=True)
    ]
    rows = [tiny.Row(sources[i // 4], target) for i, target in enumerate(targets)]
    logps = [x.sum() for x in tiny.token_logps(lm.params, rows, 24)]
    flat = [rewrite for of_query in rewrites for rewrite in of_query]
    assert len(flat) == 28  # the row that filled up the batch is no rewrite
    for rewrite, target, logp in zip(flat, targets, logps, strict=False):
        assert rewrite.finished == (target[-1] in ends)
        assert rewrite.logp == pytest.approx(logp, abs=1e-3)
    texts = lm.tokenizer.decode(drawn.tokens, drawn.mask)
    assert [rewrite.text for rewrite in flat] == texts[:28]
    assert {rewrite.finished for rewrite in flat} == {False, True}


def test_batches_of_one_call_have_keys_of_their_own():
    (rewrites,) = texts(tiny.lm().rewrite(QUERIES[:1], n=32, sampling=SAMPLING))
    assert rewrites[:16] != rewrites[16:]
    several = texts(
        tiny.lm().rewrite(2 * QUERIES[:1], n=16, sampling=SAMPLING, batch_size=16)
    )
    assert several[0] != several[1]


def test_no_queries():
    assert tiny.lm().rewrite([], sampling=GREEDY) == []


def test_the_sampler_is_not_told_how_long_prompts_are():
    assert Sampling(32, 5, 0.5, 3, 0.9).arguments() == {
        "max_new_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
    }
    assert Sampling(temperature=0.0).arguments()["temperature"] == 0


# Likelihood


def kl(p, q):
    return np.sum(np.exp(p) * (p - q), axis=-1)


def test_token_stats_are_sums_over_the_tables():
    lm, teacher = tiny.lm(0), tiny.lm(1)
    given = tiny.PAIRS[:5]
    rows = lm.tokenizer.pairs(given, max_source=16, max_target=16)
    tables, others = (tiny.next_logps(x.params, rows, 40) for x in (lm, teacher))
    sizes = {"max_source": 16, "max_target": 16}
    stats = lm.token_stats(given, teacher=teacher, batch_size=4, **sizes)
    assert stats.tokens.tolist() == [len(row.target) for row in rows]
    nll = [-x.sum() for x in tiny.token_logps(lm.params, rows, 40)]
    entropy = [-(np.exp(q) * q).sum() for q in tables]
    divergence = [kl(q, p).sum() for q, p in zip(tables, others, strict=True)]
    for found, expected in (
        (stats.nll, nll),
        (stats.entropy, entropy),
        (stats.reverse_kl, divergence),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    alone = lm.token_stats(given, batch_size=4, **sizes)
    assert (alone.reverse_kl == 0).all()
    np.testing.assert_allclose(alone.nll, stats.nll, rtol=1e-6)
    none = lm.token_stats([], teacher=teacher)
    assert [len(column) for column in none] == [0] * 4
