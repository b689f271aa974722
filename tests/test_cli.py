"""The command line as each user meets it: homes, paths, full disks, locales, ctrl-C."""

import contextlib
import dataclasses
import errno
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax.numpy as jnp
import pytest
import tiny

from experiments import cli, pipeline, prepare
from experiments.presets import PRESETS
from jaxqr.data.prompts import QUERY, PromptTemplate
from jaxqr.lm import LM
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.train.log import MetricWriter, read_metrics

ROOT = Path(__file__).parent.parent
SHOP = ("--products", "300", "--types", "3", "--intents", "20", "--vocab-size", "300")
PREPARES = {name: run.prepare for name, run in PRESETS.items()}


@pytest.fixture
def command(monkeypatch, capsys):
    """Types a command in this process; returns its exit code and its stderr."""
    monkeypatch.setattr(cli, "set_up", lambda: None)

    def typed(module, presets, *arguments, main=None):
        name = module.__name__.split(".")[-1]
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        code = 0
        try:
            cli.launch(main or module.main, presets, module.__doc__)
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return typed


def is_one_message(code, stderr):
    """What the user is told comes last, and no traceback is around it."""
    assert code == 2, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("error: ")
    return stderr.splitlines()[-1]


@contextlib.contextmanager
def no_file_above(size):
    """As a full disk: EFBIG instead of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def half_written(folder):
    marks = (".tmp", "-tmp", ".partial", ".saving")
    return [p.name for p in folder.rglob("*") if any(m in p.name for m in marks)]


# Paths


def with_paths(value, path):
    """Settings with every path, given or not, replaced by one."""
    changes = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            changes[field.name] = with_paths(inner, path)
        elif "Path" in str(field.type):
            changes[field.name] = path
    return dataclasses.replace(value, **changes)


@pytest.mark.parametrize("name", PRESETS)
def test_a_tilde_in_any_path_is_the_home(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = with_paths(pipeline.CONFIGS[name], Path("~/x"))
    assert str(given).count("'~/x'") >= 6
    expanded = cli._expanded(given)
    assert expanded == with_paths(given, tmp_path / "x")
    assert "~" not in str(expanded)


def test_a_run_in_the_home_is_whole(command, monkeypatch, tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    code, told = command(prepare, PREPARES, "quickstart", *SHOP, "--run=~/runs/x")
    assert code == 0, told
    assert (home / "runs/x/data/done").exists()
    assert list(here.iterdir()) == []
    table = ("quickstart", "--run", "r", "--source", "tables", "--folder=~/missing")
    assert str(home / "missing") in is_one_message(*command(prepare, PREPARES, *table))
    nobody = ("quickstart", *SHOP, "--run=~no-such-user/x")
    assert "home directory" in is_one_message(*command(prepare, PREPARES, *nobody))
    assert not (here / "~").exists()


@pytest.mark.parametrize(
    "home", [None, "/dev/null", "/dev/null/home", "/proc/1/fdinfo"]
)
def test_without_a_home_there_is_no_cache_and_no_error(home, monkeypatch):
    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", unknown)
    else:
        monkeypatch.setenv("HOME", home)
    assert cli._cache_folder() is None


def test_a_home_holds_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli._cache_folder() == tmp_path / ".cache" / "jaxqr"
    monkeypatch.setattr(cli, "CACHE_ROOM", 1 << 60)
    assert cli._cache_folder() is None


@pytest.mark.parametrize("what", ["missing", "file", "empty", "row", "cut", "none"])
def test_a_source_that_is_no_tables_is_named(command, tmp_path, what):
    source, run = tmp_path / "source", tmp_path / "run"
    if what == "file":
        source.write_text("query\n", encoding="utf-8")
    elif what != "missing":
        source.mkdir()
    if what in ("row", "cut"):
        (source / "queries.csv").write_text("query\nsofa\n", encoding="utf-8")
        products = "product_id,title\np1,a,b,c\n" if what == "row" else ""
        (source / "products.csv").write_text(products, encoding="utf-8")
        (source / "judgements.csv").write_text(
            "query,product_id,label\nsofa,p1,E\n", encoding="utf-8"
        )
    given = () if what == "none" else ("--folder", source)
    arguments = ("quickstart", "--run", run, "--source", "tables", *given)
    told = is_one_message(*command(prepare, PREPARES, *arguments))
    assert ("--folder" if what == "none" else str(source)) in told
    assert not (run / "data").exists()


def test_a_message_names_the_flag_that_was_typed(command, tmp_path):
    run = ("esci-small", "--run", tmp_path)
    told = is_one_message(*command(prepare, PREPARES, *run))
    assert "give it with --folder " in told
    told = is_one_message(*command(pipeline, pipeline.CONFIGS, *run))
    assert "give it with --prepare.folder " in told


def test_a_run_below_a_file_is_refused(command, tmp_path):
    (tmp_path / "file").touch()
    arguments = ("quickstart", *SHOP, "--run", tmp_path / "file" / "run")
    assert "file" in is_one_message(*command(prepare, PREPARES, *arguments))


def test_an_unknown_preset_is_answered_with_the_known_ones(command):
    code, told = command(prepare, PREPARES, "quickstrat")
    assert code == 2
    assert "Traceback" not in told
    assert "esci-small" in told


# Errors and ctrl-C


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("seed is wrong"), "error: seed is wrong ("),
        (RuntimeError(), "error: RuntimeError() ("),
        (FileNotFoundError(2, "No such file", "x"), "'x'"),
        (OSError(errno.ENOSPC, "No space", "/r/x"), "no room on the disk for /r/x"),
        (OSError(errno.EDQUOT, "Quota"), "make room and run the same command again"),
        # As safetensors and the tokenizers library raise it.
        (Exception("I/O error: No space left (os error 28)"), "no room on the disk"),
        (Exception("Permission denied (os error 13)"), "Permission denied"),
    ],
)
def test_errors_end_as_one_message(command, monkeypatch, tmp_path, error, told):
    monkeypatch.delenv("JAXQR_TRACEBACK", raising=False)

    def fails(run, config):
        raise error

    arguments = ("quickstart", "--run", tmp_path)
    assert told in is_one_message(*command(prepare, PREPARES, *arguments, main=fails))
    monkeypatch.setenv("JAXQR_TRACEBACK", "1")
    with pytest.raises(type(error)):
        command(prepare, PREPARES, *arguments, main=fails)


def test_a_fault_of_the_code_is_shown_whole(command, tmp_path):
    with pytest.raises(ZeroDivisionError):
        command(
            prepare, PREPARES, "quickstart", "--run", tmp_path, main=lambda *_: 1 / 0
        )


def test_ctrl_c_is_answered_with_what_to_do(command, tmp_path):
    def stopped(run, config):
        raise KeyboardInterrupt("sft: saved after step 3")

    arguments = ("quickstart", "--run", tmp_path)
    code, told = command(prepare, PREPARES, *arguments, main=stopped)
    assert code == 130
    assert told.splitlines()[-1] == (
        "Interrupted. sft: saved after step 3. Run the same command again to go on."
    )


# `python -m`, but for this: a background job of a shell ignores SIGINT, and what it
# starts inherits that.
MODULE = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def started(*arguments, **environment):
    """A command in a process of its own, without a terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", MODULE, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_an_interrupted_command_goes_on(command, tmp_path):
    sizes = ("--products", "1500", "--intents", "300")
    shop = ("quickstart", *sizes, "--run", tmp_path)
    process = started("experiments.prepare", *shop)
    while not (tmp_path / "data" / "config.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert told.endswith("Interrupted. Run the same command again to go on.\n")
    assert half_written(tmp_path) == []
    assert command(prepare, PREPARES, *shop)[0] == 0
    assert (tmp_path / "data" / "done").exists()


# Full disks


@pytest.mark.parametrize("size", [0, 300, 3000, 10_000, 30_000])
def test_prepare_goes_on_when_there_is_room_again(command, tmp_path, size):
    shop = ("quickstart", *SHOP, "--run")
    with no_file_above(size):
        code, told = command(prepare, PREPARES, *shop, tmp_path / "run")
    assert "no room on the disk" in is_one_message(code, told)
    assert half_written(tmp_path) == []
    for name in ("run", "other"):  # one always had room
        assert command(prepare, PREPARES, *shop, tmp_path / name)[0] == 0
    assert files(tmp_path / "run") == files(tmp_path / "other")


def test_a_checkpoint_that_has_no_room_leaves_the_one_before(tmp_path):
    state = tiny.start(tiny.ADAM)
    size = sum(x.nbytes for x in tiny.jax.tree.leaves(state))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"x": 1})
    before = files(tmp_path)
    later = state._replace(step=jnp.int32(2))
    for limit in (100, size // 2, size):
        with no_file_above(limit), pytest.raises(OSError, match="File too") as raised:
            checkpoints.save(2, later, {"x": 2})
        assert raised.value.errno == errno.EFBIG
        assert raised.value.filename == str(tmp_path / "2")
    assert files(tmp_path) == before
    restored = checkpoints.restore(state)
    assert restored
    assert restored[1] == {"x": 1}
    checkpoints.save(2, later, {"x": 2})
    restored = checkpoints.restore(state)
    assert restored
    assert restored[1] == {"x": 2}
    checkpoints.close()


def test_a_full_disk_is_seen_before_a_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="No space left") as raised:
        checkpoints.save(1, tiny.start(), {})
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    checkpoints.close()


