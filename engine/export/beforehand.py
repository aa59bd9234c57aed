"""What is known of an export before its first byte: refusals, and the room that it takes.

Owns these judgements. Must not write anything, nor know how files are made. Merging a large model for a file that
cannot come of it costs an hour; reading a config costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.adapters.base import check_base
from engine.adapters.folder import read_adapter
from engine.adapters.merge_folder import has_tokenizer, own_config
from engine.adapters.merge_refusals import check_not_quantised
from engine.context.gguf_support import what_is_lost
from engine.errors import EngineError
from engine.export.gguf import estimated_bytes
from engine.export.gguf_tokenizer import tokenizer_for_gguf
from engine.export.order import ExportOrder
from engine.export.runtime import find_runtime
from engine.export.sizes import gguf_sizes
from engine.extension.folder import copied_bytes
from engine.jobs.spec_export import Destination
from engine.models.config import CONFIG_NAME, text_part
from engine.models.folder import check_folder
from engine.models.headers import read_headers
from engine.models.shape import read_shape

_FLOATS = ("f32", "f16", "bf16")
_WRITTEN_HERE = (*_FLOATS, "q8_0")


def check_source(order: ExportOrder) -> int:
    """Bytes that the export takes on its disk while it works, small files aside. Raises EngineError `model.*`,
    `adapter.*`, `merge.*`, `export.*` for what no file can come of."""
    if not order.needs_model:
        return 0  # linked
    source, base = Path(order.source), Path(order.base or order.source)
    config = check_folder(base)
    if order.is_adapter:
        if not order.adapter:
            check_not_quantised(config, read_headers(base), order.base)
        adapter = read_adapter(source)
        check_base(adapter, base)
        config = dict((None if order.adapter else own_config(source, config)) or config)
    own_words = order.is_adapter and not order.adapter and has_tokenizer(source)
    speaker = source if own_words else base
    if order.destination is Destination.HF:
        _require_tokenizer(speaker)
    elif order.types:
        _check_gguf(order, config, speaker)
    return _bytes_of(order, base)


def _require_tokenizer(folder: Path) -> None:
    if not has_tokenizer(folder):
        raise EngineError(
            "model.no_tokenizer",
            f"{folder} has no tokenizer, so nobody could use the exported folder.",
            next_step="Put tokenizer.json and tokenizer_config.json of the model's origin beside its weights.",
        )


def _check_gguf(order: ExportOrder, config: dict[str, object], speaker: Path) -> None:
    for kind in order.types:
        for finding in what_is_lost(config, kind):
            if finding.lost:
                raise finding.as_error()
    tokenizer_for_gguf(speaker, read_shape(text_part(config)[0], CONFIG_NAME).vocabulary)


def _bytes_of(order: ExportOrder, base: Path) -> int:
    merges = order.is_adapter and not order.adapter
    weights = sum(tensor.data_bytes for tensor in read_headers(base).tensors)
    if order.destination is Destination.HF:
        return weights if merges else copied_bytes(base, order.out_path, "hard")
    return (weights if merges else 0) + sum(_gguf_bytes(order, base))


def _gguf_bytes(order: ExportOrder, base: Path) -> Iterator[int]:
    missing = [kind for kind in order.types if order.made_file(kind) is None]
    if missing:
        sizes = gguf_sizes(base)
        yield from (sizes[kind] for kind in missing)
    quantises = any(kind not in _WRITTEN_HERE for kind in missing)
    alone = order.adapter and not order.types and order.verify and find_runtime() is not None
    if (quantises and not any(kind in _FLOATS for kind in order.types)) or alone:
        yield estimated_bytes(base)
