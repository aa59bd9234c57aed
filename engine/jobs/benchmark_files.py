"""Files that describe benchmarks in lm-eval's form, as far as text shows it.

Owns which values of `evaluation.tasks` are files, and what such a file defines. Must not import lm-eval, nor load YAML:
the files have tags that only lm-eval knows.
"""

from __future__ import annotations

import re
from pathlib import Path

SUFFIXES = (".yaml", ".yml")
INDEXED = ".yaml"
"""The only suffix of files in which lm-eval finds a group and its members by their names."""
_DEFINED = re.compile(r"^(task|group|tag):[ \t]*['\"]?([^'\"#\[\n]+)", re.MULTILINE)


def is_file(name: str) -> bool:
    """Whether a value of `evaluation.tasks` names a file and not a benchmark that lm-eval knows."""
    return name.endswith(SUFFIXES)


def defined_in(text: str) -> dict[str, str]:
    """ "task", "group" and "tag" that a file's text defines, by their names."""
    return {found[1]: found[2].strip() for found in _DEFINED.finditer(text) if found[2].strip()}


def group_of(name: str) -> str:
    """The group that a file defines; "" for a task's file, for a benchmark's name, and for what cannot be read."""
    path = Path(name)
    if not is_file(name) or not path.is_file():
        return ""
    return defined_in(path.read_text("utf-8", "replace")).get("group", "")
