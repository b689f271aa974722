"""Every preset is a run that can be: its settings agree with one another."""

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments import cli
from experiments.adversarial.presets import PRESETS as ADVERSARIAL
from experiments.pipeline import CONFIGS, TEACHERS
from experiments.presets import PRESETS
from jaxqr import models

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *(ROOT / "tpu").glob("*.md"), *ROOT.glob("tpu/*.sh")]
MODULES = sorted((ROOT / "experiments").rglob("*.py"))

every_preset = pytest.mark.parametrize("name", PRESETS)


def trained(run):
    """The stages that train, by name."""
    stages = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    return {n: s for n, s in stages.items() if hasattr(s, "optimizer")}


def test_presets_are_the_files():
    files = {path.stem for path in (ROOT / "experiments" / "presets").glob("*.py")}
    assert {name.replace("-", "_") for name in PRESETS} == files - {"__init__"}
    assert set(CONFIGS) == set(PRESETS)


@every_preset
def test_each_model_has_one_beginning(name):
    """Pretrained here, or loaded; teacher and student are of one family."""
    run = PRESETS[name]
    for role in ("teacher", "student"):
        pretrain = getattr(run, f"pretrain_{role}")
        sft = getattr(run, f"sft_{role}")
        assert (pretrain is None) == (sft.init is not None)
        assert sft.role == role
        assert pretrain is None or pretrain.role == role
    if run.pretrain_teacher:
        teacher, student = (
            models.preset(stage.model, vocab_size=run.prepare.vocab_size)
            for stage in (run.pretrain_teacher, run.pretrain_student)
        )
        assert type(teacher) is type(student)
    else:
        teacher, student = run.sft_teacher.init.name, run.sft_student.init.name
        assert teacher.split("-")[0] == student.split("-")[0]


@every_preset
def test_texts_fit_the_models(name):
    run = PRESETS[name]
    lengths = run.prepare.lengths
    # A prompt is at least BOS, a few words and a newline; a rewrite a few words, EOS.
    assert min(lengths.source, lengths.target, lengths.corpus) >= 16
    longest = max(lengths.source + lengths.target, 2 * lengths.corpus)
    vocab = run.prepare.vocab_size
    for stage in filter(None, (run.pretrain_teacher, run.pretrain_student)):
        config = models.preset(stage.model, vocab_size=vocab)
        assert getattr(config, "n_positions", longest) >= longest
        assert getattr(config, "max_position_embeddings", longest) >= longest
    if run.relevance.init is None:
        m1 = models.preset(run.relevance.model, vocab_size=vocab)
        assert m1.max_position_embeddings >= run.relevance.max_tokens
    assert run.relevance.max_tokens >= lengths.source + lengths.corpus // 2


@every_preset
def test_steps_are_whole(name):
    """Evaluations and checkpoints fall into the run; collections make whole batches."""
    run = PRESETS[name]
    assert set(trained(run)) >= {"relevance", "sft_teacher", "distill", "online"}
    for stage in trained(run).values():
        how = stage.optimizer
        assert how.num_steps >= 100
        assert 0 < how.learning_rate <= 0.01
        for every in (how.evaluate_every, how.checkpoint_every):
            assert every == 0 or how.num_steps % every == 0
        assert how.batch_size % stage.compute.fsdp == 0
    assert run.distill.rollouts % run.distill.optimizer.batch_size == 0


@every_preset
def test_stages_name_each_other(name):
    run = PRESETS[name]
    stages = {"sft-student", run.distill.name}
    assert run.online.start in stages
    assert run.evaluate.online == run.online.name
    assert run.online.name not in stages
    assert run.online.candidates >= 2  # a best one and a worst one
    system = run.online.system
    assert 1 <= system.k <= 100
    assert system.pool_seed != system.guard_seed
    assert (run.prepare.source == "shop") == (name in ("quickstart", "shop-logs"))