@pytest.mark.parametrize("limit", [200, 5000, 50_000])
def test_a_model_is_written_whole_or_not_at_all(tmp_path, limit):
    lm = LM(tiny.GPT2, tiny.params(), tiny.tokenizer())
    lm.save(tmp_path / "whole")
    other = LM(tiny.GPT2, tiny.params(seed=1), tiny.tokenizer())
    other.save(tmp_path / "model")
    with no_file_above(limit), pytest.raises(Exception, match=r"os error 27|too large"):
        lm.save(tmp_path / "model")
    assert half_written(tmp_path) == []
    assert LM.load(tmp_path / "model").tokenizer.vocab_size == tiny.VOCAB
    assert files(tmp_path / "model").keys() == files(tmp_path / "whole").keys()
    lm.save(tmp_path / "model")
    assert files(tmp_path / "model") == files(tmp_path / "whole")


def test_a_prompt_is_written_whole_or_not_at_all(tmp_path):
    prompt = PromptTemplate("prefix", ("say: ", QUERY))
    prompt.save(tmp_path)
    with no_file_above(20), pytest.raises(OSError, match="too large"):
        PromptTemplate("prefix", ("something else: ", QUERY)).save(tmp_path)
    assert PromptTemplate.load(tmp_path) == prompt
    assert half_written(tmp_path) == []


