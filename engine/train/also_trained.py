"""Norms and embeddings that learn beside an adapter: LongLoRA (arXiv 2309.12307) found low-rank updates alone too
little for a longer window, and these two to be what is missing.

Owns which modules these are and the type they learn in. Must not know the loop. They go through peft's
`modules_to_save`: whole copies that are saved with the adapter, loaded by plain peft, and take the originals' place on
merging. The copies are float32, as adapters are, and hand on what the originals would have handed on: one wider value
in the residual stream would double every activation after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def names_of(model: Any, *, norms: bool, embeddings: bool) -> tuple[str, ...]:
    """What peft has to be told, as ends of module names; of tied embeddings only the table, the head follows it."""
    found: set[str] = set()
    if norms:
        found |= {name.rpartition(".")[2] for name, module in model.named_modules() if is_norm(module)}
    if embeddings:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        wanted = [table] if ties(model) else [table, head]
        found |= {name for name, module in model.named_modules() if any(module is one for one in wanted)}
    return tuple(sorted(found))


def is_norm(module: nn.Module) -> bool:
    """A norm with something to learn: torch's LayerNorm, or any family's RMSNorm."""
    weight = getattr(module, "weight", None)
    named = type(module).__name__.lower().endswith("norm")
    return named and isinstance(weight, Tensor) and weight.dim() == 1 and not list(module.children())


def ties(model: Any) -> bool:
    """Whether table and head are one."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def hold_in_float32(model: nn.Module) -> None:
    """The trained copies in float32; what they hand on keeps the originals' type."""
    from peft.utils import ModulesToSaveWrapper

    for wrapper in model.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        original = next(wrapper.original_module.parameters()).dtype
        for copy in wrapper.modules_to_save.values():
            for parameter in copy.parameters():
                parameter.data = parameter.data.float()
            if original is not torch.float32 and not isinstance(copy, nn.Linear):  # the head's logits are the end
                copy.register_forward_hook(_Narrow(original))


class _Narrow:
    """A hook that hands on `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        return output.to(self.dtype)
