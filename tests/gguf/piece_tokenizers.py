"""Small tokenizers of SentencePiece's kind, in the forms that tokenizer.json has for Llama 2, Mistral, Gemma and Phi-3.

Pieces are learnt on the demo's texts; merges are made of the pieces' scores as transformers' converter makes them:
every pair of pieces whose union is a piece, by falling score.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from engine.resources import demo_rows_file

MARK = "▁"
PREPEND = {"type": "Prepend", "prepend": MARK}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
TEXTS = (
    "Hello world", " leading space", "two  spaces and   three", "trailing ", "", " ", "tabs\tand\nnew\n\nlines\n",
    "Zürich naïve café — “quotes”", "日本語 и русский", "emoji 🙂 done 👩‍👩‍👧", "1234567890 3.14", "aaaaaaaa bbbb",
    "def f(x):\n    return x + 1\n", "<s>not a token?</s>", "The quick brown fox jumps over the lazy dog.",
    "▁literal mark ▁▁", "<|user|>\nHi<|end|>\n<|assistant|>\n", "<start_of_turn>user\nHi<end_of_turn>\n",
    "a\u0301 combining", "\u00a0nbsp", "x" * 70, " " * 40 + "deep", "\n" * 7 + "x",
)  # fmt: skip


@cache
def learnt(size: int = 700) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Pieces by falling score, then single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    path = demo_rows_file("demo-long", "heldout")
    assert path is not None
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()[:40]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, "always")
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    pieces = tuple(text for text, _ in by_id if len(text) > 1)
    return pieces, tuple(sorted({*(text for text, _ in by_id if len(text) == 1), MARK, *"éüñ"}))


def merges_of(vocab: dict[str, int], scores: dict[str, float]) -> list[list[str]]:
    """Every pair of tokens whose union is scored, by falling score, the longer left part first."""
    pairs = [
        (scores[text], len(text[:cut]), [text[:cut], text[cut:]])
        for text in scores
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    return [pair for _, _, pair in sorted(pairs, key=lambda one: (-one[0], -one[1]))]


def tokenizer_tree(form: str) -> dict[str, Any]:
    """`form`: llama, mistral, phi3, gemma."""
    pieces, characters = learnt()
    runs = [run * count for run in ("\n", MARK, "\t") for count in range(2, 9)] if form == "gemma" else []
    heads = {
        "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", *runs, "<b>"],
    }.get(form, ["<unk>", "<s>", "</s>"])
    tails = {"phi3": ["<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"], "mistral": ["[INST]", "[/INST]"]}
    single = ["\n", "\t"] if form == "gemma" else []
    names = [*heads, *(f"<0x{byte:02X}>" for byte in range(256)), *single, *pieces, *characters]
    vocab = {text: number for number, text in enumerate(dict.fromkeys(names))}
    scores = {text: 0.0 for text in runs} | {text: -1.0 - rank for rank, text in enumerate(pieces)}
    added = [*heads, *tails.get(form, [])]
    if form == "phi3":
        vocab["▁▁"] = len(vocab)
        scores["▁▁"] = -1e9
    ids = vocab | {text: len(vocab) + n for n, text in enumerate(tails.get(form, []))}
    start = "<bos>" if form == "gemma" else "<s>"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(text, ids[text], form, set(runs)) for text in added],
        "normalizer": {
            "llama": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]},
            "phi3": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]},
            "gemma": REPLACE,
        }.get(form),
        "pre_tokenizer": {
            "gemma": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
            "mistral": {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first", "split": False},
        }.get(form),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {start: {"id": start, "ids": [ids[start]], "tokens": [start]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges_of(vocab, scores),
        },
    }


def _added(text: str, number: int, form: str, runs: set[str]) -> dict[str, Any]:
    plain = text in runs or text == "<b>"
    strips = form == "phi3" and text not in ("<unk>", "<s>", "<|endoftext|>")
    return {
        "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": strips,
        "normalized": False, "special": not plain,
    }  # fmt: skip


def write_piece_tokenizer(folder: Path, form: str, chat_template: str = "") -> int:
    """tokenizer.json and tokenizer_config.json of a form; how many tokens it has."""
    tree = tokenizer_tree(form)
    (folder / "tokenizer.json").write_text(json.dumps(tree, ensure_ascii=False))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    if form == "gemma":
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    if form == "phi3":
        names |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": chat_template, **names})
    )
    return len(tree["model"]["vocab"]) + sum(
        1 for t in tree["added_tokens"] if t["content"] not in tree["model"]["vocab"]
    )
