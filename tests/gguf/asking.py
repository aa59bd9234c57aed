"""Ask llama.cpp: the process that has llama-cpp-python, once for many files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Arrays = dict[str, np.ndarray[Any, Any]]


def need_llama_cpp() -> str:
    """The Python that has it; skips the test where there is none."""
    if "GGUF_PYTHON" not in os.environ and find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed; see `make test-gguf`")
    return os.environ.get("GGUF_PYTHON", sys.executable)


def ask(requests: list[dict[str, Any]], place: Path) -> Arrays:
    """The answers of `llama_logits.py`."""
    (place / "requests.json").write_text(json.dumps(requests))
    script = Path(__file__).with_name("llama_logits.py")
    ended = subprocess.run(
        [need_llama_cpp(), str(script), str(place / "requests.json"), str(place / "out.npz")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    with np.load(place / "out.npz") as results:
        return {name: results[name] for name in results.files}
