"""Who may import whom: the ladder of `jaxqr`'s modules, read off their source.

A module imports its own rung only inside its own package, or as listed in BESIDE, and
nothing above itself. Imports inside functions count as well, since a lazy import is
a dependency too.
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
    {"types", "records", "losses", "vocab", "metrics"},
    {"models", "data", "retrieval"},
    {"decode", "rewards"},
    {"train"},
    {"report", "serve"},
)
RUNG = {name: rung for rung, names in enumerate(RUNGS) for name in names}

# On rung 0, `vocab` needs the axis alphabet. Nothing else has a neighbour.
BESIDE = {("vocab", "types")}
# The relevance model needs jax and a model; `jaxqr.rewards` itself must not load it.
RELEVANCE = "jaxqr.rewards.relevance"
# What the rungs would allow, but the design does not.
NARROW = {
    "losses": set(),
    "decode": {"types", "vocab"},
    "train": {"types", "losses", "vocab", "data", "decode"},
    "report": {"report"},
}
# Third-party libraries with one home. `grain` shuffles in the pipeline.
HOMES = {
    "flax": "jaxqr.models",
    "orbax": "jaxqr.train.checkpoint",
    "grain": "jaxqr.data.pipeline",
    "elasticsearch": "jaxqr.retrieval.elastic",
    "tantivy": "jaxqr.retrieval.embedded",
    "optax": "jaxqr.train",
    "torch": "nowhere",
    "tensorflow": "nowhere",
}
# Late, because importing them takes seconds or says something.
LAZY = {"transformers", "tokenizers", "matplotlib"}
# Where jit is entered: steps, generation, M1, fresh parameters and states, and the
# fingerprint of what a checkpoint leaves out.
JIT = {
    "jaxqr.decode.beams",
    "jaxqr.decode.generation",
    "jaxqr.models.convert",
    "jaxqr.models.layers",
    "jaxqr.rewards.relevance",
    "jaxqr.train.checkpoint",
    "jaxqr.train.state",
    "jaxqr.train.steps",
}
WITHOUT_JAX = ("jaxqr.rewards", "jaxqr.retrieval", "jaxqr.metrics", "jaxqr.records")
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
        found[name] = ast.parse(path.read_text(), str(path))
    return found


JAXQR = modules("jaxqr")
ABOVE = modules("experiments") | modules("benchmarks")
KNOWN = JAXQR.keys() | ABOVE.keys()


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


IMPORTS = [i for name, tree in JAXQR.items() for i in imports(name, tree)]


def part(module: str) -> str:
    """`jaxqr.train.loop` -> `train`; the package itself is ``."""
    return [*module.split("."), ""][1]


def within(module: str, home: str) -> bool:
    return module == home or module.startswith(home + ".")


def test_every_part_has_a_rung():
    assert {part(module) for module in JAXQR} - {""} <= RUNG.keys()
    assert {"jaxqr.losses", "jaxqr.train.loop", "jaxqr.rewards.relevance"} <= KNOWN
    assert len(IMPORTS) > 200


@pytest.mark.parametrize("module", [m for m in JAXQR if part(m)])
def test_imports_go_down(module):
    mine = part(module)
    for found in (i for i in IMPORTS if i.module == module):
        if not within(found.name, "jaxqr"):
            continue
        other = part(found.name)
        where = f"{module}:{found.line} imports {found.name}"
        assert other, f"{where}: import the module itself"
        if other == mine:
            assert module != found.name, where
            continue
        assert RUNG[other] < RUNG[mine] or (mine, other) in BESIDE, where
        if mine in NARROW:
            assert other in NARROW[mine], f"{where}: {mine} needs {NARROW[mine]} only"


def test_nothing_imports_the_experiments():
    above = ("experiments", "benchmarks", "tpu", "tests")
    assert [i for i in IMPORTS if i.name.split(".")[0] in above] == []


def test_the_package_imports_nothing():
    assert [i for i in IMPORTS if i.module == "jaxqr"] == []


def test_libraries_stay_in_their_homes():
    strays = [
        i
        for i in IMPORTS
        if (home := HOMES.get(i.name.split(".")[0])) and not within(i.module, home)
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
        and i.module != RELEVANCE
    ]
    assert strays == []
    assert [i for i in IMPORTS if i.name == RELEVANCE] == []


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


def test_experiments_import_each_other_down_only():
    # A preset's module is started by name; what it shares lies below it. So no two
    # modules may import each other, directly or around a corner.
    below = {
        name: {i.name for i in imports(name, tree) if i.name in ABOVE}
        for name, tree in ABOVE.items()
    }
    while below:
        free = [name for name, names in below.items() if not names & below.keys()]
        assert free, f"a circle among {sorted(below)}"
        below = {name: below[name] for name in below.keys() - set(free)}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import jaxqr.losses", {"flax", "grain", "orbax", "optax", "transformers"}),
        (f"import {', '.join(WITHOUT_JAX)}", {"jax", "jaxlib", "flax", "transformers"}),
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
