"""Special tokens of a GGUF file: where text starts, and everything at which an answer ends.

Owns which tokens llama.cpp takes for the end of generation by their text, and the three keys for others. Must not know
how text is split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.context.gguf_support import Finding
from engine.data.tokenizer import ChatTokenizer
from engine.export.stops import stop_ids
from engine.models.config import read_json_object, text_part

ENDS_BY_TEXT = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>"),
        *("_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>"),
    }
)
"""Tokens of these texts end generation whatever the file says (llama-cpp-python 0.3.36)."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids by llama.cpp's keys; None writes none."""

    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    """A second token at which an answer ends, that llama.cpp does not know by its text ..."""
    eom_id: int | None
    """... and a third."""
    pad_id: int | None
    unk_id: int | None
    adds_bos: bool
    """Whether plain text begins with the start token."""
    adds_eos: bool
    stops: tuple[int, ...]
    """Everything at which an answer ends, the end token first."""
    findings: tuple[Finding, ...] = ()


def special_tokens(folder: Path, chat: ChatTokenizer, tree: Mapping[str, Any], rows: int) -> SpecialTokens:
    """The special tokens of a model folder, or of a tokenizer by itself, as adapters have it; `rows` ids there are."""
    path = folder / "config.json"
    config: Mapping[str, Any] = {}
    if path.is_file():
        config = text_part(read_json_object(path, code="model.config_damaged", what="a model config"))[0]
    end = _in_range(chat.eos_id, rows)
    known = [number for number in stop_ids(folder, chat) if number < rows]
    stops = tuple(dict.fromkeys([*([end] if end is not None else []), *known]))
    unlisted = _unlisted(stops, chat)
    lost = ", ".join(repr(chat.token_text(number)) for number in unlisted[2:])
    finding = Finding(
        "export.stops", False, f"llama.cpp does not stop at {lost}.", "A file names three tokens.",
        "Give them to the program as stop texts.",
    )  # fmt: skip
    start = chat.with_start(())
    bos = chat.bos_id if chat.bos_id is not None else _in_range(config.get("bos_token_id"), rows)
    unk = (tree.get("model") or {}).get("unk_token")
    return SpecialTokens(
        bos_id=bos,
        eos_id=stops[0] if stops else None,
        eot_id=unlisted[0] if unlisted else None,
        eom_id=unlisted[1] if len(unlisted) > 1 else None,
        pad_id=_in_range(chat.pad_id, rows),
        unk_id=chat.token_id(unk) if isinstance(unk, str) else None,
        adds_bos=bool(start) and start == (chat.bos_id,),
        adds_eos=chat.eos_token != "" and chat.eos_token in _appended(tree.get("post_processor")),
        stops=stops,
        findings=(finding,) if lost else (),
    )


def unnamed_stops(stops: Sequence[int], chat: ChatTokenizer) -> tuple[int, ...]:
    """Those of a model's stop tokens for which a file has no key."""
    end = [chat.eos_id] if chat.eos_id is not None else []
    return tuple(_unlisted(list(dict.fromkeys([*end, *stops])), chat)[2:])


def _unlisted(stops: Sequence[int], chat: ChatTokenizer) -> list[int]:
    """Those behind the first, which has a key, that llama.cpp does not know by their text."""
    return [number for number in stops[1:] if chat.token_text(number) not in ENDS_BY_TEXT]


def _in_range(number: Any, rows: int) -> int | None:
    return number if isinstance(number, int) and 0 <= number < rows else None


def _appended(processor: Any) -> tuple[str, ...]:
    """Special tokens that a post-processor puts behind text."""
    if not isinstance(processor, dict):
        return ()
    if processor.get("type") == "Sequence":
        return tuple(text for part in processor.get("processors", ()) for text in _appended(part))
    items = processor.get("single") or ()
    places = [index for index, item in enumerate(items) if "Sequence" in item]
    behind = items[places[-1] + 1 :] if places else ()
    return tuple(item["SpecialToken"]["id"] for item in behind if "SpecialToken" in item)
