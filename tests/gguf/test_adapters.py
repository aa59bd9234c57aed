"""LoRA adapters as GGUF files: llama.cpp with base and adapter computes what peft computes.

Needs llama-cpp-python in the Python that the environment variable GGUF_PYTHON names (`make test-gguf`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gguf.asking import Arrays, ask, need_llama_cpp
from tests.gguf.families import FAMILIES, write_model

pytestmark = [pytest.mark.gguf, pytest.mark.slow]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
LARGEST_DIFFERENCE, LARGEST_GEMMA_DIFFERENCE = 2e-4, 0.01


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    family: str
    config: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = tuple(ALL)


CASES = (
    Case("plain", "llama 2"),
    Case("rank-stabilised", "llama 3", {"use_rslora": True}),
    Case("patterns", "llama 2", {
        "rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"v_proj": 32},
    }),
    Case("embedding and head", "llama 2", targets=("embed_tokens", "lm_head", "q_proj")),
    Case("pissa", "llama 2", {"init_lora_weights": "pissa"}),
    Case("olora", "qwen3", {"init_lora_weights": "olora"}),
    Case("gemma's folded scale", "gemma 2"),
    Case("fused matrices", "phi 3", targets=tuple(FUSED)),
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """By case: "CASE/logits" by llama.cpp, "CASE/expected" by peft, "CASE/base" without the adapter."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from engine.export.gguf import write_gguf
    from engine.export.gguf_adapter import write_gguf_adapter

    need_llama_cpp()
    place = tmp_path_factory.mktemp("adapters")
    ids = np.random.default_rng(0).integers(3, 900, 120).tolist()
    families, bases = {family.name: family for family in FAMILIES}, {}
    requests, expected = [], {}

    def loaded(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    def run(model: Any) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()

    for case in CASES:
        if case.family not in bases:
            bases[case.family] = write_model(families[case.family], place / f"base {case.family}")
            write_gguf(bases[case.family], place / f"base {case.family}.gguf", "f32")
        base, folder = bases[case.family], place / case.name
        torch.manual_seed(3)
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=list(case.targets), **case.config)
        model = get_peft_model(loaded(base), lora)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder, save_embedding_layers=False)
        out = place / f"{case.name}.gguf"
        write_gguf_adapter(folder, base, out)
        requests.append({
            "name": case.name, "model": str(place / f"base {case.family}.gguf"), "context": 128, "ids": ids,
            "lora": str(out),
        })  # fmt: skip
        again = PeftModel.from_pretrained(loaded(base), folder).eval()
        expected[f"{case.name}/expected"], expected[f"{case.name}/base"] = run(again), run(loaded(base).eval())
    return ask(requests, place) | expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_llama_cpp_computes_what_peft_computes(case: Case, measured: Arrays) -> None:
    expected, found = measured[f"{case.name}/expected"], measured[f"{case.name}/logits"]
    difference = np.abs(found - expected)
    print(f"\n{case.name}: largest difference {difference.max():.1e}, mean {difference.mean():.1e}")
    assert difference.max() < (LARGEST_GEMMA_DIFFERENCE if "gemma" in case.family else LARGEST_DIFFERENCE)
    assert np.abs(measured[f"{case.name}/base"] - expected).max() > 1
