"""A language model over HTTP as a judge; any server that speaks OpenAI's protocol.

llm = LLM("http://localhost:8000/v1", "meta-llama/Llama-3.1-8B-Instruct")
judge = LLMJudge(llm, products)
"""

from jaxqr.rewards.llm.client import LLM, Abilities, Answer, NoAnswerError
from jaxqr.rewards.llm.judge import LLMJudge, equivalent
from jaxqr.rewards.llm.shoppers import write_profiles

__all__ = [
    "LLM",
    "Abilities",
    "Answer",
    "LLMJudge",
    "NoAnswerError",
    "equivalent",
    "write_profiles",
]
