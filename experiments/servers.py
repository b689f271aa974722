"""Clients of servers, from the settings."""

import os
from pathlib import Path

from experiments.config import LLMConfig
from jaxqr.rewards.llm import LLM


def llm(config: LLMConfig, run: Path, option: str) -> LLM:
    """The language model that a stage asks; its answers are kept in the run's folder.

    Raises:
        ValueError: the settings do not say which; `option` is how they are called.
    """
    if not (config.url and config.model):
        raise ValueError(
            f"a language model is to be asked, but it is not said which: give {option}"
            f".url, such as http://localhost:8000/v1, and {option}.model"
        )
    return LLM(
        config.url,
        config.model,
        api_key=os.environ.get("JAXQR_LLM_API_KEY"),
        timeout=config.timeout,
        retries=config.retries,
        concurrency=config.concurrency,
        cache=config.cache or run / "llm.sqlite",
        budget=config.budget,
    )
