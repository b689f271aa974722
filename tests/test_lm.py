"""`LM` and `Classifier` on tiny models of every family, from folders and back."""

import dataclasses
import json
import shutil

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokenizer_folders
from scipy.special import softmax

from jaxqr import decode, models, sharding
from jaxqr.data.prompts import FILE, QUERY, PromptTemplate, Slot
from jaxqr.data.tokenize import Tokenizer, pad_prompts, train_tokenizer
from jaxqr.decode import Sampling
from jaxqr.lm import LM, Rewrite, fresh_model
from jaxqr.rewards.classifier import Classifier
from jaxqr.train import loop, state, steps

MODELS = {"gpt2": tiny.GPT2, "llama": tiny.LLAMA, "t5": tiny.T5}
QUERIES = [query for query, _ in tiny.HELD_OUT]
SAMPLING = Sampling(16, 8)
GREEDY = SAMPLING._replace(temperature=0.0)
LENGTHS = {"max_source": 16, "max_target": 8}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folder of a family's model, which has learnt the toy task."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(family):
        if family not in made:
            model = MODELS[family]
            fresh = models.init(model, jax.random.key(0))
            last = loop.run(
                tiny.compiled(steps.sft_step, model=model),
                state.create(fresh, tiny.ADAM, jax.random.key(1)),
                tiny.sft_batches(),
                num_steps=160,
                frozen=({},),
            )
            LM(model, last.params, tiny.tokenizer()).save(root / family)
            made[family] = root / family
        return made[family]

    return folder


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def lm(family, folders):
    return LM.load(folders(family))


@pytest.fixture(scope="module")
def gpt2(folders):
    return LM.load(folders("gpt2"))


def texts(rewrites):
    return [[rewrite.text for rewrite in several] for several in rewrites]


def assert_same(one, other):
    """The same rewrites, their log-probabilities up to rounding."""
    assert texts(one) == texts(other)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.finished == y.finished
            assert x.logp == pytest.approx(y.logp, abs=1e-4)


# Rewriting


