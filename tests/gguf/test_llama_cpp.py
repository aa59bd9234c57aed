"""Extended models as GGUF files: llama.cpp computes what transformers computes, beyond the old window too.

Needs llama-cpp-python in the Python that the environment variable GGUF_PYTHON names (`make test-gguf`), and the extra
`[gguf]` here. One process loads all files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.context.method import Options
from engine.context.planner import plan_context
from engine.resources import demo_model_dir, demo_rows_file

pytestmark = [pytest.mark.gguf, pytest.mark.slow]

TARGET = 1024
LONG_TOKENS, SHORT_TOKENS = 1000, 200
LARGEST_DIFFERENCE = 0.02
"""Of a logit; the demo's logits span about 40. Two orders of float32 summation differ by up to 3e-3."""
SPREAD = tuple(4.0 ** (pair / 15) for pair in range(16))
"""Divisors from 1 to 4, as a search may find them."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to extend a model, and how llama.cpp is to carry it."""

    name: str
    method: str
    options: Options = field(default_factory=Options)
    family: str = "demo"
    context: int = TARGET
    """Asked of llama.cpp; longrope's factors are picked by it."""
    tokens: int = LONG_TOKENS


YARN_M = Options(attention_factor=1.3)
SWITCHING = Options(long_divisors=SPREAD, short_divisors=(1.0,) * 16)
CASES = (
    Case("linear", "linear"),
    Case("ntk", "ntk"),
    Case("ntk at the critical pair", "ntk-critical"),
    Case("abf", "abf"),
    Case("by-parts", "by-parts"),
    Case("yarn", "yarn"),
    Case("yarn, own m", "yarn", YARN_M),
    Case("yarn, own ramp", "yarn", Options(beta_fast=16.0, beta_slow=2.0)),
    Case("yarn, ramp not rounded", "yarn", Options(truncate=False)),
    Case("llama3", "llama3"),
    Case("longrope, one set", "longrope", Options(long_divisors=SPREAD)),
    Case("longrope, long set", "longrope", SWITCHING),
    Case("longrope, short set", "longrope", SWITCHING, context=256, tokens=SHORT_TOKENS),
    Case("qwen2, yarn with own m", "yarn", YARN_M, family="qwen2"),
    Case("qwen2, ntk", "ntk", family="qwen2"),
    Case("qwen3, yarn", "yarn", family="qwen3"),
    Case("qwen3, linear", "linear", family="qwen3"),
)


@cache
def document() -> str:
    path = demo_rows_file("demo-long", "heldout")
    assert path is not None
    return json.loads(path.read_text().splitlines()[0])["text"]


@cache
def document_ids() -> list[int]:
    from engine.data.tokenizer import ChatTokenizer

    return list(ChatTokenizer.load(demo_model_dir()).encode(document()))


def source_model(family: str, place: Path) -> Path:
    """The demo; or a small model of the family with random weights and the demo's tokenizer."""
    if family == "demo":
        return demo_model_dir()
    folder = place / family
    if folder.exists():
        return folder
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1216, "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "layer_types": ["full_attention"] * 3,
    }  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms must matter, and attention must look around
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 0.1))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_model_dir() / name, folder / name)
    return folder


def extended(case: Case, place: Path) -> Path:
    from engine.extension.folder import write_extended

    source = source_model(case.family, place)
    folder = place / f"{case.name.replace(' ', '-')}-{case.context}"
    config = json.loads((source / "config.json").read_text())
    write_extended(source, folder, plan_context(config, TARGET, case.method, case.options), links="symbolic")
    return folder


def transformers_logits(folder: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()  # (T, V)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray[Any, Any]]:
    """Logits by case, "CASE/logits" by llama.cpp and "CASE/expected" by transformers."""
    if "GGUF_PYTHON" not in os.environ and find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed; see `make test-gguf`")
    from engine.export.gguf import write_gguf

    place = tmp_path_factory.mktemp("gguf")
    requests, expected = [], {}
    for case in CASES:
        folder = extended(case, place)
        out = place / f"{folder.name}.gguf"
        write_gguf(folder, out, "f32")
        ids = document_ids()[: case.tokens]
        requests.append({
            "name": case.name, "model": str(out), "context": case.context, "ids": ids, "texts": [document()],
        })  # fmt: skip
        expected[f"{case.name}/expected"] = transformers_logits(folder, ids)
    (place / "requests.json").write_text(json.dumps(requests))
    python = os.environ.get("GGUF_PYTHON", sys.executable)
    script = Path(__file__).with_name("llama_logits.py")
    ended = subprocess.run(
        [python, str(script), str(place / "requests.json"), str(place / "out.npz")], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    with np.load(place / "out.npz") as results:
        return expected | {name: results[name] for name in results.files}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_llama_cpp_computes_what_transformers_computes(case: Case, measured: dict[str, Any]) -> None:
    expected, found = measured[f"{case.name}/expected"], measured[f"{case.name}/logits"]
    assert found.shape == expected.shape == (case.tokens, 1216)
    difference = np.abs(found - expected)
    agreement = float((found.argmax(-1) == expected.argmax(-1)).mean())
    print(f"\n{case.name}: largest difference {difference.max():.1e}, mean {difference.mean():.1e}, "
          f"same first token {agreement:.1%}")  # fmt: skip
    assert difference.max() < LARGEST_DIFFERENCE
    assert agreement >= 0.995


def test_token_ids_are_the_same(measured: dict[str, Any]) -> None:
    assert measured["linear/prompt/0"].tolist() == document_ids()


@pytest.mark.parametrize("family", ["demo", "qwen2", "qwen3"])
def test_every_scaling_differs_from_every_other_beyond_the_old_window(family: str, measured: dict[str, Any]) -> None:
    """Else agreement would say nothing about the rotary part. The two longrope files have the same long factors."""
    cases = [case for case in CASES if case.family == family and case.tokens == LONG_TOKENS]
    rows = [measured[f"{case.name}/logits"][256:] for case in cases if case.name != "longrope, one set"]
    assert len(rows) > 1
    for index, one in enumerate(rows):
        for other in rows[:index]:
            assert np.abs(one - other).max() > 10 * LARGEST_DIFFERENCE
