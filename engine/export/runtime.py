"""The Python that has llama-cpp-python: this one, or the one that GGUF_PYTHON names.

Owns finding it and saying how to get it. Must not know what it is used for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "GGUF_PYTHON"
HOW_TO_GET = "pip install 'scaler-wizard[gguf]' (it may compile for minutes), or name a Python that has it: GGUF_PYTHON"
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SCRIPT = Path(__file__).with_name("llama_sayings.py")


@dataclass(frozen=True, slots=True)
class Runtime:
    """llama.cpp, ready to be asked."""

    python: str
    version: str


def without_tokens() -> dict[str, str]:
    """This process's environment for programs that have no business on the hub."""
    return {name: value for name, value in os.environ.items() if name not in HUB_TOKENS}


def find_runtime() -> Runtime | None:
    """None where it is not installed or does not start; see `why_none`."""
    return _probed(os.environ.get(VARIABLE, ""))[0]


def why_none() -> str:
    """Why there is no runtime, and how to get one; "" where there is one."""
    return _probed(os.environ.get(VARIABLE, ""))[1]


@lru_cache(maxsize=4)
def _probed(named: str) -> tuple[Runtime | None, str]:
    if not named and find_spec("llama_cpp") is None:
        return None, f"llama-cpp-python is not installed. Get it: {HOW_TO_GET}."
    python = named or sys.executable
    try:
        ended = subprocess.run(
            [python, str(_SCRIPT), "--version"],
            env=without_tokens(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{python} does not start ({error}). Get llama-cpp-python: {HOW_TO_GET}."
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        return None, f"{python} cannot load llama_cpp ({last[:200]}). Get it: {HOW_TO_GET}."
    return Runtime(python, ended.stdout.strip()), ""
