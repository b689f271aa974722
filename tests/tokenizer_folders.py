"""Tokenizer folders of the kinds that people have, small ones."""

import json

import tiny

TEXTS = [text for pair in tiny.PAIRS for text in pair]
CORPUS = [*TEXTS, "Rewrite the query.\n\n", "rewrite query: user assistant [INST]"]

# Llama 3's files: its split, its post-processor that opens texts and, in its manner,
# a template that says so itself.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, END, START, STOP, TURN = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
OPENED = "{{ bos_token }}" + TEMPLATE
# To the microsecond, so that it never writes the same twice.
DATED = (
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday: ' }}"
    "{{ strftime_now('%d %b %Y %H:%M:%S.%f') + '<|eot_id|>' }}" + TEMPLATE
)


def write_llama(folder, *, template=None, eos=TURN):
    from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=alphabet, show_progress=False
        ),
    )
    backend.add_special_tokens([BOS, END, START, STOP, TURN])
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS}:1 $B:1",
                special_tokens=[(BOS, backend.token_to_id(BOS))],
            ),
        ]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=eos,
        chat_template=template,
    ).save_pretrained(folder)


def write_unigram(folder, *, name="PreTrainedTokenizerFast", template=None):
    """T5's folder; with a template one of a chat model of SentencePiece."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.Unigram())
    scheme = {"prepend_scheme": "first" if template else "always"}
    backend.pre_tokenizer = pre_tokenizers.Metaspace(**scheme)
    backend.decoder = decoders.Metaspace(**scheme)
    special = ["<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        [*CORPUS, "\n\n"] if template else [*CORPUS[:-2], "rewrite query:"],
        trainers.UnigramTrainer(
            vocab_size=120,
            special_tokens=special,
            unk_token="<unk>",
            initial_alphabet=list("</s>_exrad0123456789abq"),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(3)],
        chat_template=template,
    ).save_pretrained(folder)
    change(folder, "tokenizer_config.json", tokenizer_class=name, extra_ids=3)


def change(folder, name, **fields):
    path = folder / name
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | fields))


def write_wordpiece(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "shoe", "##s", "blue"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_gpt2(folder, texts):
    """As the tokenizers library writes GPT-2's two files."""
    from tokenizers import ByteLevelBPETokenizer

    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(
        texts, 300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.save_model(str(folder))
    config = {"tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_all(root):
    """Writes a folder of each kind, by name."""
    writers = {
        "base": lambda folder: write_llama(folder, eos=END),
        "instruct": lambda folder: write_llama(folder, template=OPENED),
        "unopened": lambda folder: write_llama(folder, template=TEMPLATE),
        "dated": lambda folder: write_llama(folder, template=DATED),
        "t5": write_unigram,
        "t5-class": lambda folder: write_unigram(folder, name="T5Tokenizer"),
        "gpt2": lambda folder: write_gpt2(folder, TEXTS),
        "bert": write_wordpiece,
        "own": lambda folder: tiny.tokenizer().save(folder),
    }
    for name, write in writers.items():
        (root / name).mkdir()
        write(root / name)


def theirs(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def rendered(folder, content):
    """What transformers makes of one message of the user."""
    return theirs(folder).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        return_dict=False,
    )


def ids_of(folder, *tokens):
    return theirs(folder).convert_tokens_to_ids(list(tokens))


def let_log(monkeypatch):
    """Lets caplog see what transformers logs, which it keeps to itself."""
    from transformers.utils import logging

    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
