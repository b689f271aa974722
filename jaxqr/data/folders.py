"""Hugging Face tokenizer folders as people have them: read, or refused in one line."""

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

TRAINED = "tokenizer.json"

VOCABULARIES = (TRAINED, "vocab.json", "vocab.txt")
"""Files that the tokenizers library reads without further packages."""

_JSON = (
    TRAINED,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "config.json",
)

_REMEDY = (
    "load the tokenizer with transformers' AutoTokenizer where that works, and give "
    "the folder that its save_pretrained writes: it has a tokenizer.json"
)


def transformers() -> Any:
    """The library, imported late and without its notice that torch is missing."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    return importlib.import_module("transformers")


def read(folder: Path) -> Any:
    """The transformers tokenizer of a folder; nothing is downloaded, no code run.

    Raises:
        FileNotFoundError: no tokenizer files in `folder`.
        ValueError: they cannot be read; the message names the folder, what is wrong
            and the remedy.
    """
    models = sorted(folder.glob("*.model"))  # spiece.model, tokenizer.model
    if not models and not any((folder / name).exists() for name in VOCABULARIES):
        raise FileNotFoundError(
            f"{folder} holds none of {', '.join(VOCABULARIES)}, spiece.model, "
            "tokenizer.model: give a Hugging Face tokenizer folder, or leave it out "
            "to train one on the data"
        )
    library = transformers()
    logging = library.utils.logging
    verbosity = logging.get_verbosity()
    if not (folder / TRAINED).exists():
        # It tells at length which reader of a *.model it cannot use before it tries
        # the next one. What comes of it is told below.
        logging.set_verbosity_error()
    try:
        # Without an answer here it would ask on the terminal whether to run code.
        tokenizer = library.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises no narrower one
        told = _broken_json(folder) or _foreign_class(folder) or _missing(models)
        if not told:
            reason = " ".join(str(error).split()) or repr(error)
            told = (
                f"transformers {library.__version__} cannot read this tokenizer: "
                f"{type(error).__name__}: {reason[:300]}. Copy the files once more "
                "if they are incomplete, update transformers if a newer version wrote "
                f"them, or {_REMEDY}"
            )
        raise ValueError(f"{folder}: {told}") from None
    finally:
        logging.set_verbosity(verbosity)
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(
            f"{folder}: {kind} does not run on the tokenizers library, as is needed "
            "here: give a folder with a tokenizer.json"
        )
    # transformers makes up a tokenizer where it does not find its class's own files.
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
        raise ValueError(f"{folder}: {kind} found no vocabulary in it: {_REMEDY}")
    return tokenizer


def _broken_json(folder: Path) -> str | None:
    """What is wrong with the first of the folder's JSON files that is broken."""
    for path in (folder / name for name in _JSON if (folder / name).exists()):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            if path.read_bytes().startswith(b"version https://git-lfs"):
                return (
                    f"{path.name} is a Git LFS pointer: get the file with git lfs pull"
                )
            return f"{path.name} is not JSON: {error}. Copy the file once more"
        if not isinstance(content, dict):
            return f"{path.name} is a {type(content).__name__}, expected a JSON object"
    return None


def _foreign_class(folder: Path) -> str | None:
    """What to do about a tokenizer whose code transformers does not have."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    name = str(config.get("tokenizer_class"))
    library = transformers()
    if config.get("auto_map"):
        what, remedy = f"{name} is code of its own, which is not run here", _REMEDY
    elif "tokenizer_class" in config and not hasattr(
        library, name.removesuffix("Fast")
    ):
        what = f"transformers {library.__version__} has no class {name}"
        remedy = f"install the version that has it, or {_REMEDY}"
    else:
        return None
    if (folder / TRAINED).exists():
        remedy = f"take auto_map and tokenizer_class out of {path.name}"
    return f"{what}: {remedy}"


def _missing(models: list[Path]) -> str | None:
    """Which packages are missing that read a *.model."""
    if not models:
        return None
    # tiktoken's files are lines of base64 and a number, SentencePiece's are binary.
    with models[0].open("rb") as file:
        ranks = re.fullmatch(rb"[\w+/=]+ \d+\s*", file.readline(1000))
    needed = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
    if ranks:
        needed = {"tiktoken": "tiktoken"}
    missing = []
    for module, package in needed.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(package)
    if not missing:
        return None
    names = " and ".join(missing)
    return (
        f"reading {models[0].name} needs the package {names}, which is not installed: "
        f"pip install {' '.join(missing)}. Or {_REMEDY}"
    )
