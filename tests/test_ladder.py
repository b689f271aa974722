"""What may import what: the ladder of the modules, read off their source.

A module imports its own rung only inside its own package, or as listed in SIDEWAYS,
and nothing above itself. Imports inside functions count as well, since a lazy import
is a dependency too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

RUNGS = (
    {"types", "records", "losses", "vocab", "metrics", "sharding", "retry"},
    {"models", "data", "retrieval"},
    {"decode", "rewards"},
    {"lm"},
    {"train"},
    {"evaluation", "report"},
)
# Those of the experiments, from the settings up to the shortest name of the main job.
EXPERIMENTS = (
    {"config"},
    {"presets"},
    {"cli", "runs"},
    {"sources"},
    {"servers"},
    {"prepare"},
    {"judges"},
    {"system"},
    {"training", "known"},
    {"search"},
    {"serving"},
    {
        *("relevance", "pretrain", "sft", "distill", "online_dpo", "reward_server"),
        *("evaluate", "report", "visits"),
    },
    {"pipeline", "adversarial"},
    {"quickstart", "ablate", "cross_validate"},
)
# What a module needs of its own rung: the axis alphabet, and the online stage's
# greedy rewrites, which the table measures as the curve does.
SIDEWAYS = {
    ("vocab", "types"),
    ("sharding", "types"),
    ("evaluate", "online_dpo"),
}
# What the rungs would allow, but the design does not.
NARROW = {
    "losses": set(),
    "decode": {"types", "vocab"},
    "lm": {"types", "vocab", "sharding", "models", "data", "decode"},
    # Rewards and retrievers come as arguments.
    "train": {
        *("types", "records", "losses", "vocab", "sharding"),
        *("models", "data", "decode", "lm"),
    },
    # What it evaluates is a model, whoever trained it.
    "evaluation": {
        *("records", "metrics", "data", "retrieval"),
        *("decode", "rewards", "lm"),
    },
    "report": set(),  # it reads a run's files
}
# Third-party libraries with one home. `grain` shuffles in the pipeline.
HOMES = {
    "cattrs": "experiments.runs",
    "elasticsearch": "jaxqr.retrieval.elastic",
    "flax": "jaxqr.models",
    "grain": "jaxqr.data.pipeline",
    "httpx": "jaxqr.rewards.client",
    "jinja2": "jaxqr.report",
    "matplotlib": "jaxqr.report",
    "openai": "jaxqr.rewards.llm",
    "optax": "jaxqr.train",
    "orbax": "jaxqr.train.checkpoint",
    "prometheus_client": "jaxqr.rewards.service",
    "sklearn": ("jaxqr.metrics", "jaxqr.retrieval.selection"),
    "starlette": "jaxqr.rewards.service",
    "symspellpy": "jaxqr.retrieval.spelling",
    "tantivy": "jaxqr.retrieval.embedded",
    "tensorboardX": "jaxqr.train.log",
    "tensorflow": "nowhere",
    "torch": "nowhere",
    "tyro": "experiments",
}
# Late, because importing them takes seconds or says something.
LAZY = {"matplotlib", "orbax", "sklearn", "tokenizers", "transformers"}
# Where jit is entered: steps, generation, classes and token statistics, fresh
# parameters and states, and the fingerprint of what a checkpoint leaves out.
JIT = {
    "jaxqr.decode.beams",
    "jaxqr.decode.generation",
    "jaxqr.lm",
    "jaxqr.models.convert",
    "jaxqr.models.layers",
    "jaxqr.rewards.classifier",
    "jaxqr.rewards.local",
    "jaxqr.rewards.similarity",
    "jaxqr.train.checkpoint",
    "jaxqr.train.rollouts.draw",
    "jaxqr.train.rollouts.finish",
    "jaxqr.train.state",
    "jaxqr.train.steps.update",
}
WITHOUT_JAX = (
    "jaxqr.rewards",
    "jaxqr.retrieval",
    "jaxqr.metrics",
    "jaxqr.records",
    "jaxqr.retry",
    "jaxqr.report",
    "experiments.cli",
    "experiments.config",
    "experiments.presets",
    "experiments.runs",
)
# M1 and the local judge need jax and a model; `jaxqr.rewards` must not load them.
M1 = {
    *("jaxqr.rewards.classifier", "jaxqr.rewards.relevance"),
    *("jaxqr.rewards.local", "jaxqr.rewards.similarity"),
}
VAGUE = {"utils", "util", "misc", "helpers", "base", "manager", "common"}


class Import(NamedTuple):
    """`name` is imported in `module`; `late` inside a function."""

    module: str
    name: str
    late: bool
    line: int


def modules(package: str) -> dict[str, ast.Module]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


JAXQR = modules("jaxqr")
STAGES = modules("experiments")
KNOWN = JAXQR.keys() | STAGES.keys() | modules("benchmarks").keys()


def imports(module: str, tree: ast.AST, late: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from jaxqr import losses` imports jaxqr.losses.
            names = [n if n in KNOWN else str(node.module) for n in whole]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield from (Import(module, name, late, node.lineno) for name in names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(module, node, late or inside)


IMPORTS = [i for name, tree in (JAXQR | STAGES).items() for i in imports(name, tree)]


def part(module: str) -> str:
    """`jaxqr.train.loop` -> `train`; the package itself is ``."""
    return [*module.split("."), ""][1]


def within(module: str, home: str) -> bool:
    return module == home or module.startswith(home + ".")


def go_down(module: str, package: str, rungs: tuple[set[str], ...]) -> None:
    """Every import of the module's own package is of a lower rung."""
    rung = {name: number for number, names in enumerate(rungs) for name in names}
    mine = part(module)
    for found in (i for i in IMPORTS if i.module == module):
        if not within(found.name, package):
            continue
        other = part(found.name)
        where = f"{module}:{found.line} imports {found.name}"
        assert other, f"{where}: import the module itself"
        if other == mine:
            assert module != found.name, where
            continue
        assert rung[other] < rung[mine] or (mine, other) in SIDEWAYS, where
        if package == "jaxqr" and mine in NARROW:
            assert other in NARROW[mine], f"{where}: {mine} needs {NARROW[mine]} only"


