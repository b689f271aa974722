"""An adversarial run on a small shop: every stage, its files, resumption, refusals."""

import csv
import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import releases
import tiny

from experiments import ablate, runs
from experiments.adversarial import __main__ as command
from experiments.adversarial import (
    classifier,
    cycles,
    evaluate,
    generator,
    ppo,
    synthesis,
    world,
)
from experiments.adversarial.config import (
    PPO,
    Generator,
    QueryClassifier,
    Synthesis,
)
from experiments.adversarial.presets import PRESETS
from experiments.adversarial.synthesis import Drafts
from experiments.config import Lengths, OptimizerConfig
from jaxqr import report
from jaxqr.data.tokenize import Tokenizer
from jaxqr.evaluation.classifier import Judged
from jaxqr.lm import LM
from jaxqr.records import Collection, Judgements
from jaxqr.train import loop
from jaxqr.train.log import read_metrics

SHOP = PRESETS["shop"]
CONFIG = replace(
    SHOP,
    data=replace(
        SHOP.data,
        products=400,
        types=6,
        intents=24,
        vocab_size=384,
        lengths=Lengths(source=32, target=16, corpus=16),
    ),
    pretrain=replace(SHOP.pretrain, optimizer=OptimizerConfig(4, 16, 1e-3)),
    generator=Generator(OptimizerConfig(4, 16, 1e-3), validation_rows=16),
    classifier=QueryClassifier(rows=64, epochs=1, batch_size=32, max_tokens=32),
    ppo=replace(
        SHOP.ppo,
        optimizer=OptimizerConfig(8, 8, 1e-4, "constant", checkpoint_every=2),
        rollouts=16,
    ),
    synthesis=Synthesis(rows=64),
    cycles=1,
)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Numbers that a run has no settings for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cycles, "CHECKER_ROWS", 64)
        patch.setattr(ppo, "CURVE_QUERIES", 16)
        patch.setattr(ppo, "SOURCES", 64)
        patch.setattr(generator, "VALIDATION_TEXTS", 16)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adversarial-shop"
    command.main(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def data(run):
    return world.World(run)


def test_a_run_ends_with_its_tables(run):
    summary = report.read(run)  # checked against its schema
    for part in ("cold", "test"):
        table = summary["strategies"][part]
        names = [row["strategy"] for row in table["rows"]]
        assert names == ["None", "Fine-tuned", "Adversarial RL"]
        assert [row["strategy"] for row in summary["cycles"][part]["rows"]] == [
            "cycle 0",
            "cycle 1",
        ]
        tuned, trained = table["rows"][1:]
        first, last = summary["cycles"][part]["rows"]
        assert tuned["pr_auc"] == first["pr_auc"]
        assert trained["pr_auc"] == last["pr_auc"]
    assert [row["set"] for row in summary["synthetic"]] == ["cycle 0", "cycle 1"]
    assert [line["step"] for line in summary["training"]] == [1, 5]  # two rollouts
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "do adversarial queries help?" in page
    for name in ("strategies", "cycles", "ppo"):
        assert (run / "figures" / f"{name}.png").stat().st_size > 10_000


def test_rows_come_in_the_order_of_their_names():
    stages = ("none", "cycle-0", "cycle-2", "cycle-1")
    table = {
        "rows": [{"strategy": stage, "pr_auc": i} for i, stage in enumerate(stages)],
        "differences": [
            {"strategy": "cycle-2", "than": "none", "difference": 2},
            {"strategy": "cycle-2", "than": "cycle-1", "difference": -1},
        ],
        "categories": [{"category": "x", "pr_auc": dict.fromkeys(stages, 0.5)}],
    }
    cycle = {f"cycle {n}": f"cycle-{n}" for n in range(3)}
    found = evaluate._named(table, cycle)
    assert [(r["strategy"], r["pr_auc"]) for r in found["rows"]] == [
        ("cycle 0", 1),
        ("cycle 1", 3),
        ("cycle 2", 2),
    ]
    assert found["differences"] == [
        {"strategy": "cycle 2", "than": "cycle 1", "difference": -1}
    ]
    assert list(found["categories"][0]["pr_auc"]) == list(cycle)


def test_predictions_are_of_the_rows_that_the_table_has(run, data):
    """In their order: probabilities of a saved classifier, read again."""
    loaded = classifier.load(run / "seed-0/none", CONFIG.classifier)
    rows = data.rows("cold")
    again = classifier.read(loaded, data, CONFIG.classifier, rows)
    kept = classifier.predictions(run / "seed-0/none")["cold"]
    np.testing.assert_allclose(again, kept, atol=1e-6)


def test_synthetic_queries_have_their_provenance(run, data):
    table = pq.read_table(run / "synthetic.parquet").to_pylist()
    assert table
    cold = set(data.cold_start.products)
    pairs = {(row["cycle"], row["query"].lower(), row["product_id"]) for row in table}
    assert len(pairs) == len(table)  # no duplicates
    for row in table:
        assert row["product_id"] in cold
        assert row["product"] == data.text(row["product_id"])
        assert row["label"] in data.labels.names
        assert row["query"].strip()
        assert row["query"].lower() not in data.queries
        assert row["seed"] == 0
        assert row["classifier_loss"] >= 0
        assert row["logp"] < 0 < row["tokens"]
        assert 0 <= row["checker_probability"] <= 1
        if row["cycle"] == 0:  # written by the reference itself
            assert row["kl"] == pytest.approx(0, abs=1e-4)
    with (run / "synthetic.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["query"] for line in lines] == [row["query"] for row in table]
    assert list(lines[0]) == ["query", "product_id", "label"]


def test_ppo_starts_from_its_reference(run):
    """The first rollout of the first cycle has no KL, and the later ones have."""
    lines = read_metrics(run / "seed-0/cycle-1/ppo/metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    assert trained[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert trained[-1]["kl"] != trained[0]["kl"]
    assert {"score", "entropy", "clipped", "explained_variance"} <= set(trained[0])


def files(folder):
    """Models and synthetic queries, as bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in ("**/model.safetensors", "**/queries.parquet", "**/*.npz")
        for path in folder.glob(pattern)
    }


@pytest.mark.parametrize("stage", ["ppo", "classifier"])
def test_a_cycle_that_was_broken_ends_in_the_same_bits(
    run, tmp_path, stage, monkeypatch
):
    """Interrupted in the middle of a stage of cycle 1, and gone on with."""
    broken = tmp_path / run.name
    shutil.copytree(run, broken)
    cycle = broken / "seed-0/cycle-1"
    for name in ("ppo", "synthetic", "classifier")[
        ("ppo", "", "classifier").index(stage) :
    ]:
        shutil.rmtree(cycle / name)
    module = {"ppo": ppo, "classifier": classifier}[stage]
    train = module.training.train

    class Broken:
        """Batches that a signal interrupts."""

        def __init__(self, batches):
            self._batches = batches
            self.save, self.load = batches.save, batches.load
            self.report = getattr(batches, "report", dict)

        def next(self, state):
            if int(state.step) == 1:
                raise loop.Interrupted("stopped")
            return self._batches.next(state)

    def stops(folder, start, step, batches, how, **options):
        return train(folder, start, step, Broken(batches), how, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module.training, "train", stops)
        with pytest.raises(loop.Interrupted):
            command.main(broken, CONFIG)
    command.main(broken, CONFIG)
    assert files(broken) == files(run)


def test_a_synthetic_row_counts_as_a_real_one_does(run, data, monkeypatch):
    folder = run / "seed-0/cycle-0/synthetic"
    assert set(synthesis.judged(folder, data).weight) == {1.0}
    volumes = data.judgements._replace(weight=np.full(len(data.judgements.query), 7.0))
    monkeypatch.setitem(vars(data), "judgements", volumes)
    assert set(synthesis.judged(folder, data).weight) == {7.0}


def test_drafts_are_left_out_for_the_first_reason_that_holds(data):
    real = str(data.judgements.query[0])
    queries = ["new one", " ", "cut", real.upper(), "new one", "NEW one", "other"]
    count = len(queries)
    drafts = Drafts(
        np.array(queries, object),
        np.array(["p"] * 5 + ["p", "q"], object),
        np.zeros(count, int),
        np.array([True, False, False, True, True, True, True]),
        *(np.zeros(count) for _ in range(2)),
        np.ones(count, int),
        np.zeros(count),
        np.array([0, 0, 0, 0, 0, 0, 1]),
        np.zeros(count),
    )
    found = synthesis.kept(drafts, data, confirmed=False)
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "kept": [0, 6],
        "empty": [1],
        "unfinished": [2],
        "real": [3],
        "duplicate": [4, 5],
        "refuted": [],
    }
    asked = synthesis.kept(drafts, data, confirmed=True)
    assert asked["kept"].tolist() == [0]
    assert asked["refuted"].tolist() == [6]


def test_labels_are_drawn_as_often_as_in_training(data):
    rng = np.random.default_rng(0)
    ids, labels = synthesis.asked_for(data, Synthesis(), 20_000, rng)
    train = data.rows("train").label
    for label in range(4):
        share = np.mean(train == label)
        assert np.mean(labels == label) == pytest.approx(share, abs=0.02)
    assert set(ids) <= set(data.cold_start.products)
    uniform = Synthesis(labels="uniform", products="all")
    ids, labels = synthesis.asked_for(data, uniform, 20_000, rng)
    assert np.bincount(labels).min() > 0.22 * 20_000
    assert not set(ids) <= set(data.cold_start.products)


def rows(queries, weights):
    count = len(queries)
    ids = np.array([f"p{i}" for i in range(count)], object)
    return Judged(
        np.array(queries, object), ids, np.zeros(count, int), np.array(weights, float)
    )


def test_rows_of_the_generator_count_by_weight_and_few_of_each_query():
    equal = rows(["a"] * 8 + ["b"] * 2, [2.0] * 10)
    few = Generator(OptimizerConfig(1, 1, 1e-3), rows_per_query=3)
    assert sorted(generator.drawn(equal, few).query) == ["a"] * 3 + ["b"] * 2
    every = replace(few, rows_per_query=None)
    assert sorted(generator.drawn(equal, every).product_id) == sorted(equal.product_id)
    unequal = rows(["a"] * 500 + ["b"] * 500, [3.0] * 500 + [1.0] * 500)
    drawn = generator.drawn(unequal, every)
    assert np.mean(drawn.query == "a") == pytest.approx(0.75, abs=0.05)


def test_balanced_classes_weigh_the_same(data):
    config = replace(CONFIG.classifier, class_weights="balanced")
    start = classifier.Classifier(None, {}, data.tokenizer)
    train = data.rows("train")
    encoded = classifier._encoded(start, data, config, train)
    total = np.zeros(4)
    for row in encoded:
        total[row.label] += row.weight
    np.testing.assert_allclose(total, total[0])
    assert total.sum() == pytest.approx(len(train.label))


def test_the_order_of_the_texts():
    other = replace(CONFIG.classifier, order="product-query")
    assert classifier._ordered(CONFIG.classifier, ["q"], ["p"]) == (["q"], ["p"])
    assert classifier._ordered(other, ["q"], ["p"]) == (["p"], ["q"])


def test_seeds_share_data_and_average(run):
    """A second seed of a run; the tables then are of both."""
    two = replace(CONFIG, seeds=(0, 1))
    command.main(run, two)
    summary = report.read(run)
    table = summary["strategies"]["cold"]
    assert table["seeds"] == 2
    for row in table["rows"]:
        assert len(set(row["pr_auc_by_seed"])) == 2
        assert row["pr_auc"] == pytest.approx(np.mean(row["pr_auc_by_seed"]))
    evaluate.main(run, CONFIG)  # and of one again


def test_a_base_model_is_not_asked_in_words(run, tmp_path, data):
    """Nothing tells it what is wanted."""
    base = LM(tiny.GPT2, tiny.params(), tiny.tokenizer())
    base.save(tmp_path / "base")
    with pytest.raises(ValueError, match="no chat template, so it is no instruct"):
        generator.instructed(base, tmp_path / "base")


def test_an_instruct_model_is_a_strategy(run, tmp_path, monkeypatch):
    """An encoder-decoder stands in for FLAN-T5: it is asked with a prefix."""
    # A tokenizer of 384 ids makes too many of a whole sentence.
    monkeypatch.setitem(generator.INSTRUCTIONS, "chat", "{label} {product}")
    here = tmp_path / run.name
    shutil.copytree(run, here)
    config = replace(CONFIG, prompted=run / "seed-0/generator/model")
    command.main(here, config)
    summary = report.read(here)
    names = [row["strategy"] for row in summary["strategies"]["cold"]["rows"]]
    assert names == ["None", "Prompted", "Fine-tuned", "Adversarial RL"]
    assert summary["synthetic"][0]["set"] == "Prompted"
    assert summary["synthetic"][0]["kl"] is None  # it has no start to be far from
    asked = Tokenizer.load(run / "seed-0/generator/model").prompt
    assert asked.names == ("label", "product")


def test_an_ablation_shares_what_does_not_depend_on_it(run, tmp_path):
    here = tmp_path / run.name
    shutil.copytree(run, here)
    base = {f.name: getattr(CONFIG, f.name) for f in fields(CONFIG)}
    ablate.main(here, ablate.Ablation(**base, parameter="kl-coef", values=("0",)))
    value = here / "ablation/kl-coef-0"
    assert (value / "seed-0/generator").is_symlink()
    assert (value / "seed-0/cycle-0").is_symlink()
    assert not (value / "seed-0/cycle-1").is_symlink()
    assert runs.read(value / "seed-0/cycle-1/ppo", PPO).kl_coef == 0
    told = runs.read_json(here / "ablation/kl-coef.json")
    ((point,), summary) = told["points"], runs.read_json(value / "summary.json")
    assert point["pr_auc_cold"] == summary["strategies"]["cold"]["rows"][-1]["pr_auc"]
    assert (here / "figures/ablation-kl-coef.png").exists()


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("alpha", "much", "alpha 'much': expected a number"),
        ("pgen-sign", "both", "expected formula or prose"),
        ("generator", "large", "'large': expected one of gpt2"),
    ],
)
def test_an_ablation_of_nothing(tmp_path, parameter, value, message):
    base = {f.name: getattr(CONFIG, f.name) for f in fields(CONFIG)}
    given = {"parameter": parameter, "values": ("0.5", value)[parameter != "alpha" :]}
    with pytest.raises(ValueError, match=message):
        ablate.main(tmp_path / "run", ablate.Ablation(**base, **given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option", ["generator.init", "classifier.init", "prompted", "encoder"]
)
def test_a_model_that_is_not_there(tmp_path, option):
    name, *inner = option.split(".")
    given = tmp_path / "nowhere"
    if inner:
        given = replace(getattr(CONFIG, name), init=given)
    with pytest.raises(FileNotFoundError, match=f"folder with --{option}"):
        command.main(tmp_path / "run", replace(CONFIG, **{name: given}))
    assert not (tmp_path / "run").exists()


def test_what_an_ablation_varies(run, data):
    alpha = ablate._varied(run, data, CONFIG, "alpha", "0.5")
    assert alpha == replace(CONFIG, ppo=replace(CONFIG.ppo, alpha=0.5))
    sign = ablate._varied(run, data, CONFIG, "pgen-sign", "prose")
    assert sign == replace(CONFIG, ppo=replace(CONFIG.ppo, pgen_sign="prose"))
    pretrained = replace(CONFIG, pretrain=None)
    with pytest.raises(ValueError, match="sizes of a generator are pretrained"):
        ablate._varied(run, data, pretrained, "generator", "t5-tiny")


def test_the_label_is_never_cut(data):
    lm = generator.prompted(LM(tiny.GPT2, {}, data.tokenizer), CONFIG.generator.prompt)
    slots = {slot.name: slot.cut for slot in lm.tokenizer.prompt.slots}
    assert slots == {"label": "never", "product": "end"}
    long = {"label": "irrelevant", "product": "red shoes " * 50}
    (ids,) = lm.tokenizer.source([long], 24)
    text = lm.tokenizer.decode(np.array([ids]), np.ones((1, len(ids)), bool))[0]
    assert text.startswith("irrelevant query: red shoes")


def test_settings_of_another_run_are_refused(run):
    other = replace(CONFIG, ppo=replace(CONFIG.ppo, alpha=0.5))
    with pytest.raises(ValueError, match=r"alpha 0.9 -> 0.5"):
        command.main(run, other)


def test_a_source_without_its_folder(tmp_path):
    for name in ("wands", "home-depot", "category"):
        with pytest.raises(ValueError, match=r"give it with --data\.folder"):
            command.main(tmp_path / name, PRESETS[name])
        assert not (tmp_path / name / "data").exists()


@pytest.mark.parametrize("name", releases.WRITERS)
def test_presets_read_the_published_files(tmp_path, name):
    """Data, split, and what a generator reads, of every release."""
    files = tmp_path / "files"
    files.mkdir()
    releases.WRITERS[name](files)
    preset = PRESETS[name]
    settings = replace(preset.data, folder=files, vocab_size=384)
    world.prepare(tmp_path / "run", settings)
    data = world.World(tmp_path / "run")
    assert all(len(rows) for rows in data.cold_start.parts.values())
    assert not set(data.rows("train").product_id) & set(data.cold_start.products)
    texts = {"wands": "exact", "home-depot": "exact", "category": "in"}
    (source,) = data.sources([data.cold_start.products[0]], [0])
    assert source["label"] == texts[name]
    assert source["product"]
    if name == "category":
        assert (data.rows("train").weight > 1).any()  # volumes
        assert data.fully_judged == frozenset()
    # The second time it is done, wherever the files are by then.
    moved = files.rename(tmp_path / "moved")
    world.prepare(tmp_path / "run", replace(settings, folder=moved))


def test_only_fully_judged_queries_where_asked():
    judged = Judgements(*(np.array(list(x), object) for x in ("aab", "xyx", "EIE")))
    split = {"a": "test", "b": "train"}
    whole = Collection({}, split, judged, fully_judged=frozenset("a"))
    found = world._fully_judged(whole)
    assert found.split == {"a": "test"}
    assert found.judgements.product_id.tolist() == ["x", "y"]
    assert world._fully_judged(whole._replace(fully_judged=None)).split == split
    with pytest.raises(ValueError, match=r"leave out --data\.fully-judged"):
        world._fully_judged(whole._replace(fully_judged=frozenset()))


def test_statistics_state_the_split(run, data):
    told = runs.read_json(run / "data/statistics.json")
    assert told == json.loads(json.dumps(data.statistics))
    assert told["parts"]["cold"]["rows"] == len(data.cold_start.cold)
    assert sum(told["parts"]["train"]["labels"].values()) == len(data.cold_start.train)
