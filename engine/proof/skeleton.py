"""A model without weights, and the way a checkpoint's tensors find their place in it.

Owns every use of transformers' private loading code: building on `meta`, buffers that are computed and not stored, the
renaming and fusing of tensors (experts that are separate files' entries on disk and one parameter in memory). Must not
know when which weights are loaded. `tests/train/test_proof_streaming.py` fails when that code changes underneath.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, ExitCode

ATTENTION = "eager"
"""The one implementation that every family has and that honours soft caps, windows and sinks."""


def quiet() -> None:
    """No progress bars and no advice from transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def empty_model(folder: Path, dtype: torch.dtype) -> Any:
    """The folder's causal model with its parameters on `meta` and its computed buffers in memory, in evaluation mode.

    Raises EngineError `proof.config` when transformers cannot build it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype, attn_implementation=ATTENTION
            )
    except (ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
        raise EngineError(
            "proof.config",
            f"transformers cannot build a model from {folder / 'config.json'}.",
            cause=" ".join(str(error).split())[:300],
            next_step="Check that the installed transformers knows this family.",
            exit_code=ExitCode.RUN_FAILED,
        ) from error
    _compute_buffers(model)
    model.tie_weights()
    model.eval()
    model.requires_grad_(False)
    return model


def _compute_buffers(model: Any) -> None:
    """Buffers that no file holds (rotary frequencies, an embedding's scale) get memory and the family's own values."""
    owners = []
    for name, buffer in list(model.named_non_persistent_buffers()):
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        owner._buffers[attribute] = torch.empty_like(buffer, device="cpu")
        owners.append(owner)
    with torch.no_grad():
        for owner in dict.fromkeys(owners):
            model._init_weights(owner)


class Places:
    """Which stored tensor belongs to which parameter of a model."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._model = model
        self._mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        self._parameters: dict[str, Tensor] = model.state_dict()

    def parameter_of(self, name: str) -> str | None:
        """The (first) parameter that a stored tensor is loaded into; None when the model has no such place."""
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        found, _ = rename_source_key(name, self._renamings, self._converters, prefix, self._parameters)
        if found not in self._parameters and name in self._parameters:
            found, _ = rename_source_key(name, [], [], prefix, self._parameters)
        return found if found in self._parameters else None

    def buffers_among(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the stored names that are no parameters of the model."""
        buffers = {name for name, _ in self._model.named_buffers()}
        return frozenset(name for name in names if self.parameter_of(name) in buffers)

    def remember_conversions(self) -> None:
        """Tell the model which conversions its whole checkpoint needed; each partial load overwrites that."""
        self._model._weight_conversions = [entry for entry in self._mapping if entry.was_used()]

    def load(self, tensors: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Put stored tensors into the model, converted as `from_pretrained` does.

        Raises EngineError `proof.load` when a tensor does not fit.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        settings = LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=self._model._get_dtype_plan(dtype),
            weight_mapping=[*self._renamings, *self._converters],
        )
        with _one_after_the_other():
            info, _ = convert_and_load_state_dict_in_model(self._model, dict(tensors), settings)
        wrong = [str(entry[0]) for entry in info.mismatched_keys] + list(info.conversion_errors)
        if wrong:
            raise does_not_fit(self._model, wrong)


@contextlib.contextmanager
def _one_after_the_other() -> Iterator[None]:
    """Without loader threads: they would read on in files that an error closes, and hold more tensors at once."""
    switch = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def does_not_fit(model: Any, names: Sequence[str], what: str = "has the wrong shape") -> EngineError:
    """The error for weights that a model cannot take."""
    return EngineError(
        "proof.load",
        f"{len(names)} tensors do not fit {type(model).__name__}; {sorted(names)[0]} {what}.",
        cause="The weights and config.json do not describe the same model.",
        exit_code=ExitCode.RUN_FAILED,
    )


def as_stored(model: Any, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values per parameter (weights, gradients) under the names and in the shapes that the checkpoint stores."""
    from transformers.core_model_loading import revert_weight_conversion

    stored: dict[str, Tensor] = revert_weight_conversion(model, dict(values))
    return stored


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """(path, list) of the decoder layers. Raises EngineError `proof.layers` when the model has no such list."""
    count = int(model.config.get_text_config().num_hidden_layers)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return path, module
    raise cannot_stream(model, f"a list of {count} layers")


def cannot_stream(model: Any, lacks: str) -> EngineError:
    """The error for families whose forward pass cannot be cut into layers."""
    return EngineError(
        "proof.layers",
        f"{type(model).__name__} lacks {lacks}, so it cannot be proven layer by layer.",
        next_step="Use a machine with memory for the whole model, or --no-proof.",
        exit_code=ExitCode.RUN_FAILED,
    )


def release(module: nn.Module) -> None:
    """Send the module's parameters and stored buffers back to `meta`."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.device.type != "meta":
                part._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set and buffer.device.type != "meta":
                part._buffers[name] = torch.empty_like(buffer, device="meta")


@contextlib.contextmanager
def wide_products() -> Any:
    """bfloat16 products on processors that have none: multiplied in float32 and rounded, as hardware does it.

    Without it torch falls back to a kernel several times slower than float32.
    """
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        yield
        return
    with _WideProducts():
        yield


class _WideProducts(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.linear and not kwargs and args[0].dtype is torch.bfloat16:
            widened: Any = (None if entry is None else entry.float() for entry in args)
            return function(*widened).to(torch.bfloat16)
        return function(*args, **kwargs)