@pytest.mark.parametrize("limit", [10, 100, 3000])
def test_metrics_that_have_no_room_say_so(tmp_path, limit):
    """In this thread, of both files; what was written can be gone on with."""

    def write():
        with contextlib.closing(MetricWriter(tmp_path, 0)) as writer:
            for step in range(1, 100):
                writer.write(step, "train", {"loss": 1.5, "tokens": 2.0})

    with no_file_above(limit), pytest.raises(OSError, match="too large"):
        write()
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    MetricWriter(tmp_path, len(steps) // 2).close()
    after = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert after == steps[: len(steps) // 2]


# The compilation cache


def test_cut_entries_of_the_cache_are_forgotten(monkeypatch, tmp_path):
    """JAX neither reads nor replaces them: it would warn for ever."""
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *args: shown.append(args[0]))
    cli._forget_cut_entries(tmp_path)
    for name in ("jit_step-1-cache", "jit_step-2-cache", "jit_steps-1-cache"):
        (tmp_path / name).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "_showwarnmsg_impl", warnings._showwarnmsg_impl)
        for verb in ("reading", "writing"):
            warnings.showwarning(
                UserWarning(
                    f"Error {verb} persistent compilation cache entry for 'jit_step': x"
                ),
                UserWarning,
                "compiler.py",
                1,
            )
        warnings.showwarning(UserWarning("another"), UserWarning, "x.py", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["jit_steps-1-cache"]
    assert [str(message) for message in shown] == ["another"]


COMPILE = """
import jax
from experiments.cli import set_up
set_up()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64))))
"""


def test_jax_warns_of_cut_entries_as_expected(tmp_path):
    """Its words, and its names of entries: twice a process over a cut cache."""
    entries = {}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE],
            cwd=ROOT,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("262144.0\n", "")
        for path in tmp_path.glob("*-cache"):
            if path.name in entries:  # it was replaced
                assert path.stat().st_size == entries[path.name]
            entries[path.name] = path.stat().st_size
            path.write_bytes(path.read_bytes()[:100])
    assert len(entries) >= 1


# Locales


def test_a_locale_without_umlauts(tmp_path):
    """Tables in UTF-8 are read and written as such; a path is refused by name."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    tables = tmp_path / "tables"
    tables.mkdir()
    shop = range(40)
    words = ("Kühlschrank", "冷蔵庫")
    queries = [f"{word} {i}" for i in shop for word in words]
    judged = [
        f"{word} {i},p{i}{letter},E" for i in shop for word in words for letter in "ab"
    ]
    products = [f"p{i}{letter},Gerät “{i}”" for i in shop for letter in "ab"]
    for name, lines in {
        "queries": ["query", *queries],
        "products": ["product_id,title", *products],
        "judgements": ["query,product_id,label", *judged],
    }.items():
        (tables / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    options = ("--source", "tables", "--folder", tables, "--vocab-size", "300")
    command = ("experiments.prepare", "quickstart", *options, "--run")
    processes = [
        started(*command, tmp_path / name, **plain) for name in ("run", "Läufe")
    ]
    (_, fine), (_, refused) = (process.communicate() for process in processes)
    assert [process.returncode for process in processes] == [0, 2], fine + refused
    assert prepare.Prepared(tmp_path / "run").split.keys() == set(queries)
    assert "PYTHONUTF8=1" in refused.splitlines()[-1]
    assert "Traceback" not in refused
    assert not (tmp_path / "Läufe").exists()
