"""The workloads of `benchmarks.speed` in torch and transformers, written plainly.

Both completions of a pair are read with their prompts in one batch, and the logits of
all positions are computed.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def workloads(
    folder: Path, data: dict[str, np.ndarray], *, num_beams: int, threads: int
) -> dict[str, Callable[[], Any]]:
    """The same workloads under the same names, or none without torch.

    Args:
        folder: the model, as `models.save_pretrained` has written it.
        data: tokens, as `benchmarks.speed.inputs` has drawn them.
        num_beams: beams of the beam search.
        threads: CPU threads; 0 leaves torch its default.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers
    except ImportError:
        return {}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    cls = getattr(transformers, architecture)
    model: Any = cls.from_pretrained(folder).to(device).eval()  # without dropout
    # All rows run to their full length.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    given = {k: torch.tensor(v, device=device).long() for k, v in data.items()}
    rows, new = given["chosen"].shape
    some = given["prompts"][:rows]
    trained = {}
    for name in ("SFT step", "DPO step"):
        own = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-4, betas=(0.9, 0.95))
        trained[name] = own, optimizer

    def logps(model, source, target):
        """Log-probabilities of the target tokens, [B, T]."""
        if model.config.is_encoder_decoder:
            shifted = model.prepare_decoder_input_ids_from_labels(labels=target)
            logits = model(input_ids=source, decoder_input_ids=shifted).logits
            predicted = target
        else:
            tokens = torch.cat([source, target], 1)
            logits = model(tokens).logits[:, :-1]
            predicted = tokens[:, 1:]
        values = -torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), predicted.flatten(), reduction="none"
        )
        return values.view(predicted.shape)[:, -target.shape[1] :]

    def update(name, loss):
        model, optimizer = trained[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return finished(loss)

    def finished(result):
        if device == "cuda":
            torch.cuda.synchronize()
        return result.detach().cpu().numpy()

    def sft():
        model, _ = trained["SFT step"]
        return update(
            "SFT step", -logps(model, given["source"], given["target"]).mean()
        )

    def dpo(chosen, rejected):
        model, _ = trained["DPO step"]
        both = torch.cat([chosen, rejected])
        best, worst = logps(model, some.repeat(2, 1), both).sum(1).chunk(2)
        loss = -torch.nn.functional.logsigmoid(0.1 * (best - worst)).mean()
        return update("DPO step", loss)

    @torch.no_grad()
    def generate(prompts, **arguments):
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new,
            min_new_tokens=new,
            **arguments,
        )
        return out[:, -new:]

    def generated_tokens(prompts=given["prompts"], **arguments):
        return finished(generate(prompts, **arguments))

    def online_round():
        drawn = generate(some.repeat_interleave(2, 0), do_sample=True, top_k=0)
        return dpo(drawn[0::2], drawn[1::2])

    beams = {"num_beams": num_beams, "early_stopping": False, "do_sample": False}
    return {
        "SFT step": sft,
        "DPO step": lambda: dpo(given["chosen"], given["rejected"]),
        "greedy": lambda: generated_tokens(do_sample=False),
        "sampled": lambda: generated_tokens(do_sample=True, top_k=0),
        "top-k 50": lambda: generated_tokens(do_sample=True, top_k=50),
        "top-p 0.9": lambda: generated_tokens(do_sample=True, top_k=0, top_p=0.9),
        f"beam {num_beams}": lambda: generated_tokens(some, **beams),
        "online round": online_round,
    }
