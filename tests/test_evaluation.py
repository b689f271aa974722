"""Every cell of every table in the hand-made world; failures are never numbers."""

import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import world
from sklearn.metrics import f1_score
from world import GUARD, LAMP, NAN, POOL, QUERIES, SHOE, SOFA, Engine, Judge, K, check

from jaxqr.decode import Sampling
from jaxqr.evaluation import classifier, compare, pairs, search
from jaxqr.evaluation.classifier import Judged
from jaxqr.records import Hits, Judgements, Labels, Reward
from jaxqr.rewards import rewrite_reward
from jaxqr.rewards.relevance import RelevanceModel

COPY = "copy the query"
SAMPLING = Sampling(world.LENGTHS.source, world.LENGTHS.target)
SYSTEMS = {
    COPY: QUERIES,
    "before": [world.BEFORE.greedy[query] for query in QUERIES],
    "after": [world.AFTER.greedy[query] for query in QUERIES],
}


def scorers(engine, judge=None):
    """What `System.scorers` gives, without pools and without a cache."""
    score = partial(
        rewrite_reward,
        retriever=engine,
        relevance=RelevanceModel(world.m1_classifier(), world.PRODUCTS),
        judge=judge or Judge(),
        k=K,
    )
    return search.Scorers(
        partial(score, profiles=POOL),
        partial(score, profiles=GUARD),
        world.JUDGED_GAINS,
        world.true_gain,
        K,
    )


def letters(texts):
    return float(np.mean([len(text.replace(" ", "")) for text in texts]))


# Offline


@pytest.fixture
def columns():
    how = {"max_source": world.LENGTHS.source, "max_target": world.LENGTHS.target}
    lms = {
        "SFT student": world.STUDENT,
        "distilled student": world.DISTILLED,
        "SFT teacher": world.TEACHER,
    }
    return {COPY: pairs.copy_columns(world.Words(), world.PAIRS)} | {
        name: pairs.lm_columns(lm, world.PAIRS, teacher=lm.teacher, **how)
        for name, lm in lms.items()
    }


def check_offline(table):
    """Table 2 of the world, the distilled student compared with the SFT student."""
    assert (table["pairs"], table["queries"]) == (4, 3)
    assert [row["model"] for row in table["rows"]] == list(world.OFFLINE)
    for row in table["rows"]:
        expected = {"model": row["model"]} | world.OFFLINE[row["model"]]
        check(row, expected)
    expected = [
        {"metric": metric, "model": "distilled student", "than": "SFT student"}
        | world.interval(values)
        for metric, values in world.OFFLINE_DIFFERENCES.items()
    ]
    check(table["comparisons"], expected)


def test_the_offline_table(columns):
    compared = [("SFT student", "pretrained"), ("distilled student", "SFT student")]
    check_offline(pairs.table(columns, world.PAIRS, compared))


def test_what_one_system_lacks_is_not_compared(columns):
    table = pairs.table(columns, world.PAIRS, [("SFT teacher", "SFT student")])
    assert [c["metric"] for c in table["comparisons"]] == [
        *("rouge_l", "rouge_l_sampled", "nll_per_token")
    ]
    table = pairs.table(columns, world.PAIRS, [("SFT student", COPY)])
    assert [c["metric"] for c in table["comparisons"]] == ["rouge_l", "rouge_l_sampled"]


def test_validation_shows_the_numbers_of_the_table():
    how = {"max_source": world.LENGTHS.source, "max_target": world.LENGTHS.target}
    expected = world.OFFLINE["distilled student"]
    evaluate = pairs.validation(world.PAIRS, teacher=world.TEACHER, samples=5, **how)
    check(
        evaluate(world.DISTILLED, 7),
        {
            "nll": expected["nll_per_token"],
            "rouge_l": expected["rouge_l"],
            "rouge_l_sampled": expected["rouge_l_sampled"],
            "reverse_kl": expected["reverse_kl"],
        },
    )
    fewer = pairs.validation(world.PAIRS, **how)(world.DISTILLED, 0)
    check(fewer, {"nll": expected["nll_per_token"], "rouge_l": expected["rouge_l"]})


