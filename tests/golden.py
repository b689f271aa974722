"""Tiny random Hugging Face models, and what torch computes with them."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "goldens"


def load(name: str) -> dict[str, np.ndarray]:
    """Inputs and outputs of a golden model, and its tensors under "tensor/"."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def tensors(name: str) -> dict[str, np.ndarray]:
    """Its tensors under their Hugging Face names."""
    found = load(name).items()
    return {k.removeprefix("tensor/"): v for k, v in found if k.startswith("tensor/")}


def write_folder(
    name: str, folder: Path, weights: dict[str, np.ndarray] | None = None
) -> Path:
    """Write it as a Hugging Face folder, with other tensors if they are given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(str(load(name)["config"]))
    save_file(weights or tensors(name), folder / "model.safetensors")
    return folder


@partial(jax.jit, static_argnums=0, static_argnames=("method", "max_new_tokens"))
def apply(model: Any, params: Any, *inputs: Any, **options: Any) -> Any:
    """Call `model.apply` as one program; eagerly every operation is compiled."""
    return model.apply(params, *inputs, **options)
