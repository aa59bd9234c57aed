"""One side of a comparison: a model folder, an adapter on its base, or a model packed into 4 bits, ready to be asked.

Owns what a folder is and how it is opened. Must not know what is compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import EngineError, ExitCode
from engine.expansion.packed import quantisation
from engine.models.adapter import base_of_adapter, is_adapter
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.headers import read_file_header, read_headers
from engine.models.weights import EMBEDDING_NAMES
from engine.proof import skeleton
from engine.proof.opened import Memory, Opened, load_whole, opened, weights_bytes, wide_if
from engine.proof.weights import compute_dtype


@dataclass(frozen=True, slots=True)
class Side:
    """A folder that can be asked."""

    folder: Path
    base: Path
    """The folder with config, weights and tokenizer: itself, or an adapter's base."""
    config: dict[str, Any]
    """Of the text part."""
    quantization: str = "none"
    """To pack the weights with while loading: "nf4", "fp4"."""

    @property
    def is_adapter(self) -> bool:
        return self.folder != self.base

    @property
    def packed(self) -> bool:
        return self.quantization != "none" or bool(quantisation(self.config))

    @property
    def kind(self) -> str:
        """In words."""
        base = "adapter on base" if self.is_adapter else "model"
        stored = " in 4 bits" if self.packed else ""
        return f"{base}{stored}{f' ({self.quantization})' if self.quantization != 'none' else ''}"

    @property
    def vocab(self) -> int:
        return int(self.config.get("vocab_size") or 0)

    @property
    def longest(self) -> int:
        """Positions that the model has."""
        return int(self.config.get("max_position_embeddings") or self.config.get("n_positions") or 1 << 30)

    @property
    def dtype(self) -> torch.dtype:
        """What it is compared in."""
        return torch.float64 if compute_dtype(read_headers(self.base).tensors) == "float64" else torch.float32

    @property
    def must_be_whole(self) -> bool:
        """Whether it cannot be loaded a layer at a time."""
        return self.is_adapter or self.packed

    def weights_bytes(self, dtype: torch.dtype) -> int:
        """What it takes in memory."""
        return weights_bytes(read_headers(self.base), dtype)


def side_of(folder: Path, base: Path | None = None, quantization: str = "none") -> Side:
    """Raises EngineError `adapter.no_base`, and `verify.config` for a folder that is neither model nor adapter."""
    under = folder
    if is_adapter(folder):
        under = base if base is not None else base_of_adapter(folder)
    own = folder if (folder / CONFIG_NAME).is_file() else under  # an adapter for a longer window has its own
    config = read_json_object(own / CONFIG_NAME, code="verify.config", what="a config")
    nested = config.get("text_config")
    config = {**config, **nested} if isinstance(nested, dict) else config
    rows = _vocabulary_of(folder) if folder != under else 0
    return Side(folder, under, {**config, "vocab_size": rows} if rows else config, quantization)


def _vocabulary_of(adapter: Path) -> int:
    """Tokens of the embedding that an adapter brings along; 0 where it brings none."""
    path = adapter / "adapter_model.safetensors"
    tensors = read_file_header(path) if path.is_file() else ()
    names = tuple(name.replace(".weight", ".base_layer.weight") for name in EMBEDDING_NAMES)
    return next((one.shape[0] for one in tensors if one.name.endswith((*EMBEDDING_NAMES, *names))), 0)


@contextlib.contextmanager
def open_side(side: Side, dtype: torch.dtype, streamed: bool) -> Iterator[Opened]:
    """The model in the processor's memory, free again when the block ends."""
    if not side.must_be_whole:
        with opened(side.base, dtype, streamed, lambda *_: None) as model:
            yield model
        return
    own = side.folder if side.is_adapter and (side.folder / CONFIG_NAME).is_file() else None
    model = _packed(side, dtype) if side.quantization != "none" else load_whole(side.base, dtype, own_config=own)
    if side.is_adapter and side.vocab != int(model.config.get_text_config().vocab_size):
        model.resize_token_embeddings(side.vocab, mean_resizing=False)
    handle = Opened(_with_adapter(model, side.folder) if side.is_adapter else model)
    with wide_if(dtype):
        try:
            yield handle
        finally:
            handle.close()


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    return adapted.eval().requires_grad_(False)


def _packed(side: Side, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type=side.quantization, bnb_4bit_compute_dtype=dtype
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(side.base),
            dtype=dtype,
            quantization_config=kind,
            device_map="cpu",
            attn_implementation=skeleton.ATTENTION,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise EngineError(
            "proof.load",
            f"{side.base} cannot be loaded in 4 bits.",
            cause=" ".join(str(error).split())[:300],
            exit_code=ExitCode.RUN_FAILED,
        ) from error
    return model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]


def must_stream(sides: tuple[Side, Side], dtype: torch.dtype, memory: Memory, kept_bytes: int) -> bool:
    """Whether layers must come one at a time. Raises EngineError `verify.memory` where they cannot."""
    tight = [side for side in sides if not memory.holds(side.weights_bytes(dtype), kept_bytes)]
    stuck = next((side for side in tight if side.must_be_whole), None)
    if stuck is not None:
        raise EngineError(
            "verify.memory",
            f"{stuck.folder} does not fit into memory.",
            cause=f"A {stuck.kind} cannot be loaded layer by layer.",
            next_step="Close other programs, or use a machine with more memory.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )
    return bool(tight)