# Online


def check_online(table, names=tuple(world.ONLINE), lost=()):
    """Table 3 of the world under these names of the systems.

    `lost` are (system, metrics, query): cells that a failure has made unknown.
    """
    renamed = dict(zip(world.ONLINE, names, strict=True))
    metrics = list(world.ONLINE[COPY])
    values = {
        renamed[system]: {m: list(row) for m, row in columns.items()}
        for system, columns in (
            (s, world.ONLINE[s] | world.SHARES[s]) for s in world.ONLINE
        )
    }
    failed = {name: [0, 0, 0] for name in names}
    for system, which, query in lost:
        for metric in which:
            values[renamed[system]][metric][QUERIES.index(query)] = NAN
        failed[renamed[system]][QUERIES.index(query)] = int("total" in which)
    last = names[-1]
    assert (table["queries"], table["k"]) == (3, K)
    assert table["metrics"] == metrics
    assert table["counts"] == {m: len(world.known(values[last][m])) for m in metrics}
    shares = {name: sum(row) / 3 for name, row in failed.items()}
    check(table["failed"], shares)
    assert [row["system"] for row in table["rows"]] == list(names)
    for row, name in zip(table["rows"], world.ONLINE, strict=True):
        system = renamed[name]
        expected = {m: world.mean(row) for m, row in values[system].items()}
        expected |= {"length": world.LETTERS[name], "failed": shares[system]}
        check(row, expected | {"system": system})
    expected = [
        {"metric": metric, "system": last, "than": than}
        | world.interval(
            [
                a - b
                for a, b in zip(values[last][metric], values[than][metric], strict=True)
            ]
        )
        for than in (names[1], names[0])
        for metric in metrics
    ]
    check(table["differences"], expected)


def test_the_online_table():
    table = search.table(QUERIES, SYSTEMS, scorers(Engine()), length=letters)
    check_online(table)
    assert table["counts"]["ndcg"] == 2


def test_where_nothing_more_is_known_there_are_no_columns():
    some = scorers(Engine())._replace(gains={}, true_gain=None)
    table = search.table(QUERIES, SYSTEMS, some, length=letters)
    assert table["metrics"] == list(world.ONLINE[COPY])[:-2]


def test_the_curve_is_the_table():
    from experiments.online_dpo import curve_point

    values, shown = curve_point(
        world.AFTER, world.BEFORE, QUERIES, scorers(Engine()), SAMPLING
    )
    check_curve(values)
    totals = world.ONLINE["after"]["total"]
    expected = zip(SYSTEMS["after"], totals, strict=True)
    check(shown, dict(zip(QUERIES, expected, strict=True)))
    # The same inputs, the same numbers.
    table = search.table(QUERIES, SYSTEMS, scorers(Engine()), length=letters)
    row = table["rows"][-1]
    shared = values.keys() & row.keys() - {"length"}  # in words, in tokens
    assert {name: values[name] for name in shared} == {n: row[n] for n in shared}
    assert len(shared) == len(table["metrics"]) + len(search.FLAGS) + 1


def check_curve(values):
    """One point of AFTER's curve in the world."""
    columns = world.ONLINE["after"] | world.SHARES["after"]
    expected = {m: world.mean(row) for m, row in columns.items()} | world.DRIFT
    check(values, expected | {"failed": 0.0, "length": 2.0})


SEARCHED = [*(m for m in world.ONLINE[COPY]), *search.FLAGS]
"""What is not known of a rewrite whose search failed."""
SCORED = [m for m in SEARCHED if m not in ("ndcg", "true_gain")]
"""What is not known of a rewrite that was found things, but whose query was not."""


