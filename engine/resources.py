"""Where the data files that ship with the program are: profiles and the embedded demo.

Owns the two layouts: a source checkout (`profiles/`, `assets/demo/` at the top level) and an installed wheel
(`engine/_data/`). Must not know what the files contain.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = _PACKAGE / "_data"


def profiles_dir() -> Path:
    """The folder of `gpus.toml`, `models.toml`, `questions.toml`, `approaches.toml` and `recipes/`."""
    bundled = _BUNDLED / "profiles"
    return bundled if bundled.is_dir() else _PACKAGE.parent / "profiles"


@lru_cache(maxsize=1)
def demo_dir() -> Path:
    """The folder of the embedded demo: `model/`, `finetune/`, `long/`, `tasks/`, `prompts.json`."""
    bundled = _BUNDLED / "demo"
    return bundled if bundled.is_dir() else _PACKAGE.parent / "assets" / "demo"


def demo_model_dir() -> Path:
    """The embedded demo model, a plain Hugging Face folder."""
    return demo_dir() / "model"


def demo_rows_file(source: str, part: str) -> Path | None:
    """The embedded file that "demo" (short chats) or "demo-long" (documents of about 1,150 tokens) names for `part`:
    train, heldout or base_text. None for every other source."""
    if source == "demo":
        return demo_dir() / "finetune" / f"{part}.jsonl"
    if source == "demo-long":
        return demo_dir() / "long" / ("train.jsonl" if part == "train" else "heldout.jsonl")
    return None
