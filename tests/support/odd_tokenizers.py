"""Small tokenizers that differ from the demo's in what matters to token counts: spaces, start tokens, digits."""

from __future__ import annotations

import json
from pathlib import Path

from engine.evaluation.haystack_words import CODE_WORDS, KEY_WORDS
from engine.resources import profiles_dir

SPECIALS = ["<unk>", "<s>", "</s>"]


def corpus() -> list[str]:
    """Plain English, with the words that needles are made of."""
    words = " ".join((*KEY_WORDS, *CODE_WORDS) * 4)
    return [(profiles_dir() / "base_text.txt").read_text("utf-8"), words, "0123456789 The pass key of is Record holds"]


def spaced(folder: Path) -> Path:
    """As Llama 2's: a space is written before every text, a start token is added, no chat template."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(
        [text.split() for text in corpus()], trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _written(tokenizer, folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def by_bytes(folder: Path) -> Path:
    """Every byte a token, nothing added, no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=259, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a"], trainer)
    return _written(tokenizer, folder, {"eos_token": "</s>"})


def _written(tokenizer: object, folder: Path, special: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))  # type: ignore[attr-defined]
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder
