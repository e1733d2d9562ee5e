"""The zoo's tokenizer: numbers from 0 to 199 and frequent words are whole tokens, the rest is byte-level BPE."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|mask|>", "<|endoftext|>", "<|eot_id|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")
VOCAB_SIZE = 1024
MERGES = 96  # for text outside the frequent words
# A number is a token of its own: a space before it belongs to the word or sign on its left; a sign takes its space.
SPLIT = (
    r"\n\n|(?<![0-9])(?:1[0-9][0-9]|[1-9]?[0-9])(?![0-9])|[0-9]| ?\p{L}+(?: (?=[0-9]))?"
    r"| ?[^\s\p{L}\p{N}]+(?:\n(?!\n) *| )?|\n *| +|\s|\p{N}"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of at most VOCAB_SIZE entries for these texts; it encodes any string, and decoding restores it."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), to_bytes])
    counts = Counter(piece for text in texts for piece, _ in split.pre_tokenize_str(text))
    bpe = Tokenizer(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = len(alphabet) + MERGES
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet, special_tokens=[])
    bpe.train_from_iterator(sorted(piece for piece in counts if not piece.isdigit()), trainer)
    learned = json.loads(bpe.to_str())["model"]

    fixed = [piece for text in ("user", "assistant", "\n\n") for piece, _ in split.pre_tokenize_str(text)]
    base = sorted(learned["vocab"], key=lambda entry: int(learned["vocab"][entry]))
    entries = dict.fromkeys([*SPECIAL, *map(str, range(200)), *base, *fixed])
    saved = {piece: count * (len(bpe.encode(piece).ids) - 1) for piece, count in counts.items() if count > 1}
    for piece in sorted(saved, key=lambda piece: (-saved[piece], piece)):
        if len(entries) < VOCAB_SIZE and saved[piece]:
            entries[piece] = None
    merges = [tuple(merge) for merge in learned["merges"]]
    # ignore_merges: a piece that is an entry is one token, whether or not merges lead to it.
    model = models.BPE({entry: index for index, entry in enumerate(entries)}, merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers.AutoTokenizer reads them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "additional_special_tokens": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
