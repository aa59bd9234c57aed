"""Whether two models read and write the same tokens: one tokenizer held against another, token by token.

Owns the comparison and its words. Must not know models, losses or runs. Sizes say little: a vocabulary of 151,936 rows
and one of 152,064 may mean the same 151,665 tokens behind which rows are padded, and two of 32,000 may share none.
What must agree is what an id stands for, and how texts are cut into ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.data.tokenizer import read_tokenizer
from engine.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SHOWN = 3
_WORDS_FROM_VOCABULARY = 2000
_PIECES = ("normalizer", "pre_tokenizer")
"""Written in many ways that cut alike: texts decide."""
SAMPLE_TEXTS = (
    "The quick brown fox jumps over the lazy dog, doesn't it? 'Yes,' she said; \"we'll see\".",
    "In 1999, 12345678 people paid $3.50 (or 2,750.99 EUR) for 7x24 help at 09:30 -- 100% of them.",
    "def area(r: float) -> float:\n    # pi r^2\n\treturn 3.14159 * r ** 2\n\n\nprint(area(2.0))  \n",
    '{"name": "Zoe", "tags": [1, 2, null, true], "url": "https://example.org/a?b=c&d=%20#e"}',
    "Stra\u00dfe, caf\u00e9, cafe\u0301, na\u00efve, \u0130stanbul, \ufb01ne, \u00bd, \u2460, \uff21\uff22\uff23",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 "
    "\u03ba\u03cc\u03c3\u03bc\u03b5. \u05e9\u05dc\u05d5\u05dd \u0639\u0627\u0644\u0645 "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u6211\u4eec\u4eca\u5929\u53bb\u5b66\u6821\u3002\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3001"
    "\uc548\ub155\ud558\uc138\uc694",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2192 \u221e \u2211 \u2014 \u2026 \u00a0 \u200b x\u00ady",
    "  leading, trailing   and     inner spaces   \r\n\r\n \t tab\u2028line ",
    "aaaaaaaaaaaaaaaaaaaaaaaa ======== ........ !!!??? CamelCaseWord snake_case_word ALLCAPS mIxEd",
)
"""Letters, digits, white space, code, scripts, signs, forms that normalisers change."""


@dataclass(frozen=True, slots=True)
class VocabularyMatch:
    """A teacher's tokenizer seen from a student's."""

    same: bool
    """The same ids for the same texts: ids of one are read by the other as they were meant."""
    reason: str
    """Where they part, in words; "" when they agree."""
    shared: int
    """Ids from 0 that stand for the same token in both; beyond are tokens that only one has, or padded rows."""
    notes: tuple[str, ...] = ()
    """What differs without harm, in words."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One tokenizer, read."""

    name: str
    tokenizer: Tokenizer
    tokens: dict[str, int]
    added: dict[int, Any]
    """Id -> tokenizers.AddedToken."""
    raw: dict[str, Any]


def match_vocabularies(
    student: Path, teacher: Path, *, texts: Iterable[str] = (), names: tuple[str, str] = ("student", "teacher")
) -> VocabularyMatch:
    """Hold the tokenizers of two Hugging Face folders against each other: ids and what they stand for, added tokens,
    merges, and how `SAMPLE_TEXTS`, `texts` and words of the vocabulary are cut.

    Tokens that only one side has are accepted where they lie behind all shared ones: a padded tail, or tokens added
    later. Whether data uses such a token is for `check_ids`. Raises EngineError `model.no_tokenizer` or
    `model.tokenizer_broken`.
    """
    ours, theirs = _side(student, names[0]), _side(teacher, names[1])
    shared = _shared(ours, theirs)
    if fingerprint(student) == fingerprint(teacher):
        return VocabularyMatch(True, "", shared)
    reason = _other_meaning(ours, theirs) or _other_merges(ours, theirs) or _other_cut(ours, theirs, shared, texts)
    return VocabularyMatch(not reason, reason, shared, () if reason else _notes(ours, theirs, shared))


