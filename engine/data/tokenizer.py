"""A model folder's tokenizer and chat template, without transformers.

Owns loading `tokenizer.json`, the special tokens and the template, and the calls that turn text into tokens. Must not
know rows, masks or reports. `tokenizers` and `jinja2` are imported when a tokenizer is loaded, not before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.data.chat_template import ChatTemplate, TemplateSource, find_template
from engine.data.rows import Message
from engine.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTokenizer:
    """Text and turns to tokens and back. Build it with `ChatTokenizer.load`."""

    def __init__(self, tokenizer: Tokenizer, source: TemplateSource, special: dict[str, str], now: datetime | None):
        self._tokenizer = tokenizer
        self._special = special
        self._affixes = _affixes(tokenizer)
        _without_affixes(tokenizer)
        self._template = ChatTemplate(source, special, now)
        self._shared_ids = list(range(tokenizer.get_vocab_size(with_added_tokens=True)))
        marked = {n: token.content for n, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.special_ids = frozenset(marked)
        self.special_texts = tuple(marked.values())
        self.bos_id = self.token_id(special.get("bos_token", ""))
        self.eos_id = self.token_id(special.get("eos_token", ""))
        pad_id = self.token_id(special.get("pad_token", ""))
        fallback = self.eos_id if self.eos_id is not None else 0
        self.pad_id = pad_id if pad_id is not None else fallback
        """Always usable for padding; equal to the end token where the model names no padding token."""

    @classmethod
    def load(cls, model_dir: Path, *, now: datetime | None = None) -> ChatTokenizer:
        """The tokenizer of a Hugging Face folder; `now` fixes the date for templates that print today's.

        Raises EngineError `model.no_tokenizer`, `model.tokenizer_broken` or `model.template_broken`.
        """
        tokenizer = read_tokenizer(model_dir)
        config = _read_json(model_dir / "tokenizer_config.json")
        legacy = _read_json(model_dir / "special_tokens_map.json")
        special = {}
        for name in _NAMED_TOKENS:
            text = _token_text(config.get(name)) or _token_text(legacy.get(name))
            if text:
                special[name] = text
        return cls(tokenizer, find_template(model_dir, config), special, now)

    @property
    def template(self) -> TemplateSource:
        """The chat template's text and where it came from."""
        return self._template.source

    @property
    def bos_token(self) -> str:
        return self._special.get("bos_token", "")

    @property
    def eos_token(self) -> str:
        return self._special.get("eos_token", "")

    def token_id(self, text: str) -> int | None:
        """The id of one exact token, None if there is no such token."""
        return self._tokenizer.token_to_id(text) if text else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The turns as text. Raises TemplateRefusal when the template does."""
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Encodings with offsets, and nothing added at either end."""
        return self._tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def encode_batch_fast(self, texts: Sequence[str]) -> list[Encoding]:
        """The same ids without offsets, for large amounts of text."""
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before plain text by itself."""
        return self._affixes

    @property
    def vocabulary(self) -> int:
        """Ids there are, added tokens included."""
        return len(self._shared_ids)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of rendered turns: nothing is added, the template wrote its own start and end."""
        return self.shared(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def chat_ids(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> tuple[int, ...]:
        """Ids of turns; equal to `apply_chat_template(..., tokenize=True)` of transformers."""
        return self.encode(self.render(messages, add_generation_prompt=add_generation_prompt))

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of plain text with the start token the tokenizer adds by itself, never two of them."""
        return self.with_start(self.encode(text))

    def with_start(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """`ids` behind the tokens that this tokenizer puts before plain text, unless they are there already."""
        start = self._affixes
        return ids if not start or ids[: len(start)] == start else start + ids

    def shared(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The ids as a tuple that shares its integers with every other row: 8 bytes a token, not 36."""
        return tuple(map(self._shared_ids.__getitem__, ids))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Texts, special tokens included."""
        return self._tokenizer.decode_batch([list(ids) for ids in batch], skip_special_tokens=False)

    def token_text(self, number: int) -> str:
        """One token as people may read it; a part of a character shows as the replacement character."""
        return self._tokenizer.decode([number], skip_special_tokens=False)


def _affixes(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer's own post-processor puts before plain text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if plain and full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


def _without_affixes(tokenizer: Tokenizer) -> None:
    """Turn the post-processor off: it would trim leading spaces off the offsets that masks are made from."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    tokenizer.no_truncation()
    tokenizer.no_padding()


def read_tokenizer(model_dir: Path) -> Tokenizer:
    """`tokenizer.json` of a folder as it is. Raises EngineError `model.no_tokenizer` or `model.tokenizer_broken`."""
    from tokenizers import Tokenizer

    path = model_dir / "tokenizer.json"
    if not path.is_file():
        other = next(
            (name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (model_dir / name).is_file()), ""
        )
        raise EngineError(
            "model.no_tokenizer",
            f"There is no tokenizer.json in {model_dir}.",
            cause=f"The folder has only {other}, an older form." if other else "",
            next_step="Save it with transformers' fast tokenizer, or pick a model that ships tokenizer.json.",
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every kind of damage
        raise EngineError(
            "model.tokenizer_broken",
            f"{path} cannot be read as a tokenizer.",
            cause=str(error),
            next_step="Download the file again.",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError("model.tokenizer_broken", f"{path} is not valid JSON.", cause=str(error)) from error
    return found if isinstance(found, dict) else {}


def _token_text(value: Any) -> str:
    """A special token is written as text or as an object with its text under "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