@pytest.mark.parametrize(
    ("engine", "judge", "lost"),
    [
        # The rewrite's own list.
        (Engine("table light"), Judge(), [("after", SEARCHED, LAMP)]),
        # The list of the query, which is that of its copies, too.
        (
            Engine(SOFA),
            Judge(),
            [
                (COPY, SEARCHED, SOFA),
                ("before", SCORED, SOFA),
                ("after", SCORED, SOFA),
            ],
        ),
        # The judge; it does not see the empty lists of the copy and of BEFORE.
        (Engine(), Judge(LAMP), [("after", SCORED, LAMP)]),
    ],
)
def test_a_failure_is_missing_in_its_own_row_alone(engine, judge, lost):
    table = search.table(QUERIES, SYSTEMS, scorers(engine, judge), length=letters)
    check_online(table, lost=lost)


def test_a_failed_batch_is_no_number():
    some = scorers(Engine())

    def nothing(queries, rewrites):
        return Reward.unknown(len(queries))

    columns = search.search_columns(
        QUERIES, SYSTEMS["after"], some._replace(reward=nothing, guard=nothing)
    )
    means = columns.means()
    assert means.pop("failed") == 1
    assert set(means) == set(SEARCHED)
    assert all(map(math.isnan, means.values()))
    # The guard alone: only its own numbers are missing.
    columns = search.search_columns(
        QUERIES, SYSTEMS["after"], some._replace(guard=nothing)
    )
    means = columns.means()
    unknown = {name for name, value in means.items() if math.isnan(value)}
    assert unknown == {"guard_click", "guard_add_to_cart", "guard_purchase"}
    assert means["failed"] == 0


# Through the experiments: which shoppers, which queries, which gains


@pytest.fixture
def run(tmp_path):
    """A run folder in which M1, two stages and the online stage are finished."""
    from experiments import runs
    from experiments.config import OnlineDPO, SystemConfig
    from experiments.presets import PRESETS

    preset = PRESETS["quickstart"]
    online = OnlineDPO(preset.online.optimizer, system=SystemConfig(k=K, retries=0))
    stages = {
        "relevance": preset.relevance,
        "sft-teacher": preset.sft_teacher,
        "sft-student": preset.sft_student,
        "distill": preset.distill,
        "online": online,
    }
    for name, config in stages.items():
        (tmp_path / name).mkdir()
        runs.write_json(tmp_path / name / "config.json", config)
        (tmp_path / name / "done").touch()
    return tmp_path


@pytest.fixture
def engine(monkeypatch):
    """The engine of every `System`, whose other parts are the world's too."""
    from experiments import system

    engine, shoppers = Engine(), {0: POOL, 1: GUARD}
    monkeypatch.setattr(system, "engine", lambda config, products, run: engine)
    monkeypatch.setattr(
        system,
        "Classifier",
        SimpleNamespace(load=lambda folder, **options: world.m1_classifier()),
    )
    monkeypatch.setattr("experiments.judges.SimulatedShopper", lambda products: Judge())
    monkeypatch.setattr(
        system, "sample_profiles", lambda n, seed, *, brands: shoppers[seed]
    )
    return engine


def data(split):
    """The world as prepared data, its queries and pairs in one split.

    The other splits have what neither the engine nor a writer knows.
    """
    others = {name: f"a {name} query" for name in ("train", "validation", "test")}
    return SimpleNamespace(
        products=world.PRODUCTS,
        labels=world.LABELS,
        judgements=world.JUDGEMENTS,
        fully_judged=world.FULLY_JUDGED,
        true_gain=world.true_gain,
        lengths=world.LENGTHS,
        tokenizer=world.Words(),
        searchable={name: [q] for name, q in others.items()} | {split: QUERIES},
        pairs={name: [(q, "text")] for name, q in others.items()}
        | {split: world.PAIRS},
    )


