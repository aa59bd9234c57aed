"""A model folder's tokenizer as llama.cpp reads it: tokens, their types, how text is split and joined, special tokens.

Owns what both kinds of tokenizer share, and the byte-level BPE one: which splitting rules llama.cpp knows and by which
name. Tokenizers of SentencePiece's kind are `gguf_pieces`'. Must not know weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.context.gguf_support import Finding
from engine.data.tokenizer import ChatTokenizer
from engine.export.gguf_pieces import MARK, Pieces, is_pieces, pieces_of
from engine.export.gguf_special import SpecialTokens, special_tokens
from engine.export.gguf_tokens import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, unlike_llama_cpp
from engine.models.config import read_json_object

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(ending: str, digits: str) -> str:
    """Words that end where their upper case begins anew."""
    start = r"[^\r\n\p{L}\p{N}]?"
    first, second = f"{start}{_UPPER}*{_LOWER}+{ending}", f"{start}{_UPPER}+{_LOWER}*{ending}"
    return f"{first}|{second}|{digits}{_CASED_REST}"


SPLITS = {
    _WORDS + r"\p{N}{1,3}" + _REST: ("dbrx", "llama-bpe"),
    _WORDS + r"\p{N}" + _REST: ("qwen2", ""),
    _cased("", r"\p{N}"): ("", "tekken"),
    _cased(_ENDING, r"\p{N}{1,3}"): ("gpt-4o", ""),
}
"""Regular expression before the byte level -> llama.cpp's name of the rule; the second where a word that is a token is
taken whole before any merge ("ignore_merges"). "" where llama.cpp has none."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The tokenizer part of a GGUF file."""

    model: str
    """`tokenizer.ggml.model`: "gpt2" for byte-level BPE, "llama" for pieces of SentencePiece's kind."""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    """Of pieces; empty for byte-level BPE."""
    splitting: str
    """`tokenizer.ggml.pre`."""
    special: SpecialTokens
    adds_space: bool | None
    """Whether text begins with a space, None for byte-level BPE."""
    strips_right: bool
    """Special tokens swallow the spaces behind them, as Phi-3's do; llama.cpp does so for models of that name."""
    chat_template: str
    findings: tuple[Finding, ...] = ()


def tokenizer_for_gguf(folder: Path, vocabulary: int, chat_template: str | None = None) -> GgufTokenizer:
    """The tokenizer of a model folder, filled up to `vocabulary` rows of the embedding. `chat_template` replaces the
    folder's; "" writes none.

    Raises EngineError `model.no_tokenizer` and its relatives, `export.tokenizer` for one that llama.cpp would read
    differently.
    """
    chat = ChatTokenizer.load(folder)
    tree = read_json_object(folder / "tokenizer.json", code="model.tokenizer_broken", what="a tokenizer")
    model = tree.get("model") or {}
    if model.get("type") != "BPE":
        raise unlike_llama_cpp(f"its kind is {model.get('type')}, not BPE")
    template = chat_template
    if template is None:
        template = "" if chat.template.is_default else chat.template.text
    pieces = pieces_of(tree, prompts=bool(template)) if is_pieces(tree) else None
    tokens, types, more = _tokens(tree, vocabulary, as_pieces=pieces is not None)
    strips_right, stripping = _stripping(tree)
    special = special_tokens(folder, chat, tree, len(tokens))
    findings = [*more, *stripping, *special.findings]
    if pieces is not None:
        return _of_pieces(pieces, tokens, types, special, strips_right, template, (*pieces.findings, *findings))
    return GgufTokenizer(
        model="gpt2",
        tokens=tokens,
        types=types,
        merges=tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]),
        scores=(),
        splitting=splitting_rule(tree.get("pre_tokenizer"), ignore_merges=bool(model.get("ignore_merges"))),
        special=special,
        adds_space=None,
        strips_right=strips_right,
        chat_template=template,
        findings=(*findings, *_normalizing(tree.get("normalizer"))),
    )


def _of_pieces(
    pieces: Pieces,
    tokens: tuple[str, ...],
    types: tuple[int, ...],
    special: SpecialTokens,
    strips_right: bool,
    template: str,
    findings: tuple[Finding, ...],
) -> GgufTokenizer:
    types = tuple(pieces.types.get(text, kind) for text, kind in zip(tokens, types, strict=True))
    return GgufTokenizer(
        model="llama",
        tokens=tokens,
        types=types,
        merges=(),
        scores=tuple(pieces.scores.get(text, pieces.lowest) for text in tokens),
        splitting="default",
        special=special,
        adds_space=pieces.adds_space,
        strips_right=strips_right,
        chat_template=template,
        findings=findings,
    )