def test_every_part_has_a_rung():
    assert {part(module) for module in JAXQR} - {""} <= set().union(*RUNGS)
    assert {part(module) for module in STAGES} - {""} == set().union(*EXPERIMENTS)
    assert {"jaxqr.losses", "jaxqr.train.loop", *M1} <= KNOWN
    assert len(IMPORTS) > 300


@pytest.mark.parametrize("module", [m for m in JAXQR if part(m)])
def test_imports_go_down(module):
    go_down(module, "jaxqr", RUNGS)


@pytest.mark.parametrize("module", [m for m in STAGES if part(m)])
def test_imports_of_experiments_go_down(module):
    go_down(module, "experiments", EXPERIMENTS)


def test_every_exception_is_needed():
    """An import that is gone takes its exception with it."""
    pairs = {(part(i.module), part(i.name)) for i in IMPORTS}
    assert pairs >= SIDEWAYS
    for name, allowed in NARROW.items():
        assert {other for mine, other in pairs if mine == name} >= allowed, name


def test_nothing_imports_the_experiments():
    above = ("experiments", "benchmarks", "tpu", "tests")
    found = [i for i in IMPORTS if i.name.split(".")[0] in above]
    assert [i for i in found if i.module in JAXQR] == []
    assert [i for i in found if not within(i.name, "experiments")] == []


def test_the_packages_import_nothing():
    assert [i for i in IMPORTS if i.module in ("jaxqr", "experiments")] == []


def test_libraries_stay_in_their_homes():
    strays = [
        i
        for i in IMPORTS
        if (homes := HOMES.get(i.name.split(".")[0]))
        and not any(
            within(i.module, home)
            for home in ([homes] if isinstance(homes, str) else homes)
        )
    ]
    assert strays == []


def test_slow_libraries_are_imported_late():
    early = [i for i in IMPORTS if i.name.split(".")[0] in LAZY and not i.late]
    assert early == []


def test_host_code_does_not_name_jax():
    strays = [
        i
        for i in IMPORTS
        if i.name.split(".")[0] in {"jax", "jaxlib", "optax"}
        and any(within(i.module, home) for home in WITHOUT_JAX)
        and i.module not in M1
        # What a process begins with: it tells jax where compiled functions are kept.
        and (i.module, i.late) != ("experiments.cli", True)
    ]
    assert strays == []
    assert [i for i in IMPORTS if i.module == "jaxqr.rewards" and i.name in M1] == []


def test_losses_import_jax_only():
    names = {i.name.split(".")[0] for i in IMPORTS if i.module == "jaxqr.losses"}
    assert names == {"jax", "jaxtyping"}


def test_jit_is_entered_where_it_says():
    entered = set()
    for name, tree in JAXQR.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in {"jit", "pjit", "pmap"}:
                entered.add(name)
    assert entered == JIT


def test_no_module_has_a_vague_name():
    words = {word for name in KNOWN for word in name.split(".")}
    assert words & VAGUE == set()


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        (
            "import jaxqr.losses",
            {"flax", "grain", "orbax", "optax", "transformers", "sklearn", "scipy"},
        ),
        (
            f"import {', '.join(WITHOUT_JAX)}",
            {"jax", "jaxlib", "flax", "grain", "orbax", "transformers", *LAZY},
        ),
    ],
)
def test_a_fresh_interpreter_loads_little(statement, unwanted):
    code = f"{statement}\nimport sys\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "jaxqr" in loaded
    assert loaded & unwanted == set()