def test_a_system_scores_with_its_shoppers_and_caches_its_searches(run, engine):
    from experiments import runs
    from experiments.config import OnlineDPO
    from experiments.system import System

    config = runs.read(run / "online", OnlineDPO).system
    put_together = System(run, data("test"), config)
    with put_together.scorers() as asked:
        table = search.table(QUERIES, SYSTEMS, asked, length=letters)
        check_online(table)
        # Each text once, whoever asks: three systems, reward and guard, evaluations.
        search.table(QUERIES, SYSTEMS, asked, length=letters)
    wanted = {text for texts in SYSTEMS.values() for text in texts if text}
    assert sorted(engine.asked) == sorted(wanted)
    reward = put_together.reward(QUERIES, SYSTEMS["after"])
    check(reward.total.tolist(), list(world.ONLINE["after"]["total"]))


def test_the_online_table_is_of_test_queries_before_and_after(run, engine, monkeypatch):
    from experiments import evaluate
    from experiments.config import Evaluate

    writers = {"distill": world.BEFORE, "online": world.AFTER}
    monkeypatch.setattr(
        evaluate, "load_stage", lambda folder, kind, fsdp=None: writers[folder.name]
    )
    table = evaluate.online(run, Evaluate(), data("test"))
    names = (COPY, "before (distill)", "after online DPO")
    assert (table.pop("split"), table.pop("updates")) == ("test", 150)
    # The queries come in a random order, of which means and differences see nothing.
    check_online(table, names)
    assert len(engine.asked) == len(set(engine.asked))
    with pytest.raises(KeyError):
        evaluate.online(run, Evaluate(), data("validation"))


def test_the_offline_table_is_of_test_pairs(run, monkeypatch):
    from experiments import evaluate
    from experiments.config import Evaluate

    writers = {
        "sft-student": world.STUDENT,
        "distill": world.DISTILLED,
        "sft-teacher": world.TEACHER,
    }
    monkeypatch.setattr(
        evaluate, "load_stage", lambda folder, kind, fsdp=None: writers[folder.name]
    )
    (run / "online" / "done").unlink()
    check_offline(evaluate.offline(run, Evaluate(), data("test")))
    with pytest.raises(KeyError):
        evaluate.offline(run, Evaluate(), data("validation"))


def begin_online(run, monkeypatch, split):
    """Starts the online stage on the world's queries in this split.

    Returns what `training.train` was called with, having been called in its place.
    """
    from experiments import online_dpo, training
    from experiments.presets import PRESETS

    called = {}

    def note(folder, start, step, batches, config, *, evaluate, **options):
        called.update(options, start=start, batches=batches)
        called["values"] = [evaluate(world.AFTER, n) for n in (0, 25)]

    monkeypatch.setattr(online_dpo, "Prepared", lambda folder: data(split))
    monkeypatch.setattr(training, "load_model", lambda *args, **options: world.BEFORE)
    monkeypatch.setattr(training, "train", note)
    system = PRESETS["quickstart"].online.system
    config = type(PRESETS["quickstart"].online)(
        PRESETS["quickstart"].online.optimizer,
        name="again",
        system=type(system)(k=K, retries=0),
    )
    online_dpo.main(run, config)
    return called


