"""Adapters made without training: peft's own folders with random factors, for a model folder."""

from __future__ import annotations

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
