"""The rotary modules of a loaded model: found, set to a plan, put back, and held against the formula.

Owns every private attribute of transformers' rotary modules that this program touches (`STATE`, `BY_LAYER`); a test
fails when the library changes underneath. Frequencies are made by the module's own class from the config that the plan
would export, so that what is measured here is, bit for bit, what the written folder computes; then they are compared
with the plan's own divisors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.context.export import rotary_fields
from engine.context.plan import ContextPlan, PlannedRotary
from engine.context.scaling import inverse_frequencies
from engine.errors import EngineError, ExitCode

STATE = ("config", "rope_type", "attention_scaling", "max_seq_len_cached", "original_max_seq_len")
"""Plain attributes of a rotary module."""
BUFFERS = ("inv_freq", "original_inv_freq", "long_inv_freq")
"""Tensors; `long_inv_freq` is a plain attribute that appears with the first use of longrope."""
BY_LAYER = (*BUFFERS, "attention_scaling", "max_seq_len_cached")
"""What exists once per layer type, as "full_attention_inv_freq", where layer types have their own."""
RELATIVE_TOLERANCE = 2e-6
"""float32 powers of the base: transformers rounds the exponent, by up to ln(base)·2^-25."""
ABSOLUTE_TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True)
class RotaryModule:
    """One rotary module and where it sits."""

    name: str
    """ "model.rotary_emb"."""
    module: nn.Module
    layer_types: tuple[str, ...]
    """Those with an embedding of their own; ("",) where all share one."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """The attributes of one module as they were; None of a tensor is copied: others are put in their place."""

    module: nn.Module
    names: tuple[str, ...]
    """What a plan may put in another's place; a name in neither of the tables below did not exist."""
    plain: dict[str, Any]
    buffers: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Setting:
    """What `set_plan` replaced; `restore` puts it back."""

    saved: tuple[_Saved, ...]


def rotary_modules(model: nn.Module) -> tuple[RotaryModule, ...]:
    """All rotary modules of the language model. Raises EngineError `context.frequencies` where there are none."""
    found = []
    for name, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and isinstance(getattr(module, "inv_freq", None), torch.Tensor):
            found.append(RotaryModule(name, module, ("",)))
        elif isinstance(kinds, dict) and kinds:
            found.append(RotaryModule(name, module, tuple(kinds)))
    if not found:
        raise _fault("No rotary module was found in the loaded model.", "Its class keeps positions in another way.")
    return tuple(found)


def rebuild_on_cpu(model: nn.Module) -> None:
    """Put rotary modules with values, made from their own configs, in the place of those that have none ("meta")."""
    for found in rotary_modules(model):
        module: Any = found.module
        with torch.device("cpu"):
            model.set_submodule(found.name, type(module)(module.config))


def set_plan(model: nn.Module, plan: ContextPlan) -> Setting:
    """Every rotary module of `model` as the plan's config would build it; the weights are not touched.

    Types that follow the length (dynamic, a switching longrope) go on through transformers' own update in forward.
    Raises EngineError `context.frequencies` where a module's frequencies are not the formula's afterwards.
    """
    fresh = [(found, _changed_names(found, plan), _fresh(found.module, plan)) for found in rotary_modules(model)]
    setting = Setting(tuple(_replace(found.module, names, made) for found, names, made in fresh))
    try:
        check_frequencies(model, plan)
    except EngineError:
        restore(setting)
        raise
    return setting


def restore(setting: Setting) -> None:
    """The modules as `set_plan` found them, bit for bit."""
    for saved in setting.saved:
        _put(saved.module, saved.names, saved.plain, saved.buffers)


@contextmanager
def using(model: nn.Module, plan: ContextPlan | None) -> Iterator[nn.Module]:
    """`model` with the plan's frequencies inside the block; None is the model as it is."""
    if plan is None:
        yield model
        return
    setting = set_plan(model, plan)
    try:
        yield model
    finally:
        restore(setting)


def check_frequencies(model: nn.Module, plan: ContextPlan) -> float:
    """The largest relative difference between the modules' inverse frequencies and the plan's formula.

    Raises EngineError `context.frequencies`, naming module and pair, above 2e-6 relative or for another m.
    """
    return max(
        _check(found, layer_type, planned, plan.target)
        for found in rotary_modules(model)
        for layer_type, planned in _matched(found, plan)
    )


def _matched(found: RotaryModule, plan: ContextPlan) -> list[tuple[str, PlannedRotary]]:
    by_layer = {planned.rotary.layer_type: planned for planned in plan.rotaries}
    missing = [layer_type for layer_type in found.layer_types if layer_type not in by_layer]
    if missing:
        raise _fault(
            f"{found.name} has embeddings by layer type ({', '.join(found.layer_types)}), the plan has "
            f"{', '.join(by_layer) or 'none'}.",
            "The plan was made for another config than the loaded model's.",
        )
    return [(layer_type, by_layer[layer_type]) for layer_type in found.layer_types]


