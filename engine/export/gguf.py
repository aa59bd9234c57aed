"""A model folder as one GGUF file that llama.cpp loads and computes alike, or a refusal.

Owns the order of things. Must not know torch. The `gguf` package writes the container; it is imported when a file is
written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.context.gguf_graphs import Graph
from engine.context.gguf_rope import GgufRope
from engine.context.gguf_support import Finding, exact_context, graph_of, rope_of, what_is_lost
from engine.errors import EngineError
from engine.export.gguf_keys import add_model, add_rope, add_tokenizer, name_for
from engine.export.gguf_tokenizer import GgufTokenizer, tokenizer_for_gguf
from engine.export.gguf_weights import TYPES, OutTensor, Streamed, tensors_for_gguf
from engine.export.one_file import check_target, whole_file
from engine.models.config import text_part
from engine.models.folder import check_folder
from engine.models.shape import Shape, read_shape

OnProgress = Callable[[int, int], None]
"""Bytes of weights written, and of all."""
_KEY_BYTES = 64
"""Of one token's text, type, score and merge in the file's head, roughly."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What was written."""

    path: Path
    size_bytes: int
    graph: str
    stored: str
    """F32, F16, BF16 or Q8_0: the type of the matrices."""
    rope: GgufRope
    context_length: int
    """Tokens within which llama.cpp computes what the model computes."""
    stops: tuple[int, ...]
    """Tokens at which it ends an answer."""
    findings: tuple[Finding, ...]
    """What is right in part only."""


@dataclass(frozen=True, slots=True)
class _Model:
    """What a file will hold beside its tokenizer."""

    graph: Graph
    stored: str
    shape: Shape
    config: dict[str, Any]
    rope: GgufRope
    tensors: tuple[OutTensor, ...]
    findings: tuple[Finding, ...]

    @property
    def data_bytes(self) -> int:
        return sum(tensor.data_bytes for tensor in self.tensors)

    @property
    def needed_bytes(self) -> int:
        """On disk, with room for the head and the padding."""
        return self.data_bytes + _KEY_BYTES * self.shape.vocabulary + 4096 + 256 * len(self.tensors)


def write_gguf(
    folder: Path,
    out: Path,
    stored: str = "",
    *,
    force: bool = False,
    name: str = "",
    chat_template: str | None = None,
    on_progress: OnProgress | None = None,
) -> GgufFile:
    """Write the model of `folder` to `out`; `stored` is f32, f16, bf16 or q8_0, "" keeps the weights' own type.

    `name` is shown by programs that load the file, the folder's where it is empty; `chat_template` replaces the
    folder's. Raises EngineError: `model.*` for the folder, `export.*` for what llama.cpp would compute differently, an
    existing file without `force`, `disk.full`. `out` appears when it is complete.
    """
    check_target(out, force=force)
    model = _model(folder, stored)
    tokenizer = tokenizer_for_gguf(folder, model.shape.vocabulary, chat_template)
    title = name_for(name or folder.resolve().name, tokenizer)
    with whole_file(out, model.needed_bytes, force=force) as partial:
        _write(partial.path, title, model, tokenizer, on_progress)
    return GgufFile(
        out,
        out.stat().st_size,
        model.graph.name,
        model.stored,
        model.rope,
        exact_context(model.graph, model.shape),
        tokenizer.special.stops,
        (*model.findings, *tokenizer.findings),
    )


def estimated_bytes(folder: Path, stored: str = "") -> int:
    """Size of the file that `write_gguf` would write, within a per cent; the tokenizer is not looked at. Raises as it
    does."""
    return _model(folder, stored).needed_bytes


def _model(folder: Path, stored: str) -> _Model:
    if stored and stored not in TYPES:
        raise EngineError(
            "export.type", f"'{stored}' is not written here.", next_step=f"Take one of {', '.join(TYPES)}."
        )
    whole_config = check_folder(folder)
    findings = what_is_lost(whole_config, stored)
    if findings and findings[0].lost:
        raise findings[0].as_error()
    config = text_part(whole_config)[0]
    graph = graph_of(config)
    shape = read_shape(config, str(folder / "config.json"))
    chosen = TYPES.get(stored) or _own_type(tensors_for_gguf(folder, graph, shape, config, "F32"))
    tensors = tensors_for_gguf(folder, graph, shape, config, chosen)
    return _Model(graph, chosen, shape, config, rope_of(graph, config), tensors, findings)


def _own_type(tensors: tuple[OutTensor, ...]) -> str:
    """The type that most bytes of matrices have."""
    totals: dict[str, int] = {}
    for tensor in tensors:
        totals[tensor.source.dtype] = totals.get(tensor.source.dtype, 0) + tensor.source.data_bytes
    return max(totals, key=lambda name: totals[name])


def _write(partial: Path, title: str, model: _Model, tokenizer: GgufTokenizer, on_progress: OnProgress | None) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer: Any = GGUFWriter(partial, model.graph.name)
    try:
        add_model(writer, title, model.graph, model.shape, model.config, model.stored)
        add_rope(writer, model.rope)
        add_tokenizer(writer, tokenizer)
        rope = [(name, np.array(values, dtype=np.float32)) for name, values in model.rope.tensors]
        for name, values in rope:
            writer.add_tensor_info(f"{name}.weight", values.shape, values.dtype, values.nbytes)
        for tensor in model.tensors:
            kind = GGMLQuantizationType[tensor.stored]
            shape, held = tensor.source.shape, np.dtype(np.float32)
            writer.add_tensor_info(tensor.name, shape, held, tensor.data_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in rope:
            writer.write_tensor_data(values)
        _write_weights(writer, model, on_progress)
    finally:
        writer.close()


def _write_weights(writer: Any, model: _Model, on_progress: OnProgress | None) -> None:
    done, total = 0, model.data_bytes

    def report(part_bytes: int) -> None:
        nonlocal done
        done += part_bytes
        if on_progress:
            on_progress(done, total)

    for tensor in model.tensors:
        writer.write_tensor_data(Streamed(tensor, report))