def test_a_folder_is_enough(lm, family, folders, tmp_path):
    names = [rewrite.split()[0] for _, rewrite in tiny.HELD_OUT]
    rewrites = lm.rewrite(QUERIES, sampling=GREEDY)
    assert all(isinstance(x, Rewrite) for several in rewrites for x in several)
    first = [several[0].text.split()[0] for several in rewrites]
    assert np.mean(np.equal(first, names)) > 0.8  # what it has learnt
    assert lm.model.config.num_tokens == tiny.VOCAB
    # And a round trip keeps every bit.
    lm.save(tmp_path / "again")
    again = LM.load(tmp_path / "again")
    assert again.model == lm.model
    tiny.assert_same_bits(again.params, lm.params)
    assert again.tokenizer.prompt == lm.tokenizer.prompt
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        kept = (folders(family) / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == kept


def test_rewrites_are_what_is_generated(lm):
    """Draws by hand, of all queries in one batch."""
    prompts = lm.tokenizer.source(QUERIES, 16)
    batch = pad_prompts([*prompts, *[prompts[-1]] * (16 - len(prompts))], 16, 5)
    for sampling, n in ((GREEDY, 1), (SAMPLING, 2)):
        key = jax.random.key(3)
        tokens, mask, logps = decode.generate(
            lm.model, lm.params, batch, jax.random.fold_in(key, 0),
            n=n, max_new_tokens=8, temperature=sampling.temperature,
        )  # fmt: skip
        written = lm.tokenizer.decode(np.asarray(tokens), np.asarray(mask))
        rewrites = lm.rewrite(QUERIES, n=n, sampling=sampling, key=key)
        assert texts(rewrites) == [
            written[i * n : i * n + n] for i in range(len(QUERIES))
        ]
        sums = np.where(mask, logps, 0).sum(axis=1)
        ended = (np.where(mask, tokens, 1) == tiny.EOS).any(axis=1)
        for i, rewrite in enumerate(x for several in rewrites for x in several):
            assert rewrite.logp == pytest.approx(float(sums[i]), abs=1e-4)
            assert rewrite.finished == ended[i]


def test_logp_is_the_likelihood_of_the_same_text(lm):
    rewrites = lm.rewrite(QUERIES, sampling=GREEDY)
    assert all(several[0].finished for several in rewrites)
    pairs = [(q, several[0].text) for q, several in zip(QUERIES, rewrites, strict=True)]
    stats = lm.token_stats(pairs, **LENGTHS)
    np.testing.assert_allclose(
        -stats.nll, [several[0].logp for several in rewrites], atol=1e-4
    )
    # The end of the text counts as a token.
    lengths = [len(ids) + 1 for ids in lm.tokenizer.encode([b for _, b in pairs])]
    assert stats.tokens.tolist() == lengths


def test_what_is_cut_is_not_finished(gpt2):
    lm, query = gpt2, QUERIES[0]
    ((whole,),) = lm.rewrite([query], sampling=GREEDY)
    (ids,) = lm.tokenizer.encode([whole.text])
    # With no room for the end of the text it is the same text, but not finished.
    room = GREEDY._replace(max_new_tokens=len(ids) + 1)
    ((fits,),) = lm.rewrite([query], sampling=room)
    assert (fits.text, fits.finished) == (whole.text, True)
    room = GREEDY._replace(max_new_tokens=len(ids))
    ((cut,),) = lm.rewrite([query], sampling=room)
    assert (cut.text, cut.finished) == (whole.text, False)
    assert cut.logp > whole.logp  # by the end of the text
    stats = lm.token_stats([(query, whole.text)], max_source=16, max_target=len(ids))
    assert cut.logp == pytest.approx(-stats.nll[0], abs=1e-4)


def test_the_company_in_a_batch_changes_nothing(lm):
    together = lm.rewrite(QUERIES, sampling=GREEDY)
    assert_same(lm.rewrite(QUERIES, sampling=GREEDY, batch_size=4), together)
    alone = [lm.rewrite([query], sampling=GREEDY)[0] for query in QUERIES[:3]]
    assert_same(alone, together[:3])
    long = ["a very long query " * 9, *QUERIES[1:]]
    assert_same(lm.rewrite(long, sampling=GREEDY)[1:], together[1:])
    stats = lm.token_stats(tiny.PAIRS, **LENGTHS)
    other = lm.token_stats(tiny.PAIRS, batch_size=5, **LENGTHS)
    for one, same in zip(stats, other, strict=True):
        np.testing.assert_allclose(one, same, atol=1e-4)


def test_more_queries_than_the_largest_batch(gpt2):
    many = QUERIES * 110
    batches = gpt2._prompts(many, 16, 2048)
    assert [(len(batch.tokens), real) for batch, real in batches] == [
        (1024, 1024),
        (1024, len(many) - 1024),
    ]


def test_n_rewrites_of_each_query(gpt2):
    for n, size in ((3, 7), (5, 2)):  # of two queries at a time, and of one
        found = gpt2.rewrite(QUERIES, n=n, sampling=SAMPLING, batch_size=size)
        assert [len(several) for several in found] == [n] * len(QUERIES)
    # Of one query, n samples are no copies of one sample.
    assert max(len({x.text for x in several}) for several in found) > 1
    # Where nothing is said, one is greedy, and several are samples at temperature 1.
    for n, sampling in ((1, Sampling(temperature=0.0)), (2, Sampling())):
        found = gpt2.rewrite(QUERIES, n=n)
        assert found == gpt2.rewrite(QUERIES, n=n, sampling=sampling)


def test_keys_decide_the_samples(gpt2):
    hot = SAMPLING._replace(temperature=2.0)
    first = gpt2.rewrite(QUERIES, n=2, sampling=hot)
    assert gpt2.rewrite(QUERIES, n=2, sampling=hot) == first
    assert gpt2.rewrite(QUERIES, n=2, sampling=hot, key=jax.random.key(0)) == first
    assert gpt2.rewrite(QUERIES, n=2, sampling=hot, key=jax.random.key(1)) != first
    # Each batch has a key of its own.
    several = gpt2.rewrite(QUERIES[:1] * 8, sampling=hot, batch_size=4)
    assert several[:4] != several[4:]


def test_nothing_to_rewrite(lm):
    assert lm.rewrite([]) == []
    assert lm.rewrite([], n=3) == []
    assert lm.beams([], 2) == []
    for teacher in (None, lm):
        stats = lm.token_stats([], teacher=teacher)
        assert [column.shape for column in stats] == [(0,)] * 4


@pytest.mark.parametrize("query", ["", "  ", "\ud800 lamp", "靴 😀", "\x00", "a" * 999])
def test_any_text_is_a_query(gpt2, query):
    (several,) = gpt2.rewrite([query], sampling=GREEDY)
    assert len(several) == 1
    assert np.isfinite(several[0].logp)
    assert np.isfinite(gpt2.token_stats([(query, query)], **LENGTHS).nll).all()


# Beams


def test_beams_are_those_of_the_search(lm):
    assert_beams(lm)


def test_diverse_beams_are_those_of_the_search(gpt2):
    assert_beams(gpt2, num_groups=2, diversity_penalty=0.7, length_penalty=0.0)
    # And where the queries make several batches.
    beams = gpt2.beams(QUERIES, 4, max_source=16, max_new_tokens=8)
    assert_same(
        gpt2.beams(QUERIES, 4, max_source=16, max_new_tokens=8, batch_size=13), beams
    )


def assert_beams(lm, **options):
    """The beams of all queries, searched in one batch."""
    prompts = lm.tokenizer.source(QUERIES, 16)
    prompts += [prompts[-1]] * (16 - len(prompts))
    found = decode.beam_search(
        lm.model, lm.params, pad_prompts(prompts, 16, 5),
        max_new_tokens=8, num_beams=4, **options,
    )  # fmt: skip
    beams = lm.beams(QUERIES, 4, max_source=16, max_new_tokens=8, **options)
    assert len(beams) == len(QUERIES)
    rows = (np.asarray(column)[: len(beams)] for column in found)
    for several, *row in zip(beams, *rows, strict=True):
        tokens, _, mask, logps = row
        assert [x.text for x in several] == lm.tokenizer.decode(tokens, mask)
        np.testing.assert_allclose([x.logp for x in several], logps, atol=1e-4)
        ended = (np.where(mask, tokens, 1) == tiny.EOS).any(axis=1)
        assert [x.finished for x in several] == ended.tolist()
    assert any(len({x.text for x in several}) > 1 for several in beams)


def test_one_beam_is_greedy(gpt2):
    beams = gpt2.beams(QUERIES, 1, max_source=16, max_new_tokens=8)
    assert_same(beams, gpt2.rewrite(QUERIES, sampling=GREEDY))


def test_beams_refuse_groups_that_do_not_fit(gpt2):
    with pytest.raises(ValueError, match="multiple of num_groups"):
        gpt2.beams(QUERIES, 5, 2)


# Token statistics


def test_token_stats_by_definition(gpt2):
    """From all logits, in float64, of rows that begin in column 0."""
    teacher = gpt2._replace(params=tiny.params(3))
    pairs = tiny.PAIRS[:6]
    rows = gpt2.tokenizer.pairs(pairs, **LENGTHS)
    mine = tiny.next_logps(gpt2.params, rows, width=24)
    theirs = tiny.next_logps(teacher.params, rows, width=24)
    columns = [
        (
            len(row.target),
            -sum(p[np.arange(len(row.target)), row.target]),
            -np.sum(np.exp(p) * p),
            np.sum(np.exp(p) * (p - q)),
        )
        for row, p, q in zip(rows, mine, theirs, strict=True)
    ]
    stats = gpt2.token_stats(pairs, teacher=teacher, **LENGTHS)
    for actual, expected in zip(stats, zip(*columns, strict=True), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert stats.reverse_kl.min() > 0.1
    assert not gpt2.token_stats(pairs, **LENGTHS).reverse_kl.any()


def test_a_model_does_not_differ_from_itself(lm):
    stats = lm.token_stats(tiny.PAIRS, teacher=lm, **LENGTHS)
    np.testing.assert_allclose(stats.reverse_kl, 0, atol=1e-4)


def test_a_teacher_of_another_family(gpt2, folders):
    """With one tokenizer they can be compared; the divergence is not negative."""
    student = LM.load(folders("t5"))
    stats = student.token_stats(tiny.PAIRS, teacher=gpt2, **LENGTHS)
    assert (stats.reverse_kl > -1e-4).all()
    assert 0.1 < stats.reverse_kl.sum() < np.inf


# Prompts


def test_a_prompt_of_several_slots(gpt2, tmp_path):
    """A source is a text for each slot."""
    lm = gpt2
    parts = ("a ", Slot("label", "never"), " query for ", Slot("product", "end"), "\n")
    template = PromptTemplate("completion", parts)
    two = lm._replace(tokenizer=lm.tokenizer.with_prompt(template))
    sources = [{"product": f"a {q} " * 9, "label": label} for q, label in
               zip(QUERIES, "ESCIESCIES", strict=True)]  # fmt: skip
    sampling = GREEDY._replace(max_source=32)
    found = two.rewrite(sources, sampling=sampling)
    prompts = pad_prompts(two.tokenizer.source(sources, 32), 32, 0)
    tokens, mask, _ = decode.generate(
        lm.model, lm.params, prompts, jax.random.key(0),
        max_new_tokens=8, temperature=0.0,
    )  # fmt: skip
    written = lm.tokenizer.decode(np.asarray(tokens), np.asarray(mask))
    assert texts(found) == [[text] for text in written]
    beams = two.beams(sources, 2, max_source=32, max_new_tokens=8)
    assert [len(several) for several in beams] == [2] * len(sources)
    finished = [several[0] for several in found if several[0].finished]
    assert finished
    pairs = [(s, several[0].text) for s, several in zip(sources, found, strict=True)]
    stats = two.token_stats(pairs, max_source=32, max_target=8)
    for rewrite, nll in zip((x[0] for x in found), stats.nll, strict=True):
        if rewrite.finished:
            assert rewrite.logp == pytest.approx(-nll, abs=1e-4)
    # The labels make a difference, and the folder keeps the prompt.
    others = [source | {"label": "I"} for source in sources]
    changed = two.token_stats(
        [(s, text) for s, (_, text) in zip(others, pairs, strict=True)],
        max_source=32,
        max_target=8,
    )
    assert (np.abs(changed.nll - stats.nll) > 1e-4).any()
    two.save(tmp_path)
    assert LM.load(tmp_path).tokenizer.prompt == template
    for source in ("a lone text", {"label": "E"}, {"product": "x", "name": "y"}):
        with pytest.raises(ValueError, match="slot"):
            two.rewrite([source], sampling=sampling)


def test_which_prompt_a_folder_gets(folders, tmp_path):
    completion = PromptTemplate("completion", (QUERY, "\n"))
    prefix = PromptTemplate("prefix", ("rewrite query: ", QUERY))
    for family, default in (("gpt2", completion), ("t5", prefix)):
        folder = tmp_path / family
        shutil.copytree(folders(family), folder)
        assert LM.load(folder).tokenizer.prompt == completion  # as it was trained
        asked = LM.load(folder, prompt="prefix", instruction="say: ")
        assert asked.tokenizer.prompt == PromptTemplate("prefix", ("say: ", QUERY))
        asked.save(tmp_path / f"{family}-asked")
        saved = LM.load(tmp_path / f"{family}-asked").tokenizer.prompt
        assert saved == asked.tokenizer.prompt
        assert LM.load(folder, prompt=prefix).tokenizer.prompt == prefix
        (folder / FILE).unlink()
        assert LM.load(folder).tokenizer.prompt == default
    with pytest.raises(ValueError, match="chat"):
        LM.load(folders("gpt2"), prompt="chat")


def test_an_instruct_model_is_asked_by_its_chat_template(tmp_path):
    tokenizer_folders.write_llama(tmp_path, template=tokenizer_folders.OPENED)
    tokenizer = Tokenizer.load(tmp_path)
    config = dataclasses.replace(
        tiny.LLAMA.config, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos
    )
    model = models.build(config)
    models.save_pretrained(tmp_path, model, models.init(model, jax.random.key(0)))
    loaded = LM.load(tmp_path)
    assert loaded.tokenizer.prompt is not None
    assert loaded.tokenizer.prompt.kind == "chat"


# Adapters, devices, dtypes


def test_adapters_are_trained_alone_and_merged_when_saved(
    lm, family, folders, tmp_path
):
    expected = lm.token_stats(tiny.PAIRS, **LENGTHS)
    adapted = LM.load(folders(family), lora_rank=4, lora_alpha=8.0, seed=1)
    trained, base = adapted.partition()
    assert trained.keys() == {"lora"}
    tiny.assert_same_bits(base, lm.params)
    # Fresh ones change nothing yet; the seed decides what they are.
    fresh = adapted.token_stats(tiny.PAIRS, **LENGTHS)
    np.testing.assert_allclose(fresh.nll, expected.nll, atol=1e-4)
    other, _ = LM.load(folders(family), lora_rank=4, seed=2).partition()
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(other), strict=True)
    )
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), trained
    )
    adapted = adapted.with_params(moved)
    tiny.assert_same_bits(adapted.partition(), (moved, base))
    drawn = adapted.token_stats(tiny.PAIRS, **LENGTHS)
    assert np.abs(drawn.nll - expected.nll).max() > 0.1
    adapted.save(tmp_path)
    merged = LM.load(tmp_path)
    assert merged.partition() == (merged.params, {})
    np.testing.assert_allclose(
        merged.token_stats(tiny.PAIRS, **LENGTHS).nll, drawn.nll, atol=1e-3
    )


