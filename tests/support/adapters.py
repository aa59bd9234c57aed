"""Adapters made without training: peft's own folders with random factors, for a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def random_adapter(base: Path, out: Path, *, seed: int, size: float = 0.05, **config: Any) -> Path:
    """A LoRA (or what `config` makes of it) whose second factor is not zero, so that it changes answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    peft = get_peft_model(model, LoraConfig(**settings))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * size)
            elif "lora_magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=draw))
            elif "modules_to_save" in name and "original" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * size)
    peft.peft_config["default"].base_model_name_or_path = str(base)
    peft.save_pretrained(out)
    return out


def plain_adapter(base: Path, out: Path, *, seed: int, rank: int = 2, size: float = 0.05, named: str = "") -> Path:
    """Plain LoRA on every query and value projection, written without torch."""
    import numpy as np
    from safetensors.numpy import save_file

    from engine.models.headers import read_headers

    draw = np.random.default_rng(seed)
    tensors = {}
    for tensor in read_headers(base).tensors:
        if tensor.name.endswith(("q_proj.weight", "v_proj.weight")):
            outputs, inputs = tensor.shape
            name = f"base_model.model.{tensor.name.removesuffix('.weight')}"
            for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                drawn = draw.standard_normal(shape, dtype=np.float32)
                tensors[f"{name}.lora_{part}.weight"] = drawn * np.float32(size)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": named or str(base), "r": rank,
        "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"], "bias": "none", "inference_mode": True,
    }  # fmt: skip
    out.mkdir(parents=True)
    (out / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out