def test_the_curve_is_of_validation_queries(run, engine, monkeypatch):
    called = begin_online(run, monkeypatch, "validation")
    for values in called["values"]:
        check_curve(values)
    # Both evaluations searched each text once.
    assert sorted(engine.asked) == sorted([*QUERIES, *SYSTEMS["after"]])
    lines = (run / "again" / "rewrites.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 25]
    totals = world.ONLINE["after"]["total"]
    rows = list(zip(QUERIES, SYSTEMS["after"], totals, strict=True))
    for line in lines:
        found = json.loads(line)["rewrites"]
        check(found, {query: [text, total] for query, text, total in rows})


def test_no_other_split_reaches_the_curve(run, engine, monkeypatch):
    for split in ("train", "test"):
        with pytest.raises(KeyError, match="a validation query"):
            begin_online(run, monkeypatch, split)


def test_the_guard_is_another_pool(run, engine):
    from experiments.config import SystemConfig
    from experiments.system import System

    with pytest.raises(ValueError, match="shoppers that training never meets"):
        System(run, data("test"), SystemConfig(pool_seed=3, guard_seed=3))


def test_a_failing_evaluation_is_none_of_trainings_failures(run, engine):
    from experiments.config import SystemConfig
    from experiments.system import System

    put_together = System(run, data("test"), SystemConfig(k=K, retries=0))
    with (
        put_together.pool(put_together.reward) as training,
        put_together.scorers() as asked,
    ):
        engine.down = True
        ask = (QUERIES, SYSTEMS["after"])
        # Three in a row stop a run: two of training and two of each evaluation do not.
        for score in (training.score, asked.reward, asked.guard) * 2:
            assert not score(*ask).valid.any()
        assert training.failures == 2
        for score in (asked.reward, asked.guard, training.score):
            with pytest.raises(RuntimeError, match="3 times in a row"):
                score(*ask)
        engine.down = False
        assert asked.reward(*ask).valid.all()
        assert training.score(*ask).valid.all()


def test_gains_are_those_of_fully_judged_queries_with_text():
    from experiments.system import judged_gains

    assert judged_gains(data("test")) == world.JUDGED_GAINS
    every = data("test")
    every.fully_judged = None
    assert judged_gains(every) == world.JUDGED_GAINS | {LAMP: {"E": 1.0, "B": 0.0}}


def test_true_gain_is_the_prepared_shops(tmp_path):
    """Of every judgement, by a shop that is not the default one."""
    from dataclasses import replace

    from experiments import prepare
    from experiments.prepare import Prepared
    from experiments.presets import PRESETS

    config = replace(
        PRESETS["quickstart"].prepare,
        products=700,
        types=8,
        intents=20,
        vocab_size=300,
        seed=5,
    )
    prepare.main(tmp_path, config)
    prepared = Prepared(tmp_path)
    assert prepared.true_gain is not None
    rows = list(zip(*prepared.judgements[:3], strict=True))
    gains = [prepared.true_gain(query, product) for query, product, _ in rows]
    assert gains == [prepared.labels.gain(label) for _, _, label in rows]
    assert len(set(gains)) == 4
    (tmp_path / "data" / "truth.json").unlink()  # as of any other source
    assert Prepared(tmp_path).true_gain is None


# nDCG, true gain, coverage, differences by themselves


def hits_of(*rows, width=K):
    ids = np.array([list(row) + [""] * (width - len(row)) for row in rows], np.str_)
    ids = ids.reshape(len(rows), width)
    valid = np.ones(len(rows), np.bool_)
    return Hits(ids, np.zeros(ids.shape, np.float32), valid)


def test_ndcg_of_judged_products():
    gains = {"q": {"A": 1.0, "B": 0.1, "D": 0.0}, "nothing": {"A": 0.0}, "none": {}}
    queries = ["q", "q", "q", "q", "nothing", "none", "unknown"]
    hits = hits_of("AB", "EBA", "DEC", "", "A", "A", "A")
    best = 1 + 0.1 / math.log2(3)
    expected = [1, (0.1 + 1 / math.log2(3)) / best, 0, 0, NAN, NAN, NAN]
    check(search.judged_ndcg(queries, hits, gains, K).tolist(), expected)
    # k cuts the judged products, here to the first of each.
    expected[1] = 0.1
    check(search.judged_ndcg(queries, hits, gains, 1).tolist(), expected)
    lost = hits._replace(valid=np.zeros(7, np.bool_))
    assert np.isnan(search.judged_ndcg(queries, lost, gains, K)).all()


def test_coverage():
    sets = [
        hits_of("ABC", "BEA", "", "EBA", "BEA"),
        hits_of("D", "D", "", ""),
        hits_of("CD", ""),
        hits_of(),
    ]
    relevant = [{"A", "E", "X"}, {"C"}, {"C", "D"}, {"A"}]
    found = search.coverage(sets, relevant, 2)
    # Of the first two products AB, BE, nothing, EB, BE: A and E; BE is there twice.
    # EB is no duplicate: it is another list.
    assert found.coverage.tolist() == [2, 0, 2, 0]
    assert found.empty.tolist() == [1, 2, 1, 0]
    assert found.duplicates.tolist() == [1, 1, 0, 0]
    # Of the first one A, B, E: A and E all the same; B is there twice.
    found = search.coverage(sets, relevant, 1)
    assert found.coverage.tolist() == [2, 0, 1, 0]
    assert found.duplicates.tolist() == [1, 1, 0, 0]
    failed = np.array([True, True, False, True, True])
    found = search.coverage([sets[0]._replace(valid=failed), *sets[1:]], relevant, 2)
    for column, rest in zip(found, ([0, 2, 0], [2, 1, 0], [1, 0, 0]), strict=True):
        check(column.tolist(), [NAN, *rest])


@pytest.mark.parametrize(("count", "k"), [(1, 2), (2, 0)])
def test_coverage_refuses(count, k):
    with pytest.raises(ValueError, match="as many sets as queries, and k of 1"):
        search.coverage([hits_of("A"), hits_of("B")], [{"A"}] * count, k)


def test_differences():
    before, after = np.array([0.0, 1.0, NAN, 5.0]), np.array([1.0, 3.0, 9.0, NAN])
    forth, back = compare.difference(before, after), compare.difference(after, before)
    assert forth == {"difference": 1.5, "low": 1.0, "high": 2.0}
    assert back == {"difference": -1.5, "low": -2.0, "high": -1.0}
    unknown = np.full(4, NAN)
    assert all(map(math.isnan, compare.difference(before, unknown).values()))
    constant = compare.difference(np.arange(9.0), np.arange(9.0) + 0.25)
    assert constant == {"difference": 0.25, "low": 0.25, "high": 0.25}
    assert compare.known_mean(np.array([NAN, 1.0, 4.0])) == 2.5
    assert math.isnan(compare.known_mean(unknown))
    means = compare.mean_by_query(np.array([4.0, 1.0, 2.0, NAN]), ["b", "a", "b", "c"])
    check(means.tolist(), [3, 1, NAN])


# M1's table

# Columns: query, product, label, M1's probabilities of its labels.
FOUR = [
    (SHOE, "A", "E", (0.5, 0.25, 0.125, 0.125)),  # right
    (SHOE, "B", "S", (0.625, 0.125, 0.125, 0.125)),  # E
    (SHOE, "D", "I", (0.0, 0.25, 0.25, 0.5)),  # right
    (SOFA, "D", "S", (0.25, 0.5, 0.125, 0.125)),  # right
    (SOFA, "C", "E", (0.125, 0.25, 0.5, 0.125)),  # C
    (LAMP, "E", "E", (1.0, 0.0, 0.0, 0.0)),  # right
]
BY_BM25 = {SHOE: "DAB", SOFA: "D", LAMP: ""}


class Everything(Engine):
    """Lists of any length."""

    def search(self, queries, k):
        self.asked += queries
        assert k == 1000
        hits = hits_of(*(BY_BM25[query] for query in queries))
        scores = np.tile(np.array([3, 2, 1], np.float32), (len(queries), 1))
        valid = np.array([query not in self.failing for query in queries])
        return Hits(hits.ids, scores * (hits.ids != ""), valid)


def judged(rows, labels, queries):
    columns = (np.array(c, object) for c in zip(*(r[:3] for r in rows), strict=True))
    return Judged.of(Judgements(*columns), labels, world.PRODUCTS, queries)


def m1_table(rows, labels, train, engine, **options):
    table = {}
    for query, product, _, probabilities in rows:
        table.setdefault(query, {})[product] = probabilities
    m1 = RelevanceModel(
        world.FixedClassifier(table, labels.num_classes), world.PRODUCTS, labels
    )
    test = judged([*rows, (SHOE, "X", labels.names[0])], labels, QUERIES)
    majority = judged([(SHOE, "A", label) for label in train], labels, [SHOE])
    return classifier.table(m1, test, majority, labels, engine, **options)


def test_m1s_table():
    engine = Everything()
    table = m1_table(FOUR, Labels(), "EIIS", engine, seed=4)
    assert engine.asked == QUERIES
    assert (table["test_rows"], table["test_queries"]) == (6, 3)  # X has no text
    assert table["ndcg_queries"] == 2  # one product of LAMP is in any order
    m1, bm25, majority, random = table["rows"]
    best = 1 + 0.1 / math.log2(3)
    # Gains 0.52625, 0.63875 and 0.0275: B, A, D. And 0.30125 and 0.155: D, C.
    worst = 0.1 + 1 / math.log2(3)
    # E: 2 of 3 found, 3 predicted; S: 1 of 2, 1 predicted; C: 0 of 0, 1; I: 1 of 1, 1.
    check(
        m1,
        {
            "ranker": "M1",
            "accuracy": 4 / 6,
            "macro_f1": (2 * 2 / (3 + 3) + 2 / (2 + 1) + 0 + 1) / 4,
            "nll": -math.log(0.5 * 0.125 * 0.5 * 0.5 * 0.125 * 1) / 6,
            "ndcg": (worst / best + worst / best) / 2,
        },
    )
    # D, A, B: gains 0, 1, 0.1; then D, and C that it does not find: 0.1, 1.
    first = (1 / math.log2(3) + 0.1 / 2) / best
    check(
        bm25,
        {
            "ranker": "BM25",
            "accuracy": None,
            "macro_f1": None,
            "nll": None,
            "ndcg": (first + worst / best) / 2,
        },
    )
    check(
        majority,
        {
            "ranker": "majority label",  # I: 1 of 1 found, 6 predicted
            "accuracy": 1 / 6,
            "macro_f1": (2 * 1 / (1 + 6)) / 4,
            "nll": None,
            "ndcg": None,
        },
    )
    gains = [1, 0.1, 0, 0.1, 1]
    draws = np.random.default_rng(4)
    orders = []
    for _ in range(20):
        drawn = draws.random(6)
        for rows in ([0, 1, 2], [3, 4]):
            rows = sorted(rows, key=lambda row: -drawn[row])
            orders.append(
                sum(gains[r] / math.log2(i + 2) for i, r in enumerate(rows)) / best
            )
    check(
        random,
        {"ranker": "random order", "accuracy": None, "macro_f1": None, "nll": None}
        | {"ndcg": sum(orders) / 40},
    )


def test_bm25_is_not_ranked_where_its_search_failed():
    table = m1_table(FOUR, Labels(), "EIIS", Everything(SHOE))
    best, worst = 1 + 0.1 / math.log2(3), 0.1 + 1 / math.log2(3)
    check(table["rows"][1]["ndcg"], worst / best)  # of SOFA alone
    assert table["ndcg_queries"] == 2  # M1's


THREE = Labels(("exact", "partial", "none"), (1.0, 0.5, 0.0), ("exact", "partial"))
TWO = Labels(("in", "out"), (1.0, 0.0), ("in",))


@pytest.mark.parametrize("labels", [THREE, TWO])
def test_m1s_table_of_other_labels(labels):
    first, *_, last = labels.names
    rest = (0.0,) * (labels.num_classes - 2)
    rows = [
        (SHOE, "A", first, (0.75, *rest, 0.25)),  # right
        (SHOE, "B", last, (0.625, *rest, 0.375)),
        (SHOE, "D", last, (0.25, *rest, 0.75)),  # right
        (SOFA, "D", labels.names[1], (0.125, *rest, 0.875)),
        (SOFA, "C", first, (0.375, *rest, 0.625)),
        (LAMP, "E", first, (1.0, *rest, 0.0)),  # right
    ]
    table = m1_table(rows, labels, [last, first, last], Everything())
    m1, bm25, majority, _ = table["rows"]
    truth = [labels.names.index(row[2]) for row in rows]
    predicted = [int(np.argmax(row[3])) for row in rows]
    classes = list(range(labels.num_classes))

    def f1(answers):
        return f1_score(
            truth, answers, labels=classes, average="macro", zero_division=0.0
        )

    check(m1["accuracy"], np.mean(np.equal(truth, predicted)))
    check(m1["macro_f1"], f1(predicted))
    # M1 has A, B, D: gains 1, 0, 0. Then C, D: 1, and 0.5 or 0.
    check(m1["ndcg"], 1.0)
    # D, A, B: 0, 1, 0. Then D, and C that it does not find.
    second = labels.gains[1]
    best = 1 + second / math.log2(3)
    expected = 1 / math.log2(3), (second + 1 / math.log2(3)) / best
    check(bm25["ndcg"], sum(expected) / 2)
    constant = labels.num_classes - 1
    check(majority["accuracy"], truth.count(constant) / 6)
    check(majority["macro_f1"], f1([constant] * 6))


@pytest.mark.parametrize("labels", [THREE, TWO])
def test_gains_of_other_labels(labels):
    from experiments.system import judged_gains

    first, *_, last = labels.names
    some = data("test")
    some.labels = labels
    some.judgements = Judgements(
        np.array([SHOE, SHOE, SOFA, LAMP], object),
        np.array(["A", "B", "D", "E"], object),
        np.array([first, last, labels.names[1], first], object),
    )
    assert judged_gains(some) == {
        SHOE: {"A": 1.0, "B": 0.0},
        SOFA: {"D": labels.gains[1]},
    }


@pytest.mark.parametrize(
    ("labels", "a", "b", "expected"),
    [
        # 1 * 0.25 + 0.5 * 0.5, and 0.5 * 0.125.
        (THREE, (0.25, 0.5, 0.25), (0.0, 0.125, 0.875), [0.5, 0.0625, 0.0]),
        (TWO, (0.25, 0.75), (1.0, 0.0), [0.25, 1.0, 0.0]),
    ],
)
def test_relevance_by_other_labels(labels, a, b, expected):
    fixed = world.FixedClassifier({SHOE: {"A": a, "B": b}}, labels.num_classes)
    m1 = RelevanceModel(fixed, world.PRODUCTS, labels)
    assert m1([SHOE], np.array([["A", "B", ""]])).tolist() == [expected]


def test_a_classifier_of_other_labels_is_refused():
    with pytest.raises(ValueError, match=r"has 4 classes, .*labels in, out: train"):
        RelevanceModel(world.m1_classifier(), world.PRODUCTS, TWO)


def test_judgements_that_are_tested():
    judgements = world.JUDGEMENTS
    rows = Judged.of(judgements, world.LABELS, world.PRODUCTS, [SOFA, SHOE])
    assert rows.query.tolist() == [SHOE] * 3 + [SOFA] * 2
    assert rows.product_id.tolist() == list("ABDCD")
    assert rows.label.tolist() == [0, 1, 3, 0, 1]
    shuffled = rows.shuffled(0)
    both = zip(*shuffled, strict=True)
    assert sorted(both) == sorted(zip(*rows, strict=True))
    assert len(rows.shuffled(1, 2).label) == 2
    none = Judged.of(judgements, world.LABELS, world.PRODUCTS, [])
    assert [len(column) for column in none] == [0] * 4
    assert set(rows.weight) == {1.0}
    weighted = judgements._replace(weight=np.arange(len(judgements.query)) + 1.0)
    rows = Judged.at(weighted, world.LABELS, np.array([2, 0]))
    assert rows.weight.tolist() == [3.0, 1.0]
