"""A model with random weights on a real device, one module after another, packed to 4 bits where the job packs it.

Owns materialising: the model is laid out on `meta` and filled module by module, so that loading never holds more than
the finished model and one matrix. Must not know steps or gauges.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from engine.estimate.rehearsal import Rehearsal
from engine.rehearsal import build

WEIGHT_SPREAD = 0.02


def real_model(rehearsal: Rehearsal, device: torch.device) -> tuple[Any, Any]:
    """(model with adapter, base) on `device` in training mode.

    Raises EngineError `rehearsal.*`, and torch's OutOfMemoryError.
    """
    config = build.config_of(rehearsal)
    with torch.device("meta"):
        base = build.bare_model(rehearsal, config)
    if rehearsal.quantization != "none":
        _pack(base, rehearsal, device)
        base.is_loaded_in_4bit = True
    _fill(base, device)
    base.requires_grad_(False)
    if rehearsal.kbit_prepared:
        build._prepare_kbit(base)
    with torch.device(device):
        return build.with_method(base, rehearsal), base


def _pack(base: Any, rehearsal: Rehearsal, device: torch.device) -> None:
    """Replace every linear layer but the head by a packed one, as transformers does when it loads in 4 bits."""
    dtype, head = build.DTYPES[rehearsal.compute_bytes], base.get_output_embeddings()
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(parent, name, _packed(child, rehearsal, dtype, device))


def _packed(linear: nn.Linear, rehearsal: Rehearsal, dtype: torch.dtype, device: torch.device) -> nn.Module:
    import bitsandbytes

    four_bit: Any = bitsandbytes.nn
    layer = four_bit.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        compress_statistics=rehearsal.double_quantization,
        quant_type=rehearsal.quantization,
        device="meta",
    )
    whole = torch.empty(linear.out_features, linear.in_features, dtype=dtype, device=device).normal_(0, WEIGHT_SPREAD)
    layer.weight = four_bit.Params4bit(
        whole,
        requires_grad=False,
        compress_statistics=rehearsal.double_quantization,
        quant_type=rehearsal.quantization,
        module=layer,
    ).to(device)
    if linear.bias is not None:
        layer.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=dtype, device=device), requires_grad=False)
    # As the worker: the layout for inference on CPUs has no backward pass.
    if hasattr(layer, "support_avx512bf16_for_cpu"):
        layer.support_avx512bf16_for_cpu = False
    return cast(nn.Module, layer)


def _fill(base: Any, device: torch.device) -> None:
    """Give everything that is still on `meta` memory and the family's own random values; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in base.modules():
        fresh = False
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is None or tensor.device.type != "meta":
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _there(tensor, device)
                    fresh = True
                tensors[name] = made[id(tensor)]
        if fresh:
            with torch.no_grad():
                base._init_weights(module)


def _there(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
