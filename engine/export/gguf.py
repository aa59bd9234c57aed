"""A model folder as one GGUF file that llama.cpp loads, with its rotary scaling whole or refused.

Owns the order of things and the keys of the file. Must not know torch. The `gguf` package writes the container; it is
the extra `[gguf]` and imported when a file is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.export.gguf_rope import GgufRope, rope_for_gguf
from engine.export.gguf_tokenizer import GgufTokenizer, tokenizer_for_gguf
from engine.export.gguf_weights import TYPES, OutTensor, tensors_for_gguf
from engine.models.config import ConfigReader
from engine.models.folder import check_folder
from engine.models.shape import Shape, read_shape

_GRAPHS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type -> llama.cpp's graph."""
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""`general.file_type`."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What was written."""

    path: Path
    size_bytes: int
    graph: str
    stored: str
    rope: GgufRope


@dataclass(frozen=True, slots=True)
class _Content:
    """A file before it is written."""

    name: str
    graph: str
    stored: str
    shape: Shape
    norm_epsilon: float
    rope: GgufRope
    tokenizer: GgufTokenizer
    tensors: tuple[OutTensor, ...]


def write_gguf(folder: Path, out: Path, stored: str = "") -> GgufFile:
    """Write the model of `folder` to `out`; `stored` is f32, f16 or bf16, "" keeps the weights' own type.

    Raises EngineError: `model.*` for the folder, `export.*` for what llama.cpp would compute differently, an existing
    file, or a missing `gguf` package. `out` appears when it is complete.
    """
    if out.exists():
        raise EngineError("export.exists", f"{out} exists already.", next_step="Choose another name, or remove it.")
    content = _content(folder, stored)
    writer_class = _writer_class()
    partial = out.with_name(f".{out.name}.partial")
    try:
        _write(writer_class(partial, content.graph), content)
        partial.rename(out)
    except OSError as error:
        raise EngineError(
            "export.write",
            f"{out} cannot be written.",
            cause=error.strerror or str(error),
            next_step="Check the folder, its permissions and the space left.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return GgufFile(out, out.stat().st_size, content.graph, content.stored, content.rope)


def _content(folder: Path, stored: str) -> _Content:
    config = check_folder(folder)
    model_type = str(config.get("model_type"))
    graph = _GRAPHS.get(model_type)
    if graph is None:
        raise EngineError(
            "export.family",
            f"Models of type '{model_type}' are not exported here; known are {', '.join(_GRAPHS)}.",
            next_step="Use llama.cpp's own convert_hf_to_gguf.py.",
        )
    _refuse_local(config)
    shape = read_shape(config, str(folder / "config.json"))
    rope = rope_for_gguf(config, takes_divisors=graph == "llama")
    if rope.dim != shape.head_dim:
        raise EngineError("export.rope_partial", "Heads that are rotated in part are not exported for this family.")
    chosen = TYPES.get(stored) or _own_type(folder, shape)
    return _Content(
        name=folder.resolve().name,
        graph=graph,
        stored=chosen,
        shape=shape,
        norm_epsilon=ConfigReader(config, "config.json").number("rms_norm_eps", default=1e-6),
        rope=rope,
        tokenizer=tokenizer_for_gguf(folder, shape.vocabulary),
        tensors=tensors_for_gguf(folder, shape, chosen, interleave=graph == "llama"),
    )


def _own_type(folder: Path, shape: Shape) -> str:
    """The type that most bytes of matrices have."""
    totals: dict[str, int] = {}
    for tensor in tensors_for_gguf(folder, shape, "F32", interleave=False):
        totals[tensor.source.dtype] = totals.get(tensor.source.dtype, 0) + tensor.source.data_bytes
    return max(totals, key=lambda name: totals[name])


def _refuse_local(config: Mapping[str, Any]) -> None:
    windowed = config.get("sliding_window") and config.get("use_sliding_window", config.get("model_type") == "mistral")
    if windowed:
        raise EngineError(
            "export.sliding_window",
            "This model attends within a sliding window, which llama.cpp's graph of it does not.",
            next_step="Export it without sliding_window in its config if its texts stay shorter than the window.",
        )
    if config.get("hidden_act", "silu") != "silu":
        raise EngineError("export.activation", f"llama.cpp's graph has silu, this model {config['hidden_act']}.")


def _writer_class() -> Any:
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise EngineError(
            "export.no_gguf",
            "Writing GGUF files needs the gguf package.",
            next_step="Install it: pip install 'scaler-wizard[gguf]'",
        ) from error
    return GGUFWriter


def _write(writer: Any, content: _Content) -> None:
    from gguf import GGMLQuantizationType

    try:
        _add_sizes(writer, content)
        _add_rope(writer, content.rope)
        _add_tokenizer(writer, content.tokenizer)
        rope = [(name, np.array(values, dtype=np.float32)) for name, values in content.rope.tensors]
        for name, values in rope:
            writer.add_tensor_info(f"{name}.weight", values.shape, values.dtype, values.nbytes)
        for tensor in content.tensors:
            stored = np.dtype(np.float16 if tensor.stored == "F16" else np.float32)
            writer.add_tensor_info(
                tensor.name,
                tensor.source.shape,
                stored,
                tensor.data_bytes,
                raw_dtype=GGMLQuantizationType[tensor.stored],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in rope:
            writer.write_tensor_data(values)
        for tensor in content.tensors:
            writer.write_tensor_data(tensor.read())
        for stream in writer.fout:
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        writer.close()


def _add_sizes(writer: Any, content: _Content) -> None:
    shape = content.shape
    writer.add_name(content.name)
    writer.add_file_type(_FILE_TYPES[content.stored])
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(content.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)


def _add_rope(writer: Any, rope: GgufRope) -> None:
    from gguf import RopeScalingType

    writer.add_rope_dimension_count(rope.dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind:
        writer.add_rope_scaling_type(RopeScalingType(rope.kind))
    if rope.factor:
        writer.add_rope_scaling_factor(rope.factor)
    if rope.original:
        writer.add_rope_scaling_orig_ctx_len(rope.original)
    if rope.attn_factor != 1:
        writer.add_rope_scaling_attn_factors(rope.attn_factor)


def _add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.splitting)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.types))
    writer.add_token_merges(list(tokenizer.merges))
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    if tokenizer.eos_id is not None:
        writer.add_eos_token_id(tokenizer.eos_id)
    if tokenizer.pad_id is not None:
        writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(tokenizer.adds_bos)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
