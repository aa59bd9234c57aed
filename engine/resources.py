"""Where the data files that ship with the program are: profiles and the embedded demo.

Owns the two layouts: a source checkout (`profiles/`, `assets/demo/` at the top level) and an installed wheel
(`engine/_data/`). Must not know what the files contain.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = _PACKAGE / "_data"


def profiles_dir() -> Path:
    """The folder of `gpus.toml`, `models.toml`, `questions.toml`, `approaches.toml` and `recipes/`."""
    bundled = _BUNDLED / "profiles"
    return bundled if bundled.is_dir() else _PACKAGE.parent / "profiles"


def demo_dir() -> Path:
    """The folder of the embedded demo: `model/`, `finetune/`, `prompts.json`."""
    bundled = _BUNDLED / "demo"
    return bundled if bundled.is_dir() else _PACKAGE.parent / "assets" / "demo"


def demo_model_dir() -> Path:
    """The embedded demo model, a plain Hugging Face folder."""
    return demo_dir() / "model"