def test_a_mesh_of_devices_writes_the_same(lm, family, folders):
    fsdp = {"gpt2": 8, "llama": 2, "t5": 1}[family]
    mesh = sharding.make_mesh(fsdp)
    assert mesh.size == 8
    spread = LM.load(folders(family), mesh=mesh)
    assert sharding.mesh_of(spread.params) == mesh
    arrays = jax.tree.leaves(spread.params)
    assert all(x.devices() == set(jax.devices()) for x in arrays)
    split = [x for x in arrays if "fsdp" in x.sharding.spec]
    assert bool(split) == (fsdp > 1)
    queries = QUERIES[:9]  # does not divide by 8
    assert_same(
        spread.rewrite(queries, sampling=GREEDY), lm.rewrite(queries, sampling=GREEDY)
    )
    one, other = (x.token_stats(tiny.PAIRS, **LENGTHS) for x in (spread, lm))
    np.testing.assert_allclose(one.nll, other.nll, atol=1e-3)


def test_parameters_are_float32_in_any_dtype(gpt2, folders):
    low = LM.load(folders("gpt2"), dtype="bfloat16")
    assert low.model.config.dtype == "bfloat16"
    tiny.assert_same_bits(low.params, gpt2.params)
    found = low.token_stats(tiny.PAIRS, **LENGTHS).nll
    expected = gpt2.token_stats(tiny.PAIRS, **LENGTHS).nll
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.2)
    assert np.abs(found - expected).max() > 1e-6


