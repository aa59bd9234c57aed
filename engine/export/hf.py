"""A clean model folder for transformers, vLLM and whatever else reads safetensors: weights, config, tokenizer, card.

Owns which files it holds. Must not know verification or pushing. Weights are linked where the disk allows it: the
folder costs kilobytes then.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from engine.export.staging import place, require_room
from engine.extension.folder import copied_bytes, weight_files
from engine.jobs.layout import write_atomic
from engine.models.config import CONFIG_NAME, read_json_object
from engine.surgery.carry import SOURCE_README, companions

README = "README.md"


def write_folder(source: Path, target: Path) -> None:
    """Everything of `source` that a stock loader needs, in `target`; what is there already stays. Python files and
    what names them, optimizer states and this program's own records stay behind. Raises EngineError `safetensors.*`,
    `model.config_damaged`, `disk.full`."""
    target.mkdir(parents=True, exist_ok=True)
    require_room(target, copied_bytes(source, target, "hard"), "The copy of the weights")
    for path, name in weight_files(source):
        place(path, target / name)
    config = read_json_object(source / CONFIG_NAME, code="model.config_damaged", what="a model config")
    config.pop("auto_map", None)  # names Python files that stay behind; the built-in class is used
    config.pop("_name_or_path", None)  # a path of this machine, or the base's name: the card says it
    write_atomic(target / CONFIG_NAME, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
    for path, name in companions(source):
        if name != SOURCE_README:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)


def write_card(target: Path, text: str, licences: tuple[Path, ...]) -> None:
    """README.md, and licence texts that the source did not bring itself."""
    for file in licences:
        if not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    write_atomic(target / README, text.encode())
