"""Loads the questions of one skill from the folder beside this file; lm-eval calls `load`.

Owns reading them. A path relative to this file, because lm-eval takes those in a task's yaml relative to wherever it
was started.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets


def load(skill: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The only split; lm-eval hands over a task's metadata too."""
    file = Path(__file__).parent / "questions" / f"{skill}.jsonl"
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in file.open(encoding="utf-8")])}
