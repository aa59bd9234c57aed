"""A model folder as it would be served: its exported config, plain transformers, no remote code.

Owns loading for measurements. Must not know what is measured. What does not fit is refused before it is loaded.
"""

from __future__ import annotations

import gc
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError, ExitCode
from engine.evaluation.head import SelectiveHead
from engine.evaluation.length_memory import free_bytes
from engine.evaluation.model import LoadedModel
from engine.models.folder import check_folder
from engine.models.headers import read_headers

DTYPES = ("auto", "float32", "bfloat16", "float16")
_PACKED_BYTES = 0.6
"""Per number in 4 bits, scales included."""


@contextmanager
def loaded(folder: Path, dtype: str = "auto", quantization: str = "none") -> Iterator[LoadedModel]:
    """The model on the card where there is one; its memory is free again when the block ends.

    `dtype` "auto" is bfloat16 on a card and float32 on the processor. Raises EngineError `model.*` for a folder without
    model or tokenizer, `evaluation.memory`, `evaluation.load`.
    """
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    kind = _dtype(dtype, device)
    check_folder(folder)
    tokenizer = ChatTokenizer.load(folder)
    check_memory(folder, kind, quantization, device)
    model = _load(folder, kind, quantization, device)
    try:
        yield LoadedModel(model, SelectiveHead(model), tokenizer, device, kind)
    finally:
        del model
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


def _dtype(name: str, device: str) -> torch.dtype:
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def weight_bytes(folder: Path, dtype: torch.dtype, quantization: str, device: str) -> tuple[float, int]:
    """(bytes that the weights in `folder` take when they are loaded so, bytes that are free)."""
    numbers = read_headers(folder).tensors
    elements = sum(tensor.elements for tensor in numbers)
    packed = quantization != "none" or any(tensor.dtype in ("U8", "I8") for tensor in numbers)
    return elements * (_PACKED_BYTES if packed else dtype.itemsize), free_bytes(device)


def check_memory(folder: Path, dtype: torch.dtype, quantization: str, device: str) -> None:
    """Raises EngineError `evaluation.memory` when the weights do not fit into the memory that is free."""
    needed, free = weight_bytes(folder, dtype, quantization, device)
    if needed > free:
        raise EngineError(
            "evaluation.memory",
            "The model does not fit into the memory that is free.",
            cause=f"Its weights take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free.",
            next_step="Load it smaller: --quantization nf4, or --dtype bfloat16; or close other programs.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )


def _load(folder: Path, dtype: torch.dtype, quantization: str, device: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            quantization_config=_quantization(quantization, dtype),
            device_map={"": device} if device != "cpu" else None,
            # SDPA cannot cap attention scores (Gemma 2).
            attn_implementation="eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, StrictDataclassError) as error:
        raise _unloadable(folder, error) from error
    model.requires_grad_(False)
    return model.eval()  # type: ignore[no-untyped-call]


def bare_model(folder: Path) -> Any:
    """The folder's model without any memory for its tensors. Raises EngineError `evaluation.load`."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, StrictDataclassError) as error:
        raise _unloadable(folder, error) from error


def _unloadable(folder: Path, error: Exception) -> EngineError:
    return EngineError(
        "evaluation.load",
        f"transformers cannot load {folder}.",
        cause=" ".join(str(error).split())[:300],
        next_step=f"Look at it with: scaler-wizard inspect {shlex.quote(str(folder))}",
        exit_code=ExitCode.RUN_FAILED,
    )


def _quantization(kind: str, dtype: torch.dtype) -> Any:
    if kind == "none":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
