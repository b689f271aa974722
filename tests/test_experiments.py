"""The whole pipeline on a shop of a few products, and the run folder's rules."""

import json
from dataclasses import replace

import pytest

from experiments import online_dpo, pipeline, prepare
from experiments.layout import require, stage


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
