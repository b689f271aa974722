"""The whole pipeline on a shop of a few products, and the run folder's rules."""

import dataclasses
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import (
    cross_validate,
    distill,
    evaluate,
    online_dpo,
    pipeline,
    prepare,
    pretrain,
    runs,
    serving,
    sft,
)
from experiments.config import (
    SFT,
    Folds,
    Lengths,
    LoraConfig,
    OnlineDPO,
    Prepare,
    Pretrain,
    Run,
)
from experiments.presets import PRESETS
from jaxqr.data.prompts import QUERY, PromptTemplate
from jaxqr.data.tokenize import Tokenizer, train_tokenizer


def brief(config, **fields):
    """The stage with fewer steps, in smaller batches."""
    optimizer = replace(
        config.optimizer,
        num_steps=4,
        batch_size=8,
        evaluate_every=2,
        checkpoint_every=2,
    )
    return replace(config, optimizer=optimizer, **fields)


def tiny(preset):
    """All stages of a preset on a shop of 400 products; both models are one size."""
    assert preset.pretrain_teacher
    assert preset.pretrain_student
    return replace(
        preset,
        prepare=replace(
            preset.prepare, products=400, types=6, intents=24, vocab_size=384
        ),
        relevance=brief(preset.relevance, negatives=0.1),
        pretrain_teacher=brief(preset.pretrain_teacher, model="gpt2-tiny"),
        pretrain_student=brief(preset.pretrain_student),
        sft_teacher=brief(preset.sft_teacher, validation_pairs=8),
        sft_student=brief(preset.sft_student, validation_pairs=8),
        distill=brief(preset.distill, rollouts=16, inner_epochs=1, validation_pairs=8),
        online=brief(preset.online, candidates=2, evaluation_queries=8),
        evaluate=replace(preset.evaluate, pairs=16, queries=8),
    )