def _tokens(
    tree: Mapping[str, Any], vocabulary: int, *, as_pieces: bool
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[Finding, ...]]:
    """Texts and types of all ids, and what was left out."""
    model = tree["model"]
    by_id: dict[int, tuple[str, int]] = {number: (text, NORMAL) for text, number in model["vocab"].items()}
    if as_pieces and model.get("unk_token") in model["vocab"]:
        by_id[model["vocab"][model["unk_token"]]] = (model["unk_token"], UNKNOWN)
    beyond = []
    for added in tree.get("added_tokens") or ():
        number, text = added["id"], added["content"]
        if number >= vocabulary:
            beyond.append(text)
        elif not (as_pieces and text == model.get("unk_token")):
            kind = CONTROL if added["special"] else USER_DEFINED
            by_id[number] = (text if added["special"] or not as_pieces else text.replace(MARK, " "), kind)
    if max(by_id) >= vocabulary:
        raise unlike_llama_cpp(f"it has {max(by_id) + 1} tokens and the model {vocabulary} rows")
    rows = [by_id.get(number, (f"[PAD{number}]", UNUSED)) for number in range(vocabulary)]
    texts = tuple(text for text, _ in rows)
    if len(set(texts)) < len(texts):
        twice = next(text for text, count in Counter(texts).items() if count > 1)
        raise unlike_llama_cpp(f"two of its tokens have the text {twice[:40]!r}, and llama.cpp finds ids by text")
    left_out = Finding(
        "export.tokens",
        False,
        f"{len(beyond)} special tokens have no row in the embedding and are left out: {', '.join(beyond[:3])}.",
        "The model cannot read them either.",
    )
    return texts, tuple(kind for _, kind in rows), (left_out,) if beyond else ()


def _normalizing(normalizer: Any) -> tuple[Finding, ...]:
    """Byte-level BPE: Unicode's composed form is asked for by Qwen, and llama.cpp leaves text as it is."""
    if not normalizer:
        return ()
    parts = normalizer.get("normalizers", [normalizer])
    if [part.get("type") for part in parts] != ["NFC"]:
        raise unlike_llama_cpp(f"its normalizer {_short(normalizer)} is not applied")
    return (
        Finding(
            "export.normalizer",
            False,
            "Text with decomposed accents (an e followed by a combining accent) gives other tokens in llama.cpp.",
            "The tokenizer composes them first (NFC), llama.cpp does not; typed text is composed as a rule.",
        ),
    )


def _stripping(tree: Mapping[str, Any]) -> tuple[bool, tuple[Finding, ...]]:
    """Whether special tokens strip as llama.cpp does for models called Phi-3, and what is lost otherwise."""
    added = tree.get("added_tokens") or ()
    strips = {token["content"]: (bool(token.get("lstrip")), bool(token.get("rstrip"))) for token in added}
    if not any(any(sides) for sides in strips.values()):
        return False, ()
    plain = ("<unk>", "<s>", "<|endoftext|>")
    if all(sides == (False, text not in plain) for text, sides in strips.items()) and {*plain, "</s>"} <= set(strips):
        return True, ()
    names = ", ".join([text for text, sides in strips.items() if any(sides)][:3])
    return False, (
        Finding(
            "export.strip",
            False,
            f"llama.cpp keeps the spaces beside {names}, which this tokenizer swallows.",
            next_step="Write prompts without spaces there.",
        ),
    )


def splitting_rule(rule: Any, *, ignore_merges: bool = False) -> str:
    """llama.cpp's name of a `pre_tokenizer`. Raises EngineError `export.tokenizer` for one that has none."""
    parts = rule.get("pretokenizers", [rule]) if isinstance(rule, dict) else []
    kinds = [part.get("type") for part in parts]
    if kinds and kinds[-1] == "ByteLevel" and not parts[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"] and parts[0].get("use_regex", True) and not ignore_merges:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
            names = SPLITS.get((parts[0].get("pattern") or {}).get("Regex", ""), ("", ""))
            if names[ignore_merges] and parts[0].get("behavior") == "Isolated" and not parts[0].get("invert"):
                return names[ignore_merges]
    known = ["gpt-2", "smollm", *(name for names in SPLITS.values() for name in names if name)]
    raise unlike_llama_cpp(f"its splitting rule is not one of {', '.join(known)}: {_short(rule)}")


def _short(rule: Any) -> str:
    text = json.dumps(rule)
    return text if len(text) <= 120 else f"{text[:117]}..."
