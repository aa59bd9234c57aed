"""A byte-level BPE tokenizer as llama.cpp reads it: tokens, their types, merges, and the name of its splitting rule.

Owns which splitting rules llama.cpp knows and by which name. Must not know weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.models.config import read_json_object

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's token types."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""Regular expression before the byte level -> llama.cpp's name of the rule."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The tokenizer part of a GGUF file."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    splitting: str
    """`tokenizer.ggml.pre`."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool
    """Whether plain text begins with the start token."""
    chat_template: str


def tokenizer_for_gguf(folder: Path, vocabulary: int) -> GgufTokenizer:
    """The tokenizer of a model folder, filled up to `vocabulary` rows of the embedding.

    Raises EngineError `model.no_tokenizer` and its relatives, `export.tokenizer` for one that llama.cpp's byte-level
    BPE would read differently.
    """
    chat = ChatTokenizer.load(folder)
    tree = read_json_object(folder / "tokenizer.json", code="model.tokenizer_broken", what="a tokenizer")
    model = tree.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback") or tree.get("normalizer"):
        raise _unknown("its tokens are not byte-level BPE without a normalizer")
    by_id: dict[int, tuple[str, int]] = {number: (text, NORMAL) for text, number in model["vocab"].items()}
    for added in tree.get("added_tokens") or ():
        by_id[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    if max(by_id) >= vocabulary:
        raise _unknown(f"it has {max(by_id) + 1} tokens and the model {vocabulary} rows")
    rows = [by_id.get(number, (f"[PAD{number}]", UNUSED)) for number in range(vocabulary)]
    start = chat.with_start(())
    return GgufTokenizer(
        tokens=tuple(text for text, _ in rows),
        types=tuple(kind for _, kind in rows),
        merges=tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]),
        splitting=splitting_rule(tree.get("pre_tokenizer")),
        bos_id=chat.bos_id,
        eos_id=chat.eos_id,
        pad_id=chat.pad_id,
        adds_bos=bool(start) and start == (chat.bos_id,),
        chat_template="" if chat.template.is_default else chat.template.text,
    )


def splitting_rule(rule: Any) -> str:
    """llama.cpp's name of a `pre_tokenizer`. Raises EngineError `export.tokenizer` for one that has none."""
    parts = rule.get("pretokenizers", [rule]) if isinstance(rule, dict) else []
    kinds = [part.get("type") for part in parts]
    if kinds and kinds[-1] == "ByteLevel" and not parts[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
            found = SPLITS.get((parts[0].get("pattern") or {}).get("Regex", ""))
            if found and parts[0].get("behavior") == "Isolated" and not parts[0].get("invert"):
                return found
    raise _unknown(
        f"its splitting rule is not one of {', '.join(('gpt-2', 'smollm', *SPLITS.values()))}: {_short(rule)}"
    )


def _short(rule: Any) -> str:
    text = json.dumps(rule)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _unknown(why: str) -> EngineError:
    return EngineError(
        "export.tokenizer",
        "This tokenizer cannot be written to a GGUF file here.",
        cause=f"llama.cpp would read it differently: {why}.",
        next_step="Use llama.cpp's own convert_hf_to_gguf.py for this model.",
    )