def test_every_student_has_a_larger_sibling():
    for student, teacher in TEACHERS.items():
        small, large = models.preset(student), models.preset(teacher)
        assert type(small) is type(large)
        width = {"hidden_size", "n_embd", "d_model"}
        (name,) = width & {f.name for f in dataclasses.fields(small)}
        assert getattr(large, name) > getattr(small, name)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_presets_agree_with_themselves(name):
    run = ADVERSARIAL[name]
    lengths = run.data.lengths
    # Generator and classifier begin with one pretrained model, or each with its own.
    both = run.generator.init is not None, run.classifier.init is not None
    assert both == ((run.pretrain is None),) * 2
    for stage in filter(None, (run.pretrain, run.generator, run.ppo)):
        how = stage.optimizer
        for every in (how.evaluate_every, how.checkpoint_every):
            assert every == 0 or how.num_steps % every == 0
    ppo = run.ppo
    minibatches = ppo.epochs * ppo.rollouts / ppo.optimizer.batch_size
    assert minibatches.is_integer()
    assert ppo.optimizer.num_steps % minibatches == 0  # whole rollouts
    assert run.classifier.max_tokens >= lengths.source
    assert (run.data.source == "shop") == (name == "shop")
    assert run.cycles >= 1
    if name == "paper":
        assert (ppo.alpha, ppo.kl_coef, ppo.epochs, ppo.clip) == (0.9, 0.85, 2, 0.2)
        assert (run.cycles, run.classifier.epochs) == (4, 5)


def commands(text):
    """The `python -m experiments.STAGE ...` lines of a document, as arguments."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(r"python -m experiments\.([^`#\n]+)", joined):
        stage, *arguments = shlex.split(line.rstrip(" .,;:)"))
        yield stage, arguments


def text_of(path):
    """A document, or a module's docstring."""
    text = path.read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or "" if path.suffix == ".py" else text


COMMANDS = sorted(
    {
        (path.relative_to(ROOT).as_posix(), stage, *arguments)
        for path in [*DOCUMENTS, *MODULES]
        for stage, arguments in commands(text_of(path))
        # A message's placeholders stand for something.
        if not any(
            re.search(r"PRESET|STAGE|NAME|[*${\[]", a) for a in (stage, *arguments)
        )
    }
)


def test_commands_are_found():
    stages = {stage for _, stage, *_ in COMMANDS}
    assert stages >= {"prepare", "relevance", "sft", "distill", "pipeline"}
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_documented_commands_parse(command, monkeypatch):
    """They name presets and options that there are; nothing is run."""
    _, stage, *arguments = command
    module = importlib.import_module(f"experiments.{stage}")
    if hasattr(module, "__path__"):  # a package
        module = importlib.import_module(f"experiments.{stage}.__main__")
    source = Path(module.__file__).read_text(encoding="utf-8")
    presets = re.search(r"launch\(main, (.+?), [\w.]*__doc__", source)[1]
    given = eval(presets, vars(module))
    monkeypatch.setattr("sys.argv", [f"{stage}.py", *arguments])
    if "--help" in arguments:
        with pytest.raises(SystemExit) as done:
            cli.parse(given, module.__doc__)
        assert done.value.code == 0
    else:
        parsed = cli.parse(given, module.__doc__)
        assert type(parsed.config) in {type(config) for config in given.values()}


def has(config, names):
    """Whether there is such a setting."""
    for name in names:
        if not hasattr(config, name):
            return False
        config = getattr(config, name)
    return True


def test_documents_name_options_that_exist():
    """`--STAGE.SETTING` of a pipeline; `--sft-*.init` stands for two."""
    texts = map(text_of, [*DOCUMENTS, *MODULES])
    options = {o for t in texts for o in re.findall(r"--([a-z-]+(?:\.[a-z-]+)+)", t)}
    assert len(options) >= 5
    for option in options:
        if option.startswith("optimizer."):  # of a stage by itself
            option = f"distill.{option}"
        if option.startswith("llm."):
            option = f"prepare.{option}"
        if option.startswith("system."):
            option = f"online.{option}"
        option = option.replace(".engine.", ".elastic.")  # its name on a command line
        names = option.replace("-", "_").split(".")
        whole = (CONFIGS["quickstart"], ADVERSARIAL["shop"])
        assert any(has(config, names) for config in whole), option


def test_documents_name_presets_that_exist():
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*(?:accelerator|core)", text, re.M)
        assert set(rows) <= {*PRESETS, *ADVERSARIAL}, path
        if path.name == "README.md" and path.parent == ROOT:
            assert set(rows) == {*PRESETS, *ADVERSARIAL}
