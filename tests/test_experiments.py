"""The whole pipeline on a shop of a few products, and the run folder's rules."""

import json
import shutil
from dataclasses import replace

import pytest
from experiments.layout import require, stage

from experiments import (
    distill,
    evaluate,
    online_dpo,
    pipeline,
    prepare,
    sft,
    training,
    warmup,
)
from jaxqr.data.prompts import QUERY, PromptTemplate
from jaxqr.data.tokenize import train_tokenizer


def brief(config, **fields):
    """The stage with fewer steps, in smaller batches."""
    optimisation = replace(
        config.optimisation,
        num_steps=4,
        batch_size=8,
        evaluate_every=2,
        checkpoint_every=2,
    )
    return replace(config, optimisation=optimisation, **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    preset = pipeline.PRESETS["quickstart"]
    assert preset.warmup_teacher
    assert preset.warmup_student
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = replace(
        preset,
        run=folder,
        prepare=replace(
            preset.prepare, products=700, types=8, intents=30, vocab_size=512
        ),
        relevance=brief(preset.relevance, negatives=0.1),
        warmup_teacher=brief(preset.warmup_teacher, model="gpt2-tiny"),
        warmup_student=brief(preset.warmup_student),
        sft_teacher=brief(preset.sft_teacher, validation_pairs=16),
        sft_student=brief(preset.sft_student, validation_pairs=16),
        distill=brief(preset.distill, rollouts=16, inner_epochs=1, validation_pairs=16),
        online=brief(preset.online, candidates=2, evaluation_queries=8),
        evaluate=replace(preset.evaluate, pairs=32, queries=12),
    )
    pipeline.main(config)
    return config


def test_the_pipeline_ends_with_a_report(run):
    summary = json.loads((run.run / "summary.json").read_text())
    systems = [row["system"] for row in summary["online"]["rows"]]
    assert systems[0] == "copy the query"
    assert len(systems) == 3
    models = [row["model"] for row in summary["offline"]["rows"]]
    assert models[0] == "copy the query"
    assert {"SFT student", "distilled student", "SFT teacher"} <= set(models)
    assert [point["step"] for point in summary["curves"]] == [0, 2, 4]
    assert [point["step"] for point in summary["training"]] == [1, 2, 3, 4]
    assert {row["ranker"] for row in summary["relevance"]["rows"]} >= {"M1", "BM25"}
    assert "true_gain" in summary["online"]["metrics"]
    page = (run.run / "report.html").read_text()
    assert all(example["query"] in page for example in summary["rewrites"][:1])


def test_another_family_passes_through_the_stages(run):
    """Its student learns by adapters; its teacher is the same, which compiles less."""
    folder = run.run.parent / "another"
    for done in ("data", "relevance"):
        shutil.copytree(run.run / done, folder / done)
    assert run.warmup_student
    adapters = replace(run.sft_student.optimisation, lora_rank=4)
    warmup.main(replace(run.warmup_student, run=folder, model="t5-tiny"))
    sft.main(replace(run.sft_student, run=folder, optimisation=adapters))
    shutil.copytree(folder / "sft-student", folder / "sft-teacher")
    distill.main(replace(run.distill, run=folder))
    online_dpo.main(replace(run.online, run=folder))
    for stage_folder in ("warmup-student", "sft-student", "distill", "online"):
        model, params, tokenizer, _ = training.load_stage(folder / stage_folder)
        assert model.encoder_decoder
        assert params.keys() == {"params"}
        assert tokenizer.prompt == PromptTemplate("prefix", (QUERY,))


def test_a_model_has_a_run_of_its_own(monkeypatch):
    """`--model` alone does not meet a run of another model."""
    started = []
    monkeypatch.setattr(prepare, "main", lambda config: started.append(config.run))
    monkeypatch.setattr(pipeline, "_beside", lambda config: 1 / 0)
    preset = pipeline.PRESETS["quickstart"]
    for model in (None, "llama-tiny"):
        with pytest.raises(ZeroDivisionError):
            pipeline.main(replace(preset, model=model))
    assert list(map(str, started)) == ["runs/quickstart", "runs/quickstart-llama-tiny"]
    with pytest.raises(ValueError, match=r"has no stage for: give --sft-teacher\.init"):
        pipeline.main(replace(pipeline.PRESETS["paper-t5"], model="t5-tiny"))


def test_models_of_other_tokenizers_do_not_distil(run, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(run.run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.rmtree(folder / "distill")
    other = train_tokenizer(["a few other words"], 300)
    other.save(folder / "sft-teacher" / "model")
    settings = json.loads((folder / "sft-teacher/model/config.json").read_text())
    with pytest.raises(ValueError, match="tokenizers of teacher and student differ"):
        distill.main(replace(run.distill, run=folder))
    # Nor are they compared, which needs one vocabulary; the rest is.
    table = evaluate.offline(
        replace(run.evaluate, run=folder, pairs=8), prepare.load(folder)
    )
    rows = {row["model"]: row for row in table["rows"]}
    assert rows["SFT student"]["nll_per_token"] > 0
    assert rows["SFT student"]["reverse_kl"] is None
    assert "reverse_kl" not in {c["metric"] for c in table["comparisons"]}
    assert settings["vocab_size"] == 512  # more than the 300 that the tokenizer has


def test_again_nothing_is_done_twice(run):
    before = {
        path: path.stat().st_mtime_ns for path in run.run.rglob("model.safetensors")
    }
    assert len(before) == 7
    pipeline.main(run)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_one_process_at_a_time(run):
    config = replace(run.prepare, run=run.run.parent / "locked")
    folder = config.run / "data"
    with stage(folder, config), pytest.raises(ValueError, match="another process"):
        prepare.main(config)


def test_rewrites_of_a_resumed_run_stand_once(tmp_path):
    path = tmp_path / "rewrites.jsonl"
    for step in (0, 25, 50, 25):  # killed after 50, resumed from before 25
        online_dpo.keep_rewrites(path, step, {"q": ["r", float(step)]})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 25]


def test_another_configuration_is_refused(run):
    with pytest.raises(ValueError, match=r"k 2 -> 3.*choose another --run"):
        prepare.main(replace(run.prepare, run=run.run, k=3))


def test_a_stage_that_fails_at_once_leaves_nothing(tmp_path):
    config = prepare.Config(run=tmp_path, source="esci", folder=tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        prepare.main(config)
    assert not (tmp_path / "data").exists()


def test_an_interrupted_stage_is_not_done(tmp_path):
    folder = tmp_path / "stage"
    with pytest.raises(KeyboardInterrupt), stage(folder, {"a": 1}):
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError, match="run `the command` first"):
        require(folder, "the command")
    with stage(folder, {"a": 1}) as work:
        assert work
    with stage(folder, {"a": 1}) as work:
        assert not work
