"""Which tokens end an answer: those that the model's files name, and the one that its chat template puts there.

Owns finding them. Must not know programs. A template that closes a turn with a token which no file calls an end (a
fine-tuned base model's usual fault) would run on for ever elsewhere; therefore the template is asked, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from engine.data.chat_template import TemplateRefusal
from engine.data.rows import Message
from engine.data.tokenizer import ChatTokenizer
from engine.models.config import CONFIG_NAME, read_json_object, text_part

_MARK = "QXJZ"


def stop_ids(folder: Path, tokenizer: ChatTokenizer) -> list[int]:
    """Ids, the template's own first, none twice. What is no row of the vocabulary is none of them: some configs say -1
    for no token."""
    found: list[int] = []
    rows = None
    turn_end = turn_end_id(tokenizer)
    if turn_end is not None:
        found.append(turn_end)
    for name in ("generation_config.json", CONFIG_NAME):
        if (folder / name).is_file():
            tree = read_json_object(folder / name, code="model.config_damaged", what="a model config")
            part = text_part(tree)[0]
            for said in (tree.get("eos_token_id"), part.get("eos_token_id")):
                found += [one for one in (said if isinstance(said, list) else [said]) if _is_id(one)]
            rows = part.get("vocab_size") if name == CONFIG_NAME else rows
    if tokenizer.eos_id is not None:
        found.append(tokenizer.eos_id)
    most = rows if _is_id(rows) else max(found, default=0) + 1
    return [one for one in dict.fromkeys(found) if 0 <= one < most]


def turn_end_id(tokenizer: ChatTokenizer) -> int | None:
    """The special token that the template puts right after an answer; None where it puts none, or takes no turns."""
    turns = (Message("user", _MARK + "U"), Message("assistant", _MARK + "A"))
    try:
        after = tokenizer.render(turns).rpartition(_MARK + "A")[2]
    except TemplateRefusal:
        return None
    ids = tokenizer.encode(after.lstrip())
    return ids[0] if ids and ids[0] in tokenizer.special_ids else None


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
