"""The adapter as other tools want it: a plain peft folder with the tokenizer beside it, complete or not there.

Owns `output/adapter`. Must not know training or merging.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engine.adapters.origin import write_origin
from engine.jobs import layout
from engine.jobs.staged import staged
from engine.models.config import CONFIG_NAME
from engine.models.source import ModelRef

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
ADAPTER = "adapter"
MERGED = "merged"


def copy_tokenizer(source: Path, target: Path) -> None:
    """Tokenizer and chat template, byte for byte."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def save_adapter(
    run_dir: Path, model: Any, ref: ModelRef, *, extended: bool = False, values: dict[str, Any] | None = None
) -> Path:
    """Write `output/adapter`; returns it. A hub model is named by its id, so that the adapter loads anywhere. `values`:
    parameter name -> what it holds, where the model itself has only a share of it.

    `extended`: the adapter was trained for the config in `ref.path`, and is wrong on a base with another one. That
    folder is named as its base then, and the config lies beside the adapter, with a note that says so.
    """
    target = run_dir / layout.OUTPUT / ADAPTER
    config = model.peft_config[model.active_adapter]
    on_hub = bool(ref.repo_id) and not extended
    config.base_model_name_or_path = ref.repo_id if on_hub else str(ref.path)
    config.revision = (ref.commit or ref.revision or None) if on_hub else None
    with staged(target) as staging:
        model.save_pretrained(str(staging), save_embedding_layers=False, state_dict=values)
        (staging / "README.md").unlink(missing_ok=True)  # peft's template: empty headings only
        if ref.path is not None:
            copy_tokenizer(ref.path, staging)
            write_origin(staging, ref.path, name=ref.repo_id or ref.name, revision=ref.commit or ref.revision or "")
            if extended:
                _carry_config(ref, staging)
    return target


def _carry_config(ref: ModelRef, folder: Path) -> None:
    assert ref.path is not None
    shutil.copyfile(ref.path / CONFIG_NAME, folder / CONFIG_NAME)
    base = ref.repo_id or ref.name
    (folder / "README.md").write_text(_NOTE.format(base=base, folder=ref.path), encoding="utf-8")


_NOTE = """\
This adapter belongs to a longer window. It was trained on {base} under the config.json in this folder and is wrong
under the original one: put this config.json into a copy of the base before loading it there. `base_model_name_or_path`
names a folder where that is done ({folder}).

`scaler-wizard merge` makes a model folder that needs no such care.
"""


def folder_bytes(folder: Path) -> int:
    """Size of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
