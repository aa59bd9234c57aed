"""How large a GGUF file of each type will be, before it is written (`python -m engine.export.sizes MODEL`).

Owns the arithmetic of llama.cpp's k-quants. Must not know how files are written.

Bits per weight, from ggml's block layouts (ggml-common.h, 2026-10): q8_0 34 bytes per 32; q6_K 210, q5_K 176, q4_K 144
per 256. What a name like q4_k_m stands for is llama.cpp's choice per matrix (llama-quant.cpp): the output matrix in
q6_K; attention's values and the second feed-forward matrix in q6_K in the first and last eighth of the layers and in
every third between; everything else in the type of its name. Rows that are no multiple of 256 take the next type with
blocks of 32.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.export.gguf import estimated_bytes
from engine.jobs.spec_export import GGUF_TYPES
from engine.models.config import CONFIG_NAME, text_part
from engine.models.folder import check_folder
from engine.models.headers import TensorHeader, read_headers
from engine.models.shape import Shape, read_shape

_BITS = {"q6": 210 * 8 / 256, "q5": 176 * 8 / 256, "q4": 144 * 8 / 256}
_SMALL_BLOCKS = {"q6": 34 * 8 / 32, "q5": 24 * 8 / 32, "q4": 22 * 8 / 32}
"""q8_0, q5_1 and q5_0."""
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_MORE = ("v_proj.weight", "down_proj.weight")
_KINDS = {"q6_k": "q6", "q5_k_m": "q5", "q4_k_m": "q4"}


def gguf_sizes(folder: Path) -> Mapping[str, int]:
    """Bytes of the file of each of GGUF_TYPES, within a few per cent. Raises EngineError `model.*`, `export.*` where no
    file can be written."""
    config = check_folder(folder)
    shape = read_shape(text_part(config)[0], str(folder / CONFIG_NAME))
    tensors = read_headers(folder).tensors
    whole = estimated_bytes(folder, "f16")
    head = whole - sum(_bytes_16(tensor, shape) for tensor in tensors)
    return {
        kind: estimated_bytes(folder, kind)
        if kind not in _KINDS
        else int(head + sum(_bytes_of(tensor, shape, _KINDS[kind]) for tensor in tensors))
        for kind in GGUF_TYPES
    }


def _bytes_16(tensor: TensorHeader, shape: Shape) -> float:
    if _is_left_out(tensor, shape):
        return 0.0
    return tensor.elements * (2.0 if len(tensor.shape) > 1 else 4.0)


def _bytes_of(tensor: TensorHeader, shape: Shape, kind: str) -> float:
    if len(tensor.shape) < 2 or _is_left_out(tensor, shape):
        return _bytes_16(tensor, shape)
    found = _LAYER.search(tensor.name)
    is_output = tensor.name.endswith("lm_head.weight") or (shape.tied and "embed_tokens" in tensor.name)
    if is_output or (found and tensor.name.endswith(_MORE) and _takes_more(int(found[1]), shape.layers)):
        kind = "q6"
    bits = _BITS[kind] if tensor.shape[-1] % 256 == 0 else _SMALL_BLOCKS[kind]
    return tensor.elements * bits / 8


def _is_left_out(tensor: TensorHeader, shape: Shape) -> bool:
    return (shape.tied and tensor.name.endswith("lm_head.weight")) or tensor.name.endswith("inv_freq")


def _takes_more(layer: int, layers: int) -> bool:
    """llama.cpp's use_more_bits."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""

    def work() -> None:
        sizes = dict(gguf_sizes(Path(arguments[0])))
        helper_process.LineOut().write(json.dumps({"sizes": sizes}).encode() + b"\n")

    return helper_process.run(work, _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError("export.memory", "There is no memory left.", cause=cause, exit_code=ExitCode.DOES_NOT_FIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
