"""A model ready for a forward pass: all of it in memory, or streamed.

Owns the choice between the two and plain loading. Must not know what is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, ExitCode
from engine.expansion.packed import quantisation
from engine.hardware.memory import read_ram
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.headers import Headers, TensorHeader
from engine.proof import skeleton
from engine.proof.streamed import LayerDone, StreamedModel
from engine.proof.weights import Replacement

LOADING_OVERHEAD = 1.03
"""A tensor exists twice for a moment while it is cast."""
FUSING_OVERHEAD = 1.15
"""Where experts are fused while they are loaded, those of a layer do."""
WORKING_BYTES = 600 << 20
"""Interpreter, torch, and the activations of a few hundred tokens."""
SHARE_OF_FREE = 0.8


@dataclass(frozen=True, slots=True)
class Memory:
    """What the proof may use. Bytes."""

    free_bytes: int

    @classmethod
    def measured(cls, limit_bytes: int | None) -> Memory:
        """What is free now, or the limit that was asked for."""
        return cls(limit_bytes if limit_bytes is not None else int(read_ram().available_bytes * SHARE_OF_FREE))

    def holds(self, weights_bytes: float, logits_bytes: float) -> bool:
        """Whether that many bytes of weights and logits fit at one time."""
        return weights_bytes + logits_bytes + WORKING_BYTES <= self.free_bytes


def weights_bytes(headers: Headers, dtype: torch.dtype) -> int:
    """Bytes that all stored numbers take in `dtype`, with what loading them takes for a moment."""
    fused = any(".experts." in tensor.name for tensor in headers.tensors)
    size = sum(
        tensor.data_bytes if is_packed(tensor) else tensor.elements * dtype.itemsize for tensor in headers.tensors
    )
    return int(size * (FUSING_OVERHEAD if fused else LOADING_OVERHEAD))


def is_packed(tensor: TensorHeader) -> bool:
    """Whether a loader keeps the numbers as they are stored: packed weights, unpacked as they are needed."""
    return tensor.dtype in ("U8", "I8")


def load_whole(folder: Path, dtype: torch.dtype, *, own_config: Path | None = None) -> Any:
    """The folder through plain `AutoModelForCausalLM.from_pretrained`, in evaluation mode, in the processor's memory;
    with another folder's config where one is given.

    Packed weights stay packed and compute in the type that their config names; `dtype` is everything else's.

    Raises EngineError `proof.load` when transformers refuses it, or had to make up a weight.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_json_object(folder / CONFIG_NAME, code="proof.config", what="a config")
    place: dict[str, Any] = (
        {"device_map": "cpu"} if quantisation(config) else {}
    )  # else bitsandbytes takes a GPU that is there
    if own_config is not None:
        said = AutoConfig.from_pretrained(own_config, local_files_only=True, trust_remote_code=False)
        if hasattr(said, "quantization_config"):
            del said.quantization_config  # how another base was loaded
        place["config"] = said
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, attn_implementation=skeleton.ATTENTION, output_loading_info=True, **place
        )
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, StrictDataclassError) as error:
        raise EngineError(
            "proof.load",
            f"transformers cannot load {folder}.",
            cause=" ".join(str(error).split())[:300],
            exit_code=ExitCode.RUN_FAILED,
        ) from error
    model, info = loaded
    for kind, words in (("missing_keys", "is missing"), ("mismatched_keys", "has the wrong shape")):
        if info[kind]:
            raise skeleton.does_not_fit(model, [str(entry) for entry in info[kind]], words)
    return model.eval().requires_grad_(False)


@dataclass(slots=True)
class Opened:
    """A model and, where it is streamed, what streams it."""

    model: Any
    stream: StreamedModel | None = None

    def close(self) -> None:
        """Give the weights' memory back at once, whoever still holds the model."""
        skeleton.release(self.model)

    def logits(self, ids: Tensor) -> Tensor:
        """(1, T) -> (T, V), without gradients and without a cache."""
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits[0]


@contextlib.contextmanager
def opened(
    folder: Path, dtype: torch.dtype, streamed: bool, layer_done: LayerDone, replacement: Replacement | None = None
) -> Iterator[Opened]:
    """The model of `folder`; its memory is free again when the block ends."""
    with contextlib.ExitStack() as stack:
        if streamed:
            stream = stack.enter_context(StreamedModel(folder, dtype, replacement))
            stream.layer_done = layer_done
            handle = Opened(stream.model, stream)
            del stream
        else:
            handle = Opened(load_whole(folder, dtype))
        stack.enter_context(wide_if(dtype))
        try:
            yield handle
        finally:
            handle.close()


def wide_if(dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Fast products where the processor has none of this type."""
    return skeleton.wide_products() if dtype is torch.bfloat16 else contextlib.nullcontext()
