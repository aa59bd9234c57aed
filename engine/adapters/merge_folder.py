"""Everything of a merged model that is not weights: config, tokenizer, chat template, generation settings.

Owns where each comes from. Must not know tensors. The base's files go along; a tokenizer that lies beside an adapter
takes the place of the base's as a whole, and so does a config that belongs to a longer window.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.expansion.config_splice import DTYPE_KEYS
from engine.jobs.layout import write_atomic
from engine.models.config import CONFIG_NAME, read_json_object, text_part
from engine.surgery.carry import carry_over

_TOKENIZER = (
    "tokenizer*.json", "tokenizer*.model", "*.tiktoken", "spiece.model", "sentencepiece*.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template*",
)  # fmt: skip
_WHOLE_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_GENERATION = "generation_config.json"
_SAME = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True, slots=True)
class Said:
    """What the merged config says otherwise."""

    unties: bool = False
    vocabulary: int = 0
    dtype: str = ""
    """ "bfloat16", ..., or "" where every tensor kept its type."""


def own_config(adapter: Path, base: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config that lies beside an adapter, which it was trained under; None where there is none.

    Raises EngineError `merge.other_config` where it is not of the base's shape.
    """
    path = adapter / CONFIG_NAME
    if not path.is_file():
        return None
    found = read_json_object(path, code="merge.other_config", what="an adapter's own config")
    mine, theirs = text_part(found)[0], text_part(dict(base))[0]
    other = [key for key in _SAME if mine.get(key) != theirs.get(key)]
    if other:
        raise EngineError(
            "merge.other_config",
            f"{path} belongs to another model than the base.",
            cause=f"{other[0]} is {mine.get(other[0])} there and {theirs.get(other[0])} in the base.",
            next_step="Name the right base with --base, or remove that config.json.",
        )
    found.pop("quantization_config", None)  # how the base was loaded to train; the merged model is not
    return found


def config_after(config: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """The merged model's config: `config` with what changed."""
    tree = json.loads(json.dumps(config))
    parts = [tree, *(value for key, value in tree.items() if key.endswith("_config") and isinstance(value, dict))]
    text = next((part for part in parts[1:] if "vocab_size" in part), tree)
    if said.unties:
        for part in parts:
            if "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
        tree["tie_word_embeddings"] = False
    if said.vocabulary:
        text["vocab_size"] = said.vocabulary
    if said.dtype:
        known = [(part, key) for part in parts for key in DTYPE_KEYS if part.get(key)]
        for part, key in known or [(tree, DTYPE_KEYS[1])]:
            part[key] = said.dtype
    return dict(tree)


def write_small_files(
    folder: Path, base: Path, config: tuple[Mapping[str, Any], Path], said: Said, beside: Path | None
) -> list[str]:
    """Config (as a tree, and the file it was read from), tokenizer and what else goes along; returns their names.
    `beside`: the adapter's folder, where its tokenizer is to be taken."""
    names = set(carry_over(base, folder))
    tree, path = config
    after = config_after(tree, said)
    if after == read_json_object(path, code="model.config", what="a config"):
        shutil.copyfile(path, folder / CONFIG_NAME)  # as it is, to the byte
    else:
        write_atomic(folder / CONFIG_NAME, (json.dumps(after, indent=2, ensure_ascii=False) + "\n").encode())
    if beside is not None and has_tokenizer(beside):
        templates = _has_template(beside)
        for name in [name for name in names if _of_tokenizer(name) and (templates or not _of_template(name))]:
            (folder / name).unlink()
            names.discard(name)
        for found in sorted(beside.iterdir()):
            if found.is_file() and _of_tokenizer(found.name):
                shutil.copyfile(found, folder / found.name)
                names.add(found.name)
    if beside is not None and (beside / _GENERATION).is_file():
        shutil.copyfile(beside / _GENERATION, folder / _GENERATION)
        names.add(_GENERATION)
    return [CONFIG_NAME, *sorted(names - {CONFIG_NAME})]


def taken_from(beside: Path) -> list[Path]:
    """The small files that go along from an adapter's folder."""
    tokenizer = has_tokenizer(beside)
    return [
        path
        for path in sorted(beside.iterdir())
        if path.is_file() and (path.name == _GENERATION or (tokenizer and _of_tokenizer(path.name)))
    ]


def has_tokenizer(folder: Path) -> bool:
    """Whether a whole tokenizer lies there."""
    return any((folder / name).is_file() for name in _WHOLE_TOKENIZER)


def _has_template(folder: Path) -> bool:
    """Whether a tokenizer comes with a chat template of its own, in a file or in its settings."""
    if any(_of_template(path.name) for path in folder.iterdir()):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and b'"chat_template"' in settings.read_bytes()


def _of_template(name: str) -> bool:
    return fnmatch.fnmatchcase(name, "chat_template*")


def _of_tokenizer(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _TOKENIZER)
