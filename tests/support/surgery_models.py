"""Small Llama checkpoints written byte by byte, for tests of the surgery: no torch, any size, any type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from engine.expansion.axes import Dims
from engine.expansion.plan import ExpansionPlan
from engine.surgery import numbers
from engine.surgery.numbers import Array


def random_tensor(seed: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Normal values in the storage type."""
    values = np.random.default_rng(seed).normal(size=shape) * 0.1
    return numbers.to_stored(values, dtype)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, Array]]) -> Path:
    """A file with these (type, stored values), in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, values) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [position, position + values.nbytes],
        }
        position += values.nbytes
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for _, values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())
    return path


def read_safetensors(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes, read without the code under test."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    return {
        name: data[entry["data_offsets"][0] : entry["data_offsets"][1]]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every tensor of all weight files."""
    return {
        name: data for path in sorted(folder.glob("*.safetensors")) for name, data in read_safetensors(path).items()
    }


def llama_shapes(dims: Dims, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a Llama's tensors."""
    queries, keys = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (dims.vocab, dims.hidden)}
    for layer in range(dims.layers):
        start = f"model.layers.{layer}."
        shapes |= {
            f"{start}input_layernorm.weight": (dims.hidden,),
            f"{start}self_attn.q_proj.weight": (queries, dims.hidden),
            f"{start}self_attn.k_proj.weight": (keys, dims.hidden),
            f"{start}self_attn.v_proj.weight": (keys, dims.hidden),
            f"{start}self_attn.o_proj.weight": (dims.hidden, queries),
            f"{start}post_attention_layernorm.weight": (dims.hidden,),
            f"{start}mlp.gate_proj.weight": (dims.ffn, dims.hidden),
            f"{start}mlp.up_proj.weight": (dims.ffn, dims.hidden),
            f"{start}mlp.down_proj.weight": (dims.hidden, dims.ffn),
        }
    shapes["model.norm.weight"] = (dims.hidden,)
    if not tied:
        shapes["lm_head.weight"] = (dims.vocab, dims.hidden)
    return shapes


TINY = Dims(layers=3, hidden=32, ffn=64, heads=4, kv_heads=2, head_dim=8, vocab=96)


def write_llama(
    folder: Path, dims: Dims = TINY, *, dtype: str = "BF16", tied: bool = False, files: int = 2, **config: Any
) -> Path:
    """A whole model folder: config, weights in `files` files, a tokenizer that nobody opens."""
    folder.mkdir(parents=True)
    shapes = llama_shapes(dims, tied=tied)
    tensors = {name: (dtype, random_tensor(index, shape, dtype)) for index, (name, shape) in enumerate(shapes.items())}
    names = list(tensors)
    if files == 1:
        write_safetensors(folder / "model.safetensors", tensors)
    else:
        weight_map = {}
        for part in range(files):
            file = f"model-{part + 1:05d}-of-{files:05d}.safetensors"
            held = names[part * len(names) // files : (part + 1) * len(names) // files]
            write_safetensors(folder / file, {name: tensors[name] for name in held})
            weight_map |= dict.fromkeys(held, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    tree = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dims.hidden,
        "intermediate_size": dims.ffn, "num_hidden_layers": dims.layers, "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads, "head_dim": dims.head_dim, "vocab_size": dims.vocab,
        "tie_word_embeddings": tied, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}[dtype], **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(tree, indent=1))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("# a model\n")
    (folder / "modeling_evil.py").write_text("raise SystemExit\n")
    return folder


def plan_for(before: Dims, after: Dims, operators: dict[str, str], **others: Any) -> ExpansionPlan:
    """A plan of a Llama."""
    return ExpansionPlan("llama", before, after, operators, **others)
