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
    given = {
        name: torch.tensor(values, device=device).to(
            torch.long if values.dtype.kind == "i" else torch.float
        )
        for name, values in data.items()
    }
    rows, new = given["chosen"].shape
    some = given["prompts"][:rows]
    trained = {}
    for name in ("SFT step", "DPO step", "PPO step"):
        own = copy.deepcopy(model)
        if name == "PPO step":  # a module of the model, so that it is trained with it
            own.value = torch.nn.Linear(len(data["value"]), 1).to(device)
            own.value.weight.data = torch.tensor(data["value"], device=device)[None]
            own.value.bias.data.zero_()
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-4, betas=(0.9, 0.95))
        trained[name] = own, optimizer

    def logps_and_hidden(model, source, target):
        """Log-probabilities [B, T] of the target tokens, and what predicts them."""
        if model.config.is_encoder_decoder:
            shifted = model.prepare_decoder_input_ids_from_labels(labels=target)
            out = model(
                input_ids=source, decoder_input_ids=shifted, output_hidden_states=True
            )
            logits, hidden = out.logits, out.decoder_hidden_states[-1]
            predicted = target
        else:
            tokens = torch.cat([source, target], 1)
            out = model(tokens, output_hidden_states=True)
            logits, hidden = out.logits[:, :-1], out.hidden_states[-1][:, :-1]
            predicted = tokens[:, 1:]
        values = -torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), predicted.flatten(), reduction="none"
        )
        new = target.shape[1]
        return values.view(predicted.shape)[:, -new:], hidden[:, -new:]

    def logps(model, source, target):
        return logps_and_hidden(model, source, target)[0]

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

    def ppo(target, old_logps, old_values, advantages, returns):
        model, _ = trained["PPO step"]
        new, hidden = logps_and_hidden(model, some, target)
        values = model.value(hidden)[..., 0]
        ratio = torch.exp(new - old_logps)
        clipped = ratio.clamp(0.8, 1.2) * advantages
        policy = -torch.minimum(ratio * advantages, clipped).mean()
        near = old_values + (values - old_values).clamp(-0.2, 0.2)
        errors = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        return update("PPO step", policy + 0.1 * 0.5 * errors.mean())

    def ppo_round():
        """Draw, read with policy, values and reference, advantages, two epochs."""
        policy, _ = trained["PPO step"]
        drawn = generate(some, policy, do_sample=True, top_k=0)
        with torch.no_grad():
            old, hidden = logps_and_hidden(policy, some, drawn)
            values = policy.value(hidden)[..., 0]
            rewards = -0.1 * (old - logps(model, some, drawn))
            rewards[:, -1] += given["score"]
            advantages, last = torch.zeros_like(values), 0.0
            for t in reversed(range(new)):
                after = values[:, t + 1] if t + 1 < new else 0.0
                last = rewards[:, t] + after - values[:, t] + 0.95 * last
                advantages[:, t] = last
            returns = advantages + values
            white = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ppo(drawn, old, values, white, returns)
        return ppo(drawn, old, values, white, returns)

    @torch.no_grad()
    def generate(prompts, model=model, **arguments):
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
        "PPO step": lambda: ppo(
            given["chosen"],
            *(given[name] for name in ("logps", "values", "advantages", "returns")),
        ),
        "greedy": lambda: generated_tokens(do_sample=False),
        "sampled": lambda: generated_tokens(do_sample=True, top_k=0),
        "top-k 50": lambda: generated_tokens(do_sample=True, top_k=50),
        "top-p 0.9": lambda: generated_tokens(do_sample=True, top_k=0, top_p=0.9),
        f"beam {num_beams}": lambda: generated_tokens(some, **beams),
        "online round": online_round,
        "PPO round": ppo_round,
    }
