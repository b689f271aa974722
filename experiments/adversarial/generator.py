"""Supervised fine-tuning of the generator: product and label in, query out.

Rows count by their weight, where there is one: they are drawn in proportion to it.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments import runs, training
from experiments.adversarial.config import Generator
from experiments.adversarial.world import World
from experiments.config import Pretrain, PromptConfig
from experiments.pretrain import pretrain
from jaxqr.data.noise import selection_pairs
from jaxqr.data.pipeline import pair_batches
from jaxqr.evaluation.classifier import Judged
from jaxqr.lm import LM
from jaxqr.train import steps

INSTRUCTIONS = {
    "completion": "{label} query: {product}",
    "prefix": "{label} query: {product}",
    "chat": "A shop sells this product: {product}\nWrite a short search query of a "
    "customer for which this product is: {label}. Answer with the query only.",
}
"""How label and product are put to a model, by the kind of its prompt."""

VALIDATION_TEXTS = 256


def pretrained(
    run: Path, world: World, config: Pretrain, folder: Path | None = None
) -> None:
    """Trains the model that generator and classifier start from.

    Args:
        run: the run's folder; the stage is its `pretrain`.
        world: the data.
        config: the settings.
        folder: another one for the stage.
    """
    texts = training.sample(world.corpus, VALIDATION_TEXTS)
    width = world.settings.lengths.corpus

    def evaluate(lm: LM, step: int) -> dict[str, float]:
        """The loss of texts that it trains on, too: there is no other text."""
        del step
        stats = lm.token_stats(
            [(text.lower(), text.lower()) for text in texts],
            max_source=width,
            max_target=width,
        )
        return {"nll": float(stats.nll.sum() / stats.tokens.sum())}

    pretrain(
        folder or run / "pretrain",
        config,
        world.tokenizer,
        world.corpus,
        width,
        evaluate=evaluate,
    )


def main(folder: Path, start: Path, world: World, config: Generator) -> None:
    """Fine-tunes the generator.

    Args:
        folder: the stage's.
        start: a Hugging Face folder.
        world: the data.
        config: the settings.
    """
    with runs.stage(folder, config) as work:
        if not work:
            return
        lm = prompted(
            training.load_model(start, config.compute, config.lora, seed=config.seed),
            config.prompt,
        )
        lengths = world.settings.lengths
        rows = lm.tokenizer.pairs(
            pairs(world, drawn(world.rows("train"), config)) + selected(world, config),
            max_source=lengths.source,
            max_target=lengths.target,
        )
        training.train(
            folder,
            lm,
            steps.sft_step,
            pair_batches(
                rows,
                batch_size=config.optimizer.batch_size,
                seed=config.seed,
                fill=lm.tokenizer.eos,
            ),
            config.optimizer,
            seed=config.seed,
            evaluate=validation(world, config.validation_rows),
            score="-nll",
        )


def prompted(lm: LM, prompt: PromptConfig) -> LM:
    """The model with the prompt that shows it label and product."""
    template = lm.tokenizer.prompt
    kind = prompt.kind or (template.kind if template else "prefix")
    instruction = prompt.instruction or INSTRUCTIONS[kind]
    return lm._replace(tokenizer=lm.tokenizer.with_prompt(kind, instruction))


def instructed(lm: LM, folder: Path) -> LM:
    """A model that was never fine-tuned here, asked in words.

    Raises:
        ValueError: it is no instruct model.
    """
    if not (lm.tokenizer.has_chat_template or lm.model.encoder_decoder):
        raise ValueError(
            f"prompted={folder}: its tokenizer has no chat template, so it is no "
            "instruct model, and a model that was never asked for queries writes "
            "none; give the folder of an instruct model, or leave the option out"
        )
    kind = "prefix" if lm.model.encoder_decoder else "chat"
    return prompted(lm, PromptConfig(kind, INSTRUCTIONS["chat"]))


def pairs(world: World, rows: Judged) -> list[tuple[dict[str, str], str]]:
    """(label and product, query) of each row."""
    sources = world.sources(rows.product_id.tolist(), rows.label.tolist())
    return list(zip(sources, rows.query.tolist(), strict=True))


def drawn(rows: Judged, config: Generator) -> Judged:
    """The rows to train on: some of each query, in proportion to their weight."""
    rows = rows.shuffled(config.seed)
    if config.rows_per_query:
        seen: Counter[str] = Counter()
        kept = []
        for row, query in enumerate(rows.query):
            seen[query] += 1
            if seen[query] <= config.rows_per_query:
                kept.append(row)
        rows = Judged(*(column[kept] for column in rows))
    if np.all(rows.weight == rows.weight[0]):
        return rows
    chosen = np.random.default_rng(config.seed).choice(
        len(rows.label), len(rows.label), p=rows.weight / rows.weight.sum()
    )
    return Judged(*(column[chosen] for column in rows))


def selected(world: World, config: Generator) -> list[tuple[dict[str, str], str]]:
    """(best label and product, some words of its text) of every product."""
    texts = [world.text(id) for id in world.products]
    rng = np.random.default_rng(config.seed)
    best = world.label_texts[int(np.argmax(world.labels.gains))]
    return [
        ({"label": best, "product": text}, words)
        for text, words in selection_pairs(texts, config.selections, rng)
    ]


def validation(world: World, most: int) -> Callable[[LM, int], dict[str, float]]:
    """The loss of real queries of the validation part, in nats per token."""
    held_out = pairs(world, world.rows("validation").shuffled(0, most))
    lengths = world.settings.lengths

    def evaluate(lm: LM, step: int) -> dict[str, float]:
        del step
        stats = lm.token_stats(
            held_out, max_source=lengths.source, max_target=lengths.target
        )
        return {"nll": float(stats.nll.sum() / stats.tokens.sum())}

    return evaluate
