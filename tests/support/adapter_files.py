"""Adapters and bases as files, made with numpy alone: for tests that need no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.adapters.folder import PREFIX

HIDDEN, WIDE, VOCABULARY = 12, 20, 16
Q0, Q1, DOWN1 = (f"model.layers.{place}" for place in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.down_proj"))
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    f"{Q0}.weight": (HIDDEN, HIDDEN),
    f"{Q0}.bias": (HIDDEN,),
    f"{Q1}.weight": (HIDDEN, HIDDEN),
    f"{Q1}.bias": (HIDDEN,),
    f"{DOWN1}.weight": (HIDDEN, WIDE),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCABULARY, HIDDEN),
}


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """float32 tensors in the order given."""
    entries: dict[str, Any] = {}
    content = b""
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values, dtype="<f4").tobytes()
        span = [len(content), len(content) + len(raw)]
        entries[name] = {"dtype": "F32", "shape": list(np.shape(values)), "data_offsets": span}
        content += raw
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)


def write_base(folder: Path, *, seed: int = 0, tied: bool = False, drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """A model's folder with a few tensors of a Llama; returns them."""
    draws = np.random.default_rng(seed)
    tensors = {name: draws.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    tensors = {name: values for name, values in tensors.items() if name not in drop}
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": VOCABULARY, "hidden_size": HIDDEN}))
    write_safetensors(folder / "model.safetensors", tensors)
    return tensors


def write_packed_base(folder: Path, *, seed: int = 0) -> None:
    """The same as bitsandbytes saves it: matrices in blocks flat, two numbers in a byte, scales beside them."""
    plain = write_base(folder, seed=seed)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, Any] = {}
    for name, values in plain.items():
        if "_proj.weight" in name:  # stored as float32, as bnb_4bit_quant_storage may say
            tensors |= {name: np.ones((values.size // 8, 1)), f"{name}.absmax": np.ones(3)}
        else:
            tensors[name] = values
    write_safetensors(folder / "model.safetensors", tensors)


def factors(module: str, rank: int, *, seed: int, size: float = 0.1) -> dict[str, Any]:
    """Random factors of one module."""
    outputs, inputs = SHAPES[f"{module}.weight"]
    draws = np.random.default_rng(seed)
    found = {
        f"{module}.lora_A.weight": draws.standard_normal((rank, inputs)) * size,
        f"{module}.lora_B.weight": draws.standard_normal((outputs, rank)) * size,
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


def write_adapter(folder: Path, tensors: Mapping[str, Any], base: Path | None = None, **config: Any) -> Path:
    """A peft folder; tensor names without peft's prefix."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none", **config}
    settings.setdefault("base_model_name_or_path", str(base) if base is not None else None)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    write_safetensors(folder / "adapter_model.safetensors", {f"{PREFIX}{name}": t for name, t in tensors.items()})
    return folder
