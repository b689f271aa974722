"""The run folder: begun once, gone on with, read by class, one process at a time."""

import dataclasses
import json

import pytest

from experiments import runs
from experiments.config import (
    ComputeConfig,
    Distill,
    Lengths,
    LoraConfig,
    OptimizerConfig,
    Prepare,
)
from experiments.presets import PRESETS

CONFIG = Distill(OptimizerConfig(10, 4, 1e-3), lora=LoraConfig(rank=4))
STAGES = [
    (name, field.name, getattr(run, field.name))
    for name, run in PRESETS.items()
    for field in dataclasses.fields(run)
    if getattr(run, field.name) is not None
]


def change(folder, /, **fields):
    """Another text in config.json; None takes a field out."""
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name, value in fields.items():
        inner, key = settings, name
        while "__" in key:
            outer, key = key.split("__", 1)
            inner = inner[outer]
        inner[key] = value
        if value is ...:
            del inner[key]
    path.write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """A stage that was begun."""
    folder = tmp_path / "stage"
    (folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), runs.stage(folder, CONFIG):
        raise KeyboardInterrupt
    return folder


@pytest.mark.parametrize(("preset", "stage", "config"), STAGES)
def test_settings_come_back_as_they_were(tmp_path, preset, stage, config):
    runs.write_json(tmp_path / "config.json", config)
    assert runs.read(tmp_path, type(config)) == config


def test_every_kind_of_field_comes_back(tmp_path):
    """Paths, tuples, optional values and literals, set and unset, not ASCII too."""
    config = Prepare(
        source="tables",
        folder=tmp_path / "Tücher und Laken",
        labels=("E", "nützlich"),
        types=3,
        tokenizer=None,
        lengths=Lengths(source=7),
    )
    runs.write_json(tmp_path / "config.json", config)
    assert runs.read(tmp_path, Prepare) == config
    assert runs.read(tmp_path, Prepare).lengths.source == 7


def test_an_interrupted_stage_goes_on_and_a_finished_one_does_not(folder):
    with pytest.raises(FileNotFoundError, match="run `the command` first"):
        runs.require(folder, "the command")
    with runs.stage(folder, CONFIG) as work:
        assert work
    assert runs.require(folder, "the command") == folder
    with runs.stage(folder, CONFIG) as work:
        assert not work


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_fails_at_once_leaves_nothing(tmp_path, error):
    with pytest.raises(error), runs.stage(tmp_path / "stage", CONFIG):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused_by_name(folder):
    other = dataclasses.replace(CONFIG, seed=1, compute=ComputeConfig(fsdp=2))
    told = r"\(compute\.fsdp 1 -> 2, seed 0 -> 1\).*Delete it.*another --run"
    with pytest.raises(ValueError, match=told), runs.stage(folder, other):
        pytest.fail("it began")


@pytest.mark.parametrize(
    "missing", ["seed", "lora__alpha", "compute", "optimizer__schedule", "method"]
)
def test_a_folder_from_before_a_setting_existed_goes_on(folder, missing):
    change(folder, **{missing: ...})
    with runs.stage(folder, CONFIG) as work:
        assert work
    # What was not written down counts as its default, and only as that.
    change(folder, lora__rank=...)
    with pytest.raises(ValueError, match=r"lora\.rank 0 -> 4"):
        runs.stage(folder, CONFIG).__enter__()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"seed": "0"}, r"'0' is not a value of type int @ \.seed"),
        ({"seed": 0.5}, r"0\.5 is not a value of type int"),
        ({"seed": None}, "None is not a value of type int"),
        ({"seed": True}, "True is not a value of type int"),
        ({"alpha": "0.2"}, "'0.2' is not a value of type float"),
        ({"name": 3}, "3 is not a value of type str"),
        ({"method": "sft"}, r"sft.*minillm-paper.*@ \.method"),
        ({"compute": 3}, r"not an object with settings @ \.compute"),
        ({"compute__fsdp": "2"}, r"@ \.compute\.fsdp"),
        ({"optimizer__num_steps": ...}, r"it is missing @ \.optimizer\.num_steps"),
        ({"newer": 1}, "no setting is called newer"),
        ({"optimizer__newer": 1}, r"no setting is called newer @ \.optimizer"),
    ],
)
def test_settings_of_another_version_are_refused_in_one_line(folder, fields, told):
    change(folder, **fields)
    with pytest.raises(ValueError, match=told) as raised:
        runs.stage(folder, CONFIG).__enter__()
    message = str(raised.value)
    assert str(folder / "config.json") in message
    assert "choose another --run" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("field", "value"), [("official_split", "no"), ("labels", "ES"), ("folder", 3)]
)
def test_no_value_is_taken_for_another(tmp_path, field, value):
    """bool("no") is True, and tuple("ES") has two labels."""
    runs.write_json(tmp_path / "config.json", Prepare())
    change(tmp_path, **{field: value})
    with pytest.raises(ValueError, match=field):
        runs.read(tmp_path, Prepare)


def test_a_whole_number_is_a_float(folder):
    change(folder, corpus_weight=1)
    assert runs.read(folder, Distill) == CONFIG


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00"])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json does not hold the settings"):
        runs.read(tmp_path, Distill)
    (tmp_path / "pairs.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"pairs\.json is not whole.*stage again"):
        runs.read_json(tmp_path / "pairs.json")


def test_a_stage_that_was_not_begun_has_no_settings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        runs.read(tmp_path, Distill)


def test_one_process_at_a_time(folder):
    second = runs.stage(folder, CONFIG)
    with runs.stage(folder, CONFIG):
        with pytest.raises(ValueError, match="another process works in"):
            second.__enter__()
        assert (folder / "config.json").exists()  # the first one's
    with runs.stage(folder, CONFIG) as work:
        assert not work


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    runs.write_json(path, {"a": [1.5, float("nan")], "b": ("é", tmp_path)})
    assert runs.read_json(path) == {"a": [1.5, None], "b": ["é", str(tmp_path)]}
    with pytest.raises(UnicodeEncodeError):
        runs.write_text(path, "\ud800")
    assert runs.read_json(path)["a"] == [1.5, None]
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