def _check(found: RotaryModule, layer_type: str, planned: PlannedRotary, target: int) -> float:
    """At rest, and at the target's length where frequencies follow it."""
    scaling, rotary = planned.scaling, planned.rotary
    prefix = f"{layer_type}_" if layer_type else ""
    at_rest = inverse_frequencies(rotary, scaling.short_divisors or scaling.divisors)
    names = ("original_inv_freq",) if scaling.switches else ("inv_freq", "original_inv_freq")
    tensors = {prefix + name: (getattr(found.module, prefix + name), at_rest) for name in names}
    at_length = _at_length(found.module, layer_type, target)
    if at_length is not None:
        tensors[f"{prefix}inv_freq at {target:,} tokens"] = at_length, inverse_frequencies(rotary, scaling.divisors)
    elif scaling.switches:
        raise _fault(f"{found.name} uses the same frequencies at every length.", "Its rope_type does not switch.")
    largest = max(_compare(f"{found.name}.{name}", *pair) for name, pair in tensors.items())
    factor = float(getattr(found.module, f"{prefix}attention_scaling"))
    if abs(factor - scaling.attention_factor) > RELATIVE_TOLERANCE:
        raise _fault(
            f"{found.name} multiplies cos and sin by {factor:.7g}, not by {scaling.attention_factor:.7g}.",
            "The config's attention factor did not reach the module.",
        )
    return largest


def _at_length(module: nn.Module, layer_type: str, length: int) -> torch.Tensor | None:
    """Inverse frequencies that transformers will switch to for `length` tokens; None for types that never switch."""
    kind = _kind(module, layer_type)
    if kind not in ("dynamic", "longrope"):
        return None
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](module.config, None, seq_len=length, layer_type=layer_type or None)
    return frequencies


def _kind(module: nn.Module, layer_type: str) -> str:
    kinds: Any = module.rope_type
    return str(kinds[layer_type] if layer_type else kinds)


def _compare(name: str, tensor: torch.Tensor, expected: tuple[float, ...]) -> float:
    """The largest relative difference. Raises EngineError `context.frequencies`."""
    if tensor.dtype != torch.float32:
        raise _fault(f"{name} is {tensor.dtype}, not float32.", "Angles of long texts need every digit of float32.")
    if tensor.numel() != len(expected):
        raise _fault(f"{name} has {tensor.numel()} pairs, the plan {len(expected)}.", "Another rotated share of heads.")
    formula = torch.tensor(expected, dtype=torch.float64)
    difference = (tensor.detach().double().cpu() - formula).abs()
    relative = difference / formula
    wrong = (difference > ABSOLUTE_TOLERANCE) | (relative > RELATIVE_TOLERANCE)
    if bool(wrong.any()):
        pair = int(wrong.nonzero()[0])
        raise _fault(
            f"{name}: pair {pair} turns by {float(tensor[pair]):.7g} rad per token; the method's formula gives "
            f"{expected[pair]:.7g}.",
            "The model was built before its config was changed, or this version of transformers computes another rule.",
        )
    return float(relative.max())


def _changed_names(found: RotaryModule, plan: ContextPlan) -> tuple[str, ...]:
    """Attributes of the embeddings that the plan changes; those of other layer types stay untouched."""
    changed = [layer_type for layer_type, planned in _matched(found, plan) if planned.changed]
    return (*STATE, *(f"{kind}_{name}" if kind else name for kind in changed for name in BY_LAYER))


def _replace(module: nn.Module, names: tuple[str, ...], fresh: nn.Module) -> _Saved:
    """Puts a fresh module's state in the place of the changed embeddings' own; returns what was there."""
    saved = _Saved(module, names, *_state(module, names))
    device = next(iter(saved.buffers.values())).device
    plain, buffers = _state(fresh, names)
    _put(module, names, plain, {name: tensor.to(device) for name, tensor in buffers.items()})
    return saved


def _state(module: nn.Module, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    plain = {name: module.__dict__[name] for name in names if name in module.__dict__}
    tensors = {name: module._buffers.get(name) for name in names}
    return plain, {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _put(module: nn.Module, names: tuple[str, ...], plain: dict[str, Any], buffers: dict[str, torch.Tensor]) -> None:
    """Exactly these attributes; what transformers hung on the module while it ran must not outlive its plan."""
    for name in names:
        module.__dict__.pop(name, None)
        if name in buffers:
            module.register_buffer(name, buffers[name], persistent=False)
        elif name in plain:
            setattr(module, name, plain[name])


def _fresh(module: nn.Module, plan: ContextPlan) -> nn.Module:
    """A module of the same class, built on the CPU from the plan's config."""
    config: Any = copy.deepcopy(module.config)
    fields = rotary_fields(plan, str(config.model_type))
    config.rope_parameters = fields.rope_parameters
    config.max_position_embeddings = fields.window
    if fields.original_on_top or hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = fields.original
    if getattr(config, "head_dim", 0) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    with torch.device("cpu"):
        return type(module)(config)


def _fault(what: str, cause: str) -> EngineError:
    return EngineError(
        "context.frequencies",
        what,
        cause=cause,
        next_step="Nothing was written with these frequencies. Use transformers 5 as locked, or report the model.",
        exit_code=ExitCode.RUN_FAILED,
    )
