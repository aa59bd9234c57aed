"""BPE over characters with ▁ for spaces and bytes for the rest, as tokenizer.json has it for SentencePiece's models.

Owns the scores that make llama.cpp join pieces in the order of the merges, and the check that it then joins the same
ones. Must not know special tokens.

llama.cpp's "llama" tokenizer has no merges: of all neighbours whose union is a token it joins those of the highest
score, the leftmost first. tokenizer.json ranks pairs. The two agree where the pairs that make one token have
neighbouring ranks, and every pair of pieces whose union is a token is among the merges; conversions from SentencePiece
are like that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.context.gguf_support import Finding
from engine.export.gguf_tokens import BYTE, unlike_llama_cpp

MARK = "▁"
"""A space."""
LARGEST_SHARE_OF_OTHER_PAIRS = 1e-3
"""Of the merges; beyond it texts are tokenised differently too often to call the file right."""
_BYTE = re.compile(r"^<0x[0-9A-F]{2}>$")
_TIED_SCORE_STEP = 1.0


@dataclass(frozen=True, slots=True)
class Pieces:
    """What llama.cpp needs to know of such a tokenizer."""

    scores: Mapping[str, float]
    types: Mapping[str, int]
    """Of the byte tokens."""
    lowest: float
    """Below every score: for what is never joined."""
    adds_space: bool
    findings: tuple[Finding, ...] = field(default=())


def is_pieces(tree: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind: bytes as a fallback, or ▁ for spaces."""
    return bool((tree.get("model") or {}).get("byte_fallback")) or MARK in str(tree.get("normalizer") or "")


def pieces_of(tree: Mapping[str, Any], *, prompts: bool) -> Pieces:
    """Scores and types of the tokens in `tree`. `prompts`: the model is talked to through a chat template, whose first
    token is a special one.

    Raises EngineError `export.tokenizer` where llama.cpp would join other pieces, or has no byte to fall back to.
    """
    model = tree["model"]
    vocab: Mapping[str, int] = model["vocab"]
    added = {token["content"] for token in tree.get("added_tokens") or ()}
    byte_types = {text: BYTE for text in vocab if _BYTE.match(text)}
    if not model.get("byte_fallback") or len(byte_types) < 256:
        raise unlike_llama_cpp("it has no bytes to fall back to, and llama.cpp needs all 256")
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    normal = {text for text in vocab if text not in added and text not in byte_types}
    others = sum(1 for _ in _other_pairs(normal, {(left, right) for left, right in merges}))
    if others > LARGEST_SHARE_OF_OTHER_PAIRS * len(merges):
        raise unlike_llama_cpp(
            f"it joins any two pieces whose union is a token, also {others} pairs that are not among the merges"
        )
    scores, ties = _scores([left + right for left, right in merges])
    adds_space, spacing = _spacing(tree, normal, prompts=prompts)
    return Pieces(scores, byte_types, -float(len(merges) + 1), adds_space, (*spacing, *_joining(others, ties)))


def _other_pairs(normal: set[str], pairs: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Pairs that llama.cpp would join and the tokenizer would not: pieces or single characters, whose union is a
    token."""
    for text in normal:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if (
                (cut == 1 or left in normal)
                and (cut == len(text) - 1 or right in normal)
                and (left, right) not in pairs
            ):
                yield left, right


def _scores(made: list[str]) -> tuple[dict[str, float], int]:
    """Token -> score from the tokens that the merges make, in their order; the number of tokens whose merges lie among
    those of others, which get one score together."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, text in enumerate(made):
        first.setdefault(text, rank)
        last[text] = rank
    scores: dict[str, float] = {}
    end, score, tied, group = -1, 0.0, 0, 0
    for text, rank in first.items():  # in the order of first ranks
        if rank > end:
            tied += group if group > 1 else 0
            score, group = score - _TIED_SCORE_STEP, 0
        scores[text] = score
        end, group = max(end, last[text]), group + 1
    return scores, tied + (group if group > 1 else 0)


def _joining(others: int, ties: int) -> tuple[Finding, ...]:
    if not others:
        return ()
    return (
        Finding(
            "export.merges",
            False,
            f"llama.cpp joins {others} rare pairs of pieces that this tokenizer leaves apart.",
            "It joins whatever makes a token; tokenizer.json lists the pairs.",
        ),
    )


def _spacing(tree: Mapping[str, Any], normal: set[str], *, prompts: bool) -> tuple[bool, tuple[Finding, ...]]:
    """Whether a space is put before text, and where llama.cpp does it differently. It puts one at the start and behind
    every special token, or nowhere."""
    replaces, prepends = _normalizing(tree.get("normalizer"))
    rule = tree.get("pre_tokenizer")
    parts = rule.get("pretokenizers", [rule]) if isinstance(rule, dict) else []
    scheme = "always" if prepends else "never"
    for part in parts:
        if part.get("type") == "Metaspace" and part.get("replacement", MARK) == MARK:
            scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
            replaces = True
            _check_split(bool(part.get("split", True)), normal)
        elif part.get("type") != "Split" or (part.get("pattern") or {}) != {"String": " "}:
            raise unlike_llama_cpp(f"it splits text by {part.get('type')} before joining")
    if not replaces:
        raise unlike_llama_cpp("it does not write spaces as ▁")
    if scheme != "first":
        return scheme == "always", ()
    where = "plain text without a template" if prompts else "text behind special tokens"
    finding = Finding(
        "export.first_space",
        False,
        f"In {where} llama.cpp's first token has {'no' if prompts else 'a'} space before it, this tokenizer's "
        f"{'has' if prompts else 'has none'}.",
        "The tokenizer puts one at the start of everything only; llama.cpp also behind special tokens, or nowhere.",
        "Use the chat template." if prompts else "",
    )
    return not prompts, (finding,)


def _normalizing(normalizer: Any) -> tuple[bool, bool]:
    """Whether the normalizer turns spaces into ▁, and puts one before everything."""
    replaces = prepends = False
    for part in normalizer.get("normalizers", [normalizer]) if normalizer else ():
        kind = part.get("type")
        if kind == "Prepend" and part.get("prepend") == MARK:
            prepends = True
        elif kind == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == MARK:
            replaces = True
        else:
            raise unlike_llama_cpp(f"its normalizer has {kind}, and llama.cpp leaves text as it is")
    return replaces, prepends


def _check_split(split: bool, normal: set[str]) -> None:
    """Words joined one by one are as good as text joined whole where no piece reaches over a space."""
    across = next((text for text in normal if MARK in text[1:]), "")
    if split and across:
        raise unlike_llama_cpp(f"it splits at spaces, and llama.cpp would join {across!r} over one")
