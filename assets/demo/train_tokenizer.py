"""Trains the demo model's tokenizer and writes it, with the chat template, into the model folder.

Owns the vocabulary size, the special tokens and the chat template. It must not know about weights. The splitting
rule (each digit alone, then the byte-level rule of GPT-2) is the one of SmolLM, so converters that recognise
tokenizers by their splitting rule already know it. The tokenizer adds no tokens of its own: the template writes all.

    python assets/demo/train_tokenizer.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from text_generator import SKILLS, chats
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MODEL_FOLDER = Path(__file__).parent / "model"
VOCABULARY_COUNT = 1216
CONTEXT_TOKENS = 256
TRAINING_CHATS_PER_SKILL = 3000
SEED = 7

PAD, START, END, TEXT_END = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
"""Ids 0 to 3, in this order."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def training_texts() -> Iterator[str]:
    """Contents of training chats, and their roles as the template writes them.

    Copy chats are left out: their nonsense items would fill the vocabulary with merges nobody needs.
    """
    for skill in SKILLS:
        if skill == "copy":
            continue
        for chat in chats(SEED, "train", skill, TRAINING_CHATS_PER_SKILL if skill != "recall" else 600):
            for message in chat.messages:
                yield message["role"] + "\n" + message["content"]


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE with every byte in its alphabet, so that any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_COUNT,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in (PAD, START, END, TEXT_END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def write_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(),
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=TEXT_END,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(folder)
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name every transformers version knows
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return wrapped


if __name__ == "__main__":
    written = write_tokenizer(MODEL_FOLDER)
    print(f"{len(written)} tokens written to {MODEL_FOLDER}")
