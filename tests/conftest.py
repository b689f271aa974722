"""A strict session: 8 CPU devices, no rank promotion, shared compilations."""

import os
from pathlib import Path

# Before anything imports jax: these are read once. The cache spares a second run
# of the suite nearly all of its compilation time. Each process has one of its own,
# because JAX does not write entries whole or not at all.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(
        Path(__file__).parent.parent
        / ".pytest_cache"
        / f"jax-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
    ),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny programs that run a few times: what compiles fast is fastest. The fusion emitters
# and code generation in parts cost more here than they save.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest

from experiments.cli import keep_freed_memory

keep_freed_memory()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).parent.parent.parent / "shared"


MAPPINGS = 20_000
"""Memory mappings of which compiled programs may take up; Linux allows 65,530, and a
process that needs one more crashes."""


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs after a module if there are many; a cache has them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def esci_folder() -> Path:
    """The real ESCI extract, where it is next to the checkout."""
    folder = SHARED / "data" / "esci"
    if not folder.exists():
        pytest.skip("needs the ESCI extract next to the checkout")
    return folder
