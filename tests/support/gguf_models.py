"""Folders of small models of the families that GGUF files are written of, made with numpy alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from engine.resources import demo_model_dir
from engine.surgery.numbers import Array
from tests.gguf.piece_tokenizers import write_piece_tokenizer
from tests.support.surgery_models import random_tensor, write_safetensors

HIDDEN, FFN, HEADS, KEYS, HEAD, VOCABULARY = 64, 96, 4, 2, 16, 1220
CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}  # fmt: skip


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    """A config as transformers 5 writes it, as far as it is read."""
    tied = kind in ("gemma2", "gemma3_text")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    own: dict[str, dict[str, Any]] = {
        "mistral": {"sliding_window": None},
        "gemma2": {
            "sliding_window": 32, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh",
        },
        "gemma3_text": {
            "sliding_window": 32, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": {"sliding_attention": rope, "full_attention": rope | {"rope_theta": 1e6}},
        },
        "phi3": {"sliding_window": None},
    }  # fmt: skip
    return {
        "model_type": kind, "architectures": [CLASSES[kind]], "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "head_dim": HEAD,
        "vocab_size": VOCABULARY, "max_position_embeddings": 512, "tie_word_embeddings": tied, "rms_norm_eps": 1e-6,
        "rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2,
    } | own.get(kind, {}) | changes  # fmt: skip


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that transformers saves."""
    kind, hidden, ffn = config["model_type"], config["hidden_size"], config["intermediate_size"]
    queries, keys = config["num_attention_heads"] * HEAD, config["num_key_value_heads"] * HEAD
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        parts: dict[str, tuple[int, ...]] = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        if "gemma" in kind:
            parts |= {"pre_feedforward_layernorm": (hidden,), "post_feedforward_layernorm": (hidden,)}
        if kind == "phi3":
            parts |= {"self_attn.qkv_proj": (queries + 2 * keys, hidden), "mlp.gate_up_proj": (2 * ffn, hidden)}
        else:
            parts |= {"self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden)}
            parts |= {"self_attn.v_proj": (keys, hidden)}
            parts |= {"mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden)}
        if kind in ("qwen3", "gemma3_text"):
            parts |= {"self_attn.q_norm": (HEAD,), "self_attn.k_norm": (HEAD,)}
        parts |= {"self_attn.o_proj": (hidden, queries), "mlp.down_proj": (hidden, ffn)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
        if kind == "qwen2":
            shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.bias": shapes[
                f"model.layers.{layer}.self_attn.{name}_proj.weight"][:1] for name in "qkv"}  # fmt: skip
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def write_model(
    folder: Path, config: dict[str, Any], *, tokenizer: str = "demo", dtype: str = "F32"
) -> dict[str, Array]:
    """The folder; returns its tensors as stored. `tokenizer` is "demo" or a form of `piece_tokenizers`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: random_tensor(seed, shape, dtype) for seed, (name, shape) in enumerate(shapes_of(config).items())}
    write_safetensors(folder / "model.safetensors", {name: (dtype, values) for name, values in tensors.items()})
    if tokenizer == "demo":
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (demo_model_dir() / name).is_file():
                shutil.copy(demo_model_dir() / name, folder / name)
    else:
        write_piece_tokenizer(folder, tokenizer)
    return tensors
