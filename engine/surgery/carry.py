"""Everything of a model folder that is not weights: what goes along into the larger model.

Owns the list of names. Must not know configs. Tokenizer, chat template, generation settings and licences go along as
they are; the README becomes SOURCE_README.md, because it describes the source; code, pickles, other formats' weights
and the source's index stay behind.
"""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path

_ALONG = (
    "tokenizer*.json", "tokenizer*.model", "tokenizer.*", "*.tiktoken", "spiece.model", "sentencepiece*.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template*",
    "generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*", "*acceptable_use*",
)  # fmt: skip
_BEHIND = ("*.py", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.index.json")
_FOLDERS = ("additional_chat_templates",)
_LARGEST_BYTES = 256 << 20
SOURCE_README = "SOURCE_README.md"


def companions(source: Path) -> tuple[tuple[Path, str], ...]:
    """(file, name in the output) of everything that goes along."""
    found: list[tuple[Path, str]] = []
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name in _FOLDERS:
            found.extend((inner, f"{path.name}/{inner.name}") for inner in sorted(path.glob("*.jinja")))
        elif path.is_file() and path.name.lower() == "readme.md":
            found.append((path, SOURCE_README))
        elif path.is_file() and _goes_along(path):
            found.append((path, path.name))
    return tuple(found)


def carry_over(source: Path, folder: Path) -> tuple[str, ...]:
    """Copy the companions; returns their names."""
    names = []
    for path, name in companions(source):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        names.append(name)
    return tuple(names)


def _goes_along(path: Path) -> bool:
    name = path.name
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _BEHIND):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _ALONG) and path.stat().st_size <= _LARGEST_BYTES
