"""Small models with random weights of every family that is exported, with a tokenizer of the family's kind."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.resources import demo_model_dir
from tests.gguf.piece_tokenizers import write_piece_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + "
    "'<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class Family:
    """A model to build. `sizes` are added to the common ones."""

    name: str
    kind: str
    tokenizer: str
    """A form of `piece_tokenizers`, "demo", or "qwen": the demo's with Qwen's splitting rule."""
    sizes: dict[str, Any] = field(default_factory=dict)
    template: str = ""


_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA3 = _ROPE | {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 4.0,
    "original_max_position_embeddings": 128, "long_factor": [1.0, 1.5, 2.5, 4.0], "short_factor": [1.0, 1.0, 1.1, 1.2],
}  # fmt: skip
_YARN = _ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
_GEMMA3 = {"sliding_attention": _ROPE, "full_attention": _ROPE | {"rope_theta": 1e6}}
_TWISTED = ["full_attention", "sliding_attention", "sliding_attention"] * 3
FAMILIES = (
    Family("llama 2", "llama", "llama", template=INST),
    Family("llama 3", "llama", "demo", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}, CHATML),
    Family("llama, biases", "llama", "demo", {"attention_bias": True, "mlp_bias": True}),
    Family("mistral", "mistral", "mistral", {"sliding_window": None}, INST),
    Family("mistral, within its window", "mistral", "llama", {"sliding_window": 256}, INST),
    Family("qwen2", "qwen2", "qwen", {"num_key_value_heads": 4}, CHATML),
    Family("qwen3", "qwen3", "qwen", {"head_dim": 24, "tie_word_embeddings": True}, CHATML),
    Family("gemma 2", "gemma2", "gemma", {"sliding_window": 32, "query_pre_attn_scalar": 20}, GEMMA),
    Family("gemma 2, no caps", "gemma2", "gemma", {
        "sliding_window": 32, "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "num_hidden_layers": 9, "layer_types": _TWISTED,
    }, GEMMA),
    Family("gemma 2, yarn with an m of its own", "gemma2", "gemma", {
        "sliding_window": 32, "rope_parameters": _YARN | {"attention_factor": 1.3},
    }, GEMMA),
    Family("gemma 3, yarn", "gemma3_text", "gemma", {
        "num_hidden_layers": 7, "sliding_window": 32, "rope_parameters": _GEMMA3 | {"full_attention": _YARN},
    }, GEMMA),
    Family("gemma 3", "gemma3_text", "gemma", {
        "num_hidden_layers": 7, "sliding_window": 32, "rope_parameters": _GEMMA3, "query_pre_attn_scalar": 20,
    }, GEMMA),
    Family("gemma 3, other layers", "gemma3_text", "gemma", {
        "num_hidden_layers": 9, "layer_types": _TWISTED, "sliding_window": 32, "tie_word_embeddings": False,
        "rope_parameters": _GEMMA3 | {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}},
    }, GEMMA),
    Family("phi 3", "phi3", "phi3", template=PHI),
    Family("phi 3, longrope", "phi3", "phi3", {
        "rope_parameters": _LONGROPE, "max_position_embeddings": 512, "original_max_position_embeddings": 128,
    }, PHI),
)  # fmt: skip


def write_tokenizer(family: Family, folder: Path) -> int:
    """The tokenizer files; how many tokens there are."""
    if family.tokenizer not in ("demo", "qwen"):
        return write_piece_tokenizer(folder, family.tokenizer, family.template)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model_dir() / name, folder / name)
    if family.template:
        (folder / "chat_template.jinja").write_text(family.template)
    if family.tokenizer == "qwen":
        from engine.export.gguf_tokenizer import SPLITS

        tree = json.loads((folder / "tokenizer.json").read_text())
        regex = next(text for text, names in SPLITS.items() if names[0] == "qwen2")
        tree["normalizer"] = {"type": "NFC"}
        tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ]}  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(tree))
    return 1216


def write_model(family: Family, folder: Path) -> Path:
    """The whole model folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    tokens = write_tokenizer(family, folder)
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": tokens + 5, "max_position_embeddings": 512,
        "rope_parameters": _ROPE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    } | family.sizes  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.kind, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms must matter, and attention must look around
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 0.1))
    model.save_pretrained(folder)
    return folder