CONFIG = tiny(pipeline.CONFIGS["quickstart"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.main(folder, CONFIG)
    return folder


def test_the_pipeline_ends_with_a_report(run):
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    systems = [row["system"] for row in summary["online"]["rows"]]
    assert systems == ["copy the query", "before (distill)", "after online DPO"]
    models = [row["model"] for row in summary["offline"]["rows"]]
    assert models[0] == "copy the query"
    assert {"SFT student", "distilled student", "SFT teacher"} <= set(models)
    assert [point["step"] for point in summary["curves"]] == [0, 2, 4]
    assert [point["step"] for point in summary["training"]] == [1, 2, 3, 4]
    assert {row["ranker"] for row in summary["relevance"]["rows"]} >= {"M1", "BM25"}
    assert "true_gain" in summary["online"]["metrics"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(example["query"] in page for example in summary["rewrites"][:1])


def test_what_the_table_shows_the_curve_shows_too(run):
    """One definition of each metric."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    shown = set(summary["online"]["metrics"]) - {"length"}
    assert {"total", "ndcg", "guard_click"} <= shown
    for point in summary["curves"]:
        assert point.keys() >= shown


def test_another_family_passes_through_the_stages(run):
    """With adapters, which each stage merges, and a policy gradient at the end;
    `test_learning` distills this family.
    """
    folder = run.parent / "another"
    for done in ("data", "relevance"):
        shutil.copytree(run / done, folder / done)
    short = {"num_steps": 2, "evaluate_every": 0, "checkpoint_every": 0}

    def once(config, **fields):
        optimizer = replace(config.optimizer, **short)
        return replace(config, optimizer=optimizer, **fields)

    assert CONFIG.pretrain_student
    pretrain.main(folder, once(CONFIG.pretrain_student, model="t5-tiny"))
    adapted = once(CONFIG.sft_student, lora=LoraConfig(rank=4), validation_pairs=4)
    sft.main(folder, adapted)
    briefly = once(CONFIG.online, start="sft-student", evaluation_queries=4)
    online_dpo.main(folder, replace(briefly, method="grpo"))
    stages = {
        "pretrain-student": Pretrain,
        "sft-student": SFT,
        "online": OnlineDPO,
    }
    for name, kind in stages.items():
        lm = evaluate.load_stage(folder / name, kind)
        assert lm.model.encoder_decoder
        assert lm.params.keys() == {"params"}  # adapters are merged
        assert lm.tokenizer.prompt == PromptTemplate("prefix", (QUERY,))


def test_a_model_has_a_run_of_its_own(monkeypatch, tmp_path):
    """`--model` alone does not meet a run of another model."""
    started = []
    monkeypatch.setattr(prepare, "main", lambda run, config: started.append(run))
    monkeypatch.setattr(pipeline, "_at_the_same_time", lambda run, config: 1 / 0)
    for name, model in (
        ("quickstart", None),
        ("quickstart", "llama-tiny"),
        ("mine", "llama-tiny"),
    ):
        with pytest.raises(ZeroDivisionError):
            pipeline.main(tmp_path / name, replace(CONFIG, model=model))
    names = [folder.name for folder in started]
    assert names == ["quickstart", "quickstart-llama-tiny", "mine"]
    with pytest.raises(ValueError, match=r"has no stage for: give --sft-teacher\.init"):
        pipeline.main(tmp_path, replace(pipeline.CONFIGS["paper-t5"], model="t5-tiny"))
    given = replace(CONFIG.sft_student, init=tmp_path)
    with pytest.raises(ValueError, match="give one of the two"):
        pipeline.main(tmp_path, replace(CONFIG, model="t5-tiny", sft_student=given))


def test_models_of_other_tokenizers_do_not_distill(run, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.rmtree(folder / "distill")
    other = train_tokenizer(["a few other words"], 300)
    other.save(folder / "sft-teacher" / "model")
    with pytest.raises(ValueError, match="tokenizers of teacher and student differ"):
        distill.main(folder, CONFIG.distill)
    assert not (folder / "distill").exists()
    # Nor are they compared, which needs one vocabulary; the rest is.
    config = replace(CONFIG.evaluate, pairs=4)
    table = evaluate.offline(folder, config, prepare.Prepared(folder))
    rows = {row["model"]: row for row in table["rows"]}
    assert rows["SFT student"]["nll_per_token"] > 0
    assert math.isnan(rows["SFT student"]["reverse_kl"])
    assert "reverse_kl" not in {c["metric"] for c in table["comparisons"]}


def test_models_of_other_tokenizers_are_refused_before_anything_runs(run, tmp_path):
    other = tmp_path / "other"
    train_tokenizer(["a few other words"], 300).save(other)
    mixed = replace(
        CONFIG,
        pretrain_teacher=None,
        pretrain_student=None,
        sft_teacher=replace(CONFIG.sft_teacher, init=run / "sft-teacher" / "model"),
        sft_student=replace(CONFIG.sft_student, init=other),
    )
    with pytest.raises(ValueError, match="tokenizers of teacher and student differ"):
        pipeline.main(tmp_path / "new", mixed)
    assert not (tmp_path / "new").exists()


def test_a_prompt_is_kept_for_the_resumed_stage(run, tmp_path):
    """A chat template may write the date: what the stage began with goes on."""
    chat, folder = tmp_path / "chat", tmp_path / "run"
    shutil.copytree(run / "pretrain-student" / "model", chat)
    shutil.copytree(run / "data", folder / "data")
    longer = replace(CONFIG.prepare, lengths=Lengths(source=128, target=16))
    runs.write_json(folder / "data" / "config.json", longer)
    (chat / "prompt.json").unlink(missing_ok=True)
    template = "{{ messages[-1]['content'] }} today{{ '\\n' }}"
    settings = json.loads((chat / "tokenizer_config.json").read_text(encoding="utf-8"))
    for path in chat.glob("chat_template*"):
        path.unlink()

    def write(text):
        with_template = json.dumps(settings | {"chat_template": text})
        (chat / "tokenizer_config.json").write_text(with_template, encoding="utf-8")

    write(template)
    config = replace(CONFIG.sft_student, init=chat, validation_pairs=4)
    begun = replace(config, optimizer=replace(config.optimizer, num_steps=1))
    sft.main(folder, begun)
    prompt = PromptTemplate.load(folder / "sft-student")
    assert prompt is not None
    assert prompt.kind == "chat"
    assert prompt.parts[-1] == " today\n"
    # Another day; the same stage was interrupted.
    write(template.replace("today", "tomorrow"))
    (folder / "sft-student" / "done").unlink()
    sft.main(folder, begun)
    assert PromptTemplate.load(folder / "sft-student") == prompt
    assert Tokenizer.load(folder / "sft-student" / "model").prompt == prompt


def test_again_nothing_is_done_twice(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")}
    assert len(before) == 7
    pipeline.main(run, CONFIG)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_rewrites_of_a_resumed_run_appear_once(tmp_path):
    path = tmp_path / "rewrites.jsonl"
    for step in (0, 25, 50, 25):  # killed after 50, resumed from before 25
        online_dpo.keep_rewrites(path, step, {"q": ["ré", float(step)]})
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 25]


def test_the_guard_is_not_who_is_pleased(run):
    config = replace(CONFIG.online.system, guard_seed=CONFIG.online.system.pool_seed)
    online = replace(CONFIG.online, name="unguarded", system=config)
    with pytest.raises(ValueError, match="pool_seed and guard_seed are both 0"):
        online_dpo.main(run, online)
    assert not (run / "unguarded").exists()


def test_a_missing_source_is_refused_and_leaves_nothing(tmp_path):
    config = Prepare(source="esci", folder=tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        prepare.main(tmp_path / "run", config)
    assert not (tmp_path / "run" / "data").exists()


def table(folder: Path, rows: int = 40) -> Path:
    """A small shop's own tables: every product is what two queries are for."""
    folder.mkdir()
    queries = [f"{word} {i}" for i in range(rows) for word in ("sofa", "divan")]
    products = [f"p{i}{letter}" for i in range(rows) for letter in "ab"]
    judged = [
        f"{word} {i},p{i}{letter},E"
        for i in range(rows)
        for word in ("sofa", "divan")
        for letter in "ab"
    ]
    for name, lines in {
        "queries": ["query", *queries],
        "products": ["product_id,title", *(f"{p},title of {p}" for p in products)],
        "judgements": ["query,product_id,label", *judged],
    }.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_prepared_tables_may_move_but_not_change(tmp_path):
    run, folder = tmp_path / "run", table(tmp_path / "tables")
    config = Prepare(source="tables", folder=folder, vocab_size=300)
    prepare.main(run, config)
    before = (run / "data" / "pairs.json").stat().st_mtime_ns

    moved = tmp_path / "moved"
    folder.rename(moved)
    prepare.main(run, replace(config, folder=moved))  # the same tables elsewhere
    prepare.main(run, config)  # nothing there any more: nothing is needed
    assert (run / "data" / "pairs.json").stat().st_mtime_ns == before

    with pytest.raises(ValueError, match=r"vocab_size 300 -> 301.*another --run"):
        prepare.main(run, replace(config, folder=moved, vocab_size=301))
    with (moved / "queries.csv").open("a", encoding="utf-8") as file:
        file.write("another query\n")
    with pytest.raises(ValueError, match=r"queries\.csv differ.*Delete it"):
        prepare.main(run, replace(config, folder=moved))


def folded_tables(folder: Path) -> Path:
    """The same tables, of which ten queries were fully judged; one has two forms."""
    table(folder)
    whole = {f"sofa {i}" for i in range(10)}
    lines = (folder / "queries.csv").read_text().splitlines()[1:]
    rows = [f"{query},{str(query in whole).lower()}" for query in [*lines, "Sofa  3"]]
    text = "\n".join(["query,fully_judged", *rows]) + "\n"
    (folder / "queries.csv").write_text(text)
    with (folder / "judgements.csv").open("a") as file:
        file.write("Sofa  3,p3a,E\nSofa  3,p3b,E\n")
    return folder


def test_folds_of_fully_judged_queries(tmp_path):
    folder = folded_tables(tmp_path / "tables")
    tested = []
    for fold in range(5):
        config = Prepare(source="tables", folder=folder, vocab_size=300)
        folds = Folds(5, test=fold, validation=(fold + 1) % 5)
        prepare.main(tmp_path / str(fold), replace(config, folds=folds, titles=2))
        data = prepare.Prepared(tmp_path / str(fold))
        whole = data.fully_judged
        assert whole is not None
        paired = {q for rows in data.pairs.values() for pair in rows for q in pair}
        assert paired
        assert any(target.startswith("title") for _, target in data.pairs["train"])
        assert not paired & {*whole, "Sofa  3"}  # in no form
        assert not {*data.corpus} & {*whole, "Sofa  3"}
        assert data.split["Sofa  3"] == data.split["sofa 3"]
        by_split = Counter(data.split[query] for query in whole)
        assert by_split == {"train": 6, "test": 2, "validation": 2}
        tested += [query for query in whole if data.split[query] == "test"]
    assert sorted(tested) == sorted(whole)


@pytest.mark.parametrize(
    ("folds", "told"),
    [
        (Folds(5, test=1, validation=1), "two different folds of 0 to 4"),
        (Folds(2, test=0, validation=2), "two different folds of 0 to 1"),
        (Folds(11), "11 folds of 10 queries"),
    ],
)
def test_folds_that_cannot_be(tmp_path, folds, told):
    folder = folded_tables(tmp_path / "tables")
    config = Prepare(source="tables", folder=folder, vocab_size=300, folds=folds)
    with pytest.raises(ValueError, match=told):
        prepare.main(tmp_path / "run", config)
    config = replace(config, folder=table(tmp_path / "whole"), folds=Folds(5))
    with pytest.raises(ValueError, match="every query of this collection was fully"):
        prepare.main(tmp_path / "run", config)


def test_titles_are_targets_too(tmp_path):
    folder = table(tmp_path / "tables")
    config = Prepare(source="tables", folder=folder, vocab_size=300)
    prepare.main(tmp_path / "without", config)
    prepare.main(tmp_path / "with", replace(config, titles=1, named=2))
    without, more = (
        prepare.Prepared(tmp_path / name).pairs for name in ("without", "with")
    )
    assert more["test"] == without["test"]
    count = len(without["train"])
    assert more["train"][:count] == without["train"]
    train = {query for query, _ in without["train"]}
    titled = dict(more["train"][count : count + len(train)])
    assert titled.keys() == train
    for query, title in titled.items():
        number = query.split()[1]
        assert title in {f"title of p{number}{letter}" for letter in "ab"}
    named = more["train"][count + len(train) :]
    assert len(named) == 2 * 80
    for words, title in named:
        assert set(words.split()) <= set(title.split())


def test_every_fold_is_served_as_the_others_taught(run, tmp_path, monkeypatch):
    folder, seen = tmp_path / "run", []
    shutil.copytree(run, folder)
    data = prepare.Prepared(folder)
    whole = data.searchable["test"] + data.searchable["validation"]
    file = folder / "data" / "queries.parquet"
    queries = pq.read_table(file)
    judged = pa.array([q in whole for q in queries["query"].to_pylist()])
    pq.write_table(queries.append_column("fully_judged", judged), file)

    def noted(search, harm, write, parts):
        seen.append(parts)
        return serving.served(search, harm, write, parts)

    monkeypatch.setattr(cross_validate, "served", noted)
    monkeypatch.setattr(pipeline, "train", lambda folder, config: folder)
    fields = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(Run)}
    asked = replace(CONFIG.evaluate, rewrites=2, encoder=folder / "relevance" / "model")
    config = cross_validate.Config(**(fields | {"evaluate": asked}))
    folds = replace(config.prepare, source="tables", folds=Folds(2))
    cross_validate.main(folder, replace(config, prepare=folds))

    assert [set(p.test) for p in seen] == [set(p.validation) for p in seen[::-1]]
    assert {q for parts in seen for q in parts.test} == set(whole)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["served"]["queries"] == len(whole)
    sizes = [part["queries"] for part in summary["served"]["fitted"]]
    assert sizes == [len(parts.test) for parts in seen]
    assert "reward" not in summary["served"]["metrics"]  # M1 has seen these queries
    assert "online" in summary  # the rest of the page stays
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "That was fitted 2 times" in page


def test_folds_need_a_reader_that_has_not_seen_them(tmp_path):
    config = cross_validate.CONFIGS["esci-small"]
    with pytest.raises(ValueError, match=r"--prepare\.folds\.count 5"):
        cross_validate.main(tmp_path, config)
    dealt = replace(config, prepare=replace(config.prepare, folds=Folds(5)))
    with pytest.raises(ValueError, match=r"--evaluate\.encoder"):
        cross_validate.main(tmp_path, dealt)


def test_several_shops_make_one_table(run, tmp_path, monkeypatch):
    folder, configs = tmp_path / "run", []
    shutil.copytree(run, folder)

    def copied(folder, config):
        configs.append(config)
        if not folder.exists():
            shutil.copytree(run, folder)

    monkeypatch.setattr(pipeline, "train", copied)
    fields = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(Run)}
    asked = replace(CONFIG.evaluate, rewrites=2)
    config = cross_validate.Config(**(fields | {"evaluate": asked}), seeds=2)
    cross_validate.main(folder, config)
    assert [c.prepare.seed for c in configs] == [0, 1]
    assert [c.online.seed for c in configs] == [0, 1]
    assert (folder / "seed-1" / "data").exists()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    once, twice = (
        json.loads((run / "summary.json").read_text(encoding="utf-8"))["served"],
        summary["served"],
    )
    assert twice["queries"] == 2 * once["queries"]
    assert len(twice["fitted"]) == 2


def test_a_given_tokenizer_is_taken_without_its_model(run, tmp_path):
    given = run / "sft-student" / "model"
    config = replace(CONFIG.prepare, tokenizer=given)
    prepare.main(tmp_path, config)
    names = {path.name for path in (tmp_path / "data" / "tokenizer").iterdir()}
    assert "tokenizer.json" in names
    assert names.isdisjoint({"model.safetensors", "config.json"})
    Tokenizer.load(given).check_same(
        Tokenizer.load(tmp_path / "data" / "tokenizer"), "given", "taken"
    )


def test_every_preset_of_a_stage_has_a_folder(run):
    """The stages that the docstring of `runs` lists are those that a run has."""
    folders = {path.name for path in run.iterdir() if path.is_dir()}
    assert folders == {
        *("data", "relevance", "pretrain-teacher", "pretrain-student"),
        *("sft-teacher", "sft-student", "distill", "online", "figures"),
    }
    for name in folders - {"data", "figures"}:
        assert (run / name / "model" / "model.safetensors").exists()
    for name in folders - {"figures"}:
        assert (run / name / "done").exists()
    assert set(PRESETS) == set(pipeline.CONFIGS)
    assert runs.read(run / "online", OnlineDPO) == CONFIG.online