def fingerprint(folder: Path) -> str:
    """SHA-256 of the tokenizer's file. Raises EngineError `model.no_tokenizer` where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        read_tokenizer(folder)  # says what is there instead
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_ids(largest: int, match: VocabularyMatch) -> None:
    """Refuse data with a token that only the student knows. Raises EngineError `distillation.token_unknown`."""
    if largest >= match.shared:
        raise EngineError(
            "distillation.token_unknown",
            f"The data uses token {largest:,}, which the teacher does not have: both know the first {match.shared:,}.",
            cause="The student's tokenizer has tokens that were added behind those of the teacher.",
            next_step='Choose a teacher with the same added tokens, or set distillation.tokenizers = "uld".',
        )


def _side(folder: Path, name: str) -> _Side:
    tokenizer = read_tokenizer(folder)
    raw = msgspec.json.decode((folder / "tokenizer.json").read_bytes())
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    return _Side(name, tokenizer, tokens, tokenizer.get_added_tokens_decoder(), raw)


def _shared(ours: _Side, theirs: _Side) -> int:
    """Up to where both have the same token at the same id."""
    by_id = {number: token for token, number in ours.tokens.items()}
    there = {number: token for token, number in theirs.tokens.items()}
    end = max(*by_id, *there, 0) + 1
    parted = (number for number in range(end) if by_id.get(number) != there.get(number))
    return next(parted, end)


def _other_meaning(ours: _Side, theirs: _Side) -> str:
    """Tokens at other ids, or missing in the middle of the vocabulary."""
    moved = [
        (number, token, theirs.tokens[token])
        for token, number in ours.tokens.items()
        if theirs.tokens.get(token, number) != number
    ]
    if moved:
        number, token, there = min(moved)
        return (
            f"{_tokens(moved)} have other ids: {_shown(token)} is {number:,} for the {ours.name} and {there:,} for "
            f"the {theirs.name}"
        )
    for one, other in ((ours, theirs), (theirs, ours)):
        inside = max(other.tokens.values(), default=-1)
        alone = sorted((number, token) for token, number in one.tokens.items() if token not in other.tokens)
        missing = [(number, token) for number, token in alone if number <= inside or number not in one.added]
        if missing:
            words = ", ".join(f"{_shown(token)} ({number:,})" for number, token in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
            return f"the {other.name} does not have {_tokens(missing)} of the {one.name}: {words}{more}"
    return ""


def _other_merges(ours: _Side, theirs: _Side) -> str:
    """Models of the same tokens that put them together in another order."""
    mine, other = ours.raw.get("model") or {}, theirs.raw.get("model") or {}
    kinds = _kind(mine), _kind(other)
    if kinds[0] != kinds[1]:
        return f"the {ours.name} cuts words by {kinds[0]}, the {theirs.name} by {kinds[1]}"
    first, second = _merges(mine), _merges(other)
    if first != second:
        place = next((n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), -1)
        if place < 0:
            return f"the {ours.name} merges {len(first):,} pairs, the {theirs.name} {len(second):,}"
        return f"their merges part at number {place + 1:,}: {_joined(first[place])} and {_joined(second[place])}"
    return ""


def _kind(model: dict[str, Any]) -> str:
    """The model's type; older files leave it out."""
    named = model.get("type")
    return str(named) if named else "BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordPiece"


def _merges(model: dict[str, Any]) -> list[tuple[str, ...]]:
    """Pairs, whether they are written "a b" or ["a", "b"]."""
    return [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges") or ()]


def _joined(pair: Sequence[str]) -> str:
    return " + ".join(map(_shown, pair))


def _other_cut(ours: _Side, theirs: _Side, shared: int, texts: Iterable[str]) -> str:
    """The first text that they cut into other ids. Tokens that only one has stay out: they cut by themselves."""
    alone = {
        token.content
        for side in (ours, theirs)
        for number, token in side.added.items()
        if number >= shared and token.content
    }
    for text in (*SAMPLE_TEXTS, *_marked(ours, shared), *_from_vocabulary(ours, shared), *texts):
        if any(token in text for token in alone):
            continue
        mine = ours.tokenizer.encode(text, add_special_tokens=False)
        other = theirs.tokenizer.encode(text, add_special_tokens=False)
        if mine.ids != other.ids:
            place = next((n for n, (a, b) in enumerate(zip(mine.ids, other.ids, strict=False)) if a != b), 0)
            rules = [name.replace("_", "-") for name in _PIECES if ours.raw.get(name) != theirs.raw.get(name)]
            differ = "differ" if len(rules) > 1 else "differs"
            why = f" (their {' and '.join(rules)} {differ})" if rules else ""
            return (
                f"they cut the same text in different ways{why}: {_around(mine.tokens, place)} by the {ours.name}, "
                f"{_around(other.tokens, place)} by the {theirs.name}"
            )
    return ""


def _marked(side: _Side, shared: int) -> list[str]:
    """Every shared added token between words, with and without spaces: their flags say what they swallow."""
    return [f"a {token.content} b{token.content}c" for number, token in side.added.items() if number < shared]


def _from_vocabulary(side: _Side, shared: int) -> list[str]:
    """Words of the vocabulary, evenly drawn, one behind the other in texts of 50."""
    step = max(shared // _WORDS_FROM_VOCABULARY, 1)
    words = [side.tokenizer.decode([number], skip_special_tokens=False) for number in range(0, shared, step)]
    kept = [word for word in words if word and "\ufffd" not in word]
    return ["".join(kept[start : start + 50]) for start in range(0, len(kept), 50)]


def _notes(ours: _Side, theirs: _Side, shared: int) -> tuple[str, ...]:
    found = []
    for one in (ours, theirs):
        beyond = sorted((number, token) for token, number in one.tokens.items() if number >= shared)
        if beyond:
            words = ", ".join(_shown(token) for _, token in beyond[:_SHOWN]) + (", ..." if len(beyond) > _SHOWN else "")
            found.append(f"only the {one.name} has {_tokens(beyond)} at the end of its vocabulary: {words}")
    return tuple(found)


def _tokens(found: Sequence[object]) -> str:
    return f"{len(found):,} token{'s' if len(found) > 1 else ''}"


def _around(tokens: Sequence[str], place: int) -> str:
    return "[" + " ".join(_shown(token) for token in tokens[place : place + _SHOWN]) + "]"


def _shown(token: str) -> str:
    """A token as people may read it, at most 24 characters."""
    text = token if token.isprintable() else ascii(token)[1:-1]
    return f'"{text if len(text) <= 24 else text[:21] + "..."}"'