def test_home_is_expanded(gpt2, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    gpt2.save("~/model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    tiny.assert_same_bits(LM.load("~/model").params, gpt2.params)
    classifier().save("~/m1")
    assert Classifier.load("~/m1").model.config.num_labels == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m1", "model"]


# Folders that are refused


def change(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def bert_encoder(folder):
    model = models.build(dataclasses.replace(tiny.BERT.config, num_labels=0))
    models.save_pretrained(folder, model, models.init(model, jax.random.key(0)))
    tiny.tokenizer().save(folder)


def gpt2_classifier(folder):
    model = models.build(dataclasses.replace(tiny.GPT2.config, num_labels=2))
    models.save_pretrained(folder, model, models.init(model, jax.random.key(0)))
    tiny.tokenizer().save(folder)


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def other_tokenizer(folder):
    texts = [text for pair in tiny.PAIRS for text in pair]
    larger = train_tokenizer([*texts, "further words of a much larger shop"] * 9, 310)
    assert larger.vocab_size > tiny.VOCAB
    larger.save(folder)


def without_weights(folder):
    (folder / "model.safetensors").unlink()


REFUSED = {
    "encoder": (bert_encoder, ValueError, r"holds a Bert encoder, which writes no"),
    "bert classifier": (
        lambda folder: classifier().save(folder),
        ValueError,
        r"holds a Bert classifier, which writes no text: give .* language model",
    ),
    "gpt2 classifier": (gpt2_classifier, ValueError, r"holds a GPT2 classifier"),
    "no tokenizer": (without_tokenizer, FileNotFoundError, r"give a Hugging Face tok"),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        FileNotFoundError,
        r"config\.json does not exist",
    ),
    "no weights": (without_weights, FileNotFoundError, r"model\.safetensors"),
    "too many ids": (
        other_tokenizer,
        ValueError,
        r"the tokenizer has 310 ids, the model 300: they are not of one model",
    ),
    "another end": (
        lambda folder: change(folder, eos_token_id=7),
        ValueError,
        r"ends texts with token 7, the tokenizer with 0; .* Set both",
    ),
    "other ends": (
        lambda folder: change(folder, eos_token_id=[7, 8]),
        ValueError,
        r"ends texts with token \(7, 8\), the tokenizer with 0",
    ),
    "no end": (
        lambda folder: change(folder, eos_token_id=None),
        ValueError,
        r"ends texts with token None, the tokenizer with 0",
    ),
    "another family": (
        lambda folder: change(folder, model_type="mamba"),
        ValueError,
        r"model_type 'mamba'; supported are bert, gpt2, llama, t5",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_folders_that_hold_no_language_model(folders, tmp_path, fault):
    spoil, error, message = REFUSED[fault]
    folder = tmp_path / "model"
    shutil.copytree(folders("gpt2"), folder)
    spoil(folder)
    with pytest.raises(error, match=message) as raised:
        LM.load(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_several_ends_of_which_one_is_the_tokenizers(folders, tmp_path):
    shutil.copytree(folders("llama"), tmp_path / "model")
    change(tmp_path / "model", eos_token_id=[9, tiny.EOS])
    lm = LM.load(tmp_path / "model")
    (rewrite,) = lm.rewrite(QUERIES[:1], sampling=GREEDY)[0]
    assert rewrite.finished


@pytest.mark.parametrize("load", [LM.load, Classifier.load])
def test_no_folder(tmp_path, load):
    (tmp_path / "file").write_text("")
    for name in ("missing", "file"):
        with pytest.raises(FileNotFoundError, match=name) as raised:
            load(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_fresh_model_has_the_tokenizers_ids():
    for name in ("gpt2-tiny", "llama-tiny", "t5-tiny", "bert-tiny"):
        model = fresh_model(name, tiny.tokenizer(), dtype="bfloat16")
        assert model.config.vocab_size == tiny.VOCAB
        assert model.config.dtype == "bfloat16"
        if hasattr(model.config, "eos_token_id"):
            assert model.config.eos_token_id == tiny.EOS
    with pytest.raises(ValueError, match="no preset 'gpt9'"):
        fresh_model("gpt9", tiny.tokenizer())
    with pytest.raises(ValueError, match="adapters need a pretrained model"):
        fresh_model("gpt2-tiny", tiny.tokenizer(), lora_rank=8)


# Classifiers


FIRST = [query for query, _ in tiny.PAIRS[:11]]
SECOND = [rewrite for _, rewrite in tiny.PAIRS[:11]]


def classifier(labels=4, model=tiny.BERT):
    model = models.build(dataclasses.replace(model.config, num_labels=labels))
    params = tiny.scrambled(models.init(model, jax.random.key(0)), 0.3)
    return Classifier(model, params, tiny.tokenizer(), max_tokens=32)


def head(of):
    """The classification head's arrays, and all others."""
    flat = jax.tree_util.tree_leaves_with_path(of.params)
    named = {jax.tree_util.keystr(path): x for path, x in flat}
    ours = {k: x for k, x in named.items() if "classifier" in k or "score" in k}
    assert ours
    return ours, {k: x for k, x in named.items() if k not in ours}


@pytest.mark.parametrize(
    ("model", "labels"),
    [(tiny.BERT, 4), (tiny.GPT2, 2), (tiny.LLAMA, 3), (tiny.T5, 2)],
)
def test_a_classifiers_folder(model, labels, tmp_path):
    saved = classifier(labels, model)
    saved.save(tmp_path)
    loaded = Classifier.load(tmp_path, max_tokens=32)
    tiny.assert_same_bits(loaded.params, saved.params)
    found = loaded.probabilities(FIRST, SECOND)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert found.shape == (11, labels)
    np.testing.assert_allclose(found, saved.probabilities(FIRST, SECOND), atol=1e-5)


def test_probabilities_by_hand():
    """One pair at a time, without padding."""
    m1 = classifier()
    found = m1.probabilities(FIRST, SECOND, batch_size=4)
    rows = m1.tokenizer.encoder(FIRST, SECOND, max_tokens=32)
    for row, probabilities in zip(rows, found, strict=True):
        tokens = np.array([row.tokens], np.int32)
        segments = np.array([row.segments], np.int32)
        inputs = tokens, np.ones(tokens.shape, np.bool_), segments
        logits = golden.apply(m1.model, m1.params, *inputs, method="classify")
        np.testing.assert_allclose(
            probabilities, softmax(np.float64(logits[0])), atol=1e-5
        )
    assert np.ptp(found, axis=0).max() > 0.01
    assert m1.probabilities([], []).shape == (0, 4)
    # Longer pairs are cut.
    long = m1.probabilities(["red " * 99], ["shoe " * 99])
    short = m1._replace(max_tokens=8).probabilities(["red " * 99], ["shoe " * 99])
    assert np.abs(long - short).max() > 1e-4


def test_a_head_of_other_classes_is_drawn(tmp_path):
    classifier(4).save(tmp_path)
    old_head, old_body = head(Classifier.load(tmp_path))
    same = Classifier.load(tmp_path, num_labels=4)
    tiny.assert_same_bits(head(same), (old_head, old_body))
    for labels in (1, 3):
        new = Classifier.load(tmp_path, num_labels=labels, seed=1)
        assert new.model.config.num_labels == labels
        new_head, body = head(new)
        tiny.assert_same_bits(body, old_body)
        assert {x.shape[-1] for x in new_head.values()} == {labels}
        again = Classifier.load(tmp_path, num_labels=labels, seed=1)
        tiny.assert_same_bits(new.params, again.params)
        new.save(tmp_path / "new")
        tiny.assert_same_bits(Classifier.load(tmp_path / "new").params, new.params)
    other = Classifier.load(tmp_path, num_labels=3, seed=2)
    kernels = (head(x)[0] for x in (other, new))
    assert any(
        np.any(a != b)
        for a, b in zip(*(k.values() for k in kernels), strict=True)
        if a.ndim > 1
    )


def test_a_language_model_gets_a_head(gpt2, folders):
    with pytest.raises(ValueError, match=r"no classification head: give .*num_labels"):
        Classifier.load(folders("gpt2"))
    m1 = Classifier.load(folders("gpt2"), num_labels=2, max_tokens=16)
    assert m1.probabilities(FIRST, SECOND).shape == (11, 2)
    _, body = head(m1)
    kept = jax.tree_util.tree_leaves_with_path(gpt2.params)
    tiny.assert_same_bits(body, {jax.tree_util.keystr(k): x for k, x in kept})


def test_a_classifier_on_a_mesh(tmp_path):
    m1 = classifier()
    m1.save(tmp_path)
    spread = Classifier.load(tmp_path, max_tokens=32, mesh=sharding.make_mesh(8))
    assert any("fsdp" in x.sharding.spec for x in jax.tree.leaves(spread.params))
    for size in (3, 8, 128):
        np.testing.assert_allclose(
            spread.probabilities(FIRST, SECOND, batch_size=size),
            m1.probabilities(FIRST, SECOND),
            atol=1e-5,
        )


def test_a_classifiers_adapters(tmp_path):
    classifier().save(tmp_path)
    m1 = Classifier.load(tmp_path, max_tokens=32, num_labels=4, lora_rank=2)
    trained, base = m1.partition()
    assert trained.keys() == {"lora"}
    assert base.keys() == {"params"}
    np.testing.assert_allclose(
        m1.probabilities(FIRST, SECOND),
        classifier().probabilities(FIRST, SECOND),
        atol=1e-5,
    )


def test_a_classifier_of_another_tokenizer(tmp_path):
    classifier().save(tmp_path)
    other_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="has 310 ids, the model 300"):
        Classifier.load(tmp_path)
