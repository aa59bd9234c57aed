"""Which parameters of a grown model are new, old, or hold both, and which of their entries.

Owns the way from the certificate (stored tensors, spans per axis) to parameters in memory. Must not know optimizers or
tasks. A parameter's new entries are an outer union over its axes, as in the certificate:

    hidden 4 -> 6, a write (out x in)        new_axes = ([0 0 0 0 1 1], [0 0 0])      entry (i, j) is new where
    .  .  .   old rows                                                                new_axes[0][i] or new_axes[1][j]
    n  n  n   new rows

Parameters that several stored tensors are fused into (experts, which are one entry per expert on disk) are found by
sending 0/1 tensors through transformers' own loading code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, ExitCode
from engine.expansion.certificate import CERTIFICATE_NAME, Certificate, TensorEntry, read_certificate
from engine.proof.skeleton import Places, empty_model, release


class Kind(StrEnum):
    OLD = "old"
    NEW = "new"
    MIXED = "mixed"
    """Widened: old and new entries in one tensor."""


@dataclass(frozen=True, slots=True)
class Part:
    """One parameter."""

    kind: Kind
    new_axes: tuple[Tensor, ...] = ()
    """MIXED: per axis, one flag per index (bool, on the CPU)."""
    dense: Tensor | None = None
    """MIXED, where no union over axes describes it: one flag per entry."""

    def new_entries(self, like: Tensor) -> Tensor:
        """Flags in the shape of `like`, on its device: True where an entry is new."""
        if self.kind is not Kind.MIXED:
            return torch.full_like(like, self.kind is Kind.NEW, dtype=torch.bool)
        if self.dense is not None:
            return self.dense.to(like.device)
        flags = torch.zeros((1,) * like.dim(), dtype=torch.bool, device=like.device)
        for axis, new in enumerate(self.new_axes):
            shape = [1] * like.dim()
            shape[axis] = len(new)
            flags = flags | new.to(like.device).reshape(shape)
        return flags.expand_as(like)


def require_certificate(folder: Path) -> Certificate:
    """The certificate beside a grown model's weights. Raises EngineError `train.not_grown`."""
    found = read_certificate(folder)
    if found is None:
        raise EngineError(
            "train.not_grown",
            f"{folder} was not grown by scaler-wizard, so nothing in it is known to be new.",
            cause=f"There is no {CERTIFICATE_NAME} beside its weights.",
            next_step='Grow it in the same job ([expansion]), point [model] at a grown folder, or set task = "full".',
            exit_code=ExitCode.BAD_INPUT,
        )
    return found


def parts_of(folder: Path, certificate: Certificate | None) -> dict[str, Part]:
    """Every parameter of the model in `folder`, by name; all old without a certificate.

    Raises EngineError `train.unknown_parameter` for a parameter that the certificate does not speak of.
    """
    model = empty_model(folder, torch.bfloat16)
    names = [name for name, _ in model.named_parameters()]
    if certificate is None:
        return dict.fromkeys(names, Part(Kind.OLD))
    stored = _stored_by_parameter(model, certificate)
    missing = [name for name in names if name not in stored]
    if missing:
        raise EngineError(
            "train.unknown_parameter",
            f"{CERTIFICATE_NAME} says nothing about {missing[0]}, so it is not known whether it is new.",
            cause="The certificate and the model's files are not of the same growth.",
            next_step="Grow the model again.",
            exit_code=ExitCode.RUN_FAILED,
        )
    return {name: _part(model, name, stored[name], certificate.tensors) for name in names}


def _stored_by_parameter(model: Any, certificate: Certificate) -> dict[str, list[str]]:
    places = Places(model)
    stored: dict[str, list[str]] = defaultdict(list)
    for name in certificate.tensors:
        parameter = places.parameter_of(name)
        if parameter is not None:
            stored[parameter].append(name)
    return stored


def _part(model: Any, name: str, stored: list[str], entries: Mapping[str, TensorEntry]) -> Part:
    parameter = model.get_parameter(name)
    kinds = {_kind(entries[one]) for one in stored}
    if kinds == {Kind.OLD}:
        return Part(Kind.OLD)
    if kinds == {Kind.NEW}:
        return Part(Kind.NEW)
    entry = entries[stored[0]]
    if len(stored) == 1 and entry.shape == tuple(parameter.shape):
        return Part(Kind.MIXED, _axis_flags(entry))
    return _fused_part(model, name, stored, entries)


def _kind(entry: TensorEntry) -> Kind:
    if entry.new:
        return Kind.NEW
    return Kind.MIXED if any(entry.new_spans) else Kind.OLD


def _axis_flags(entry: TensorEntry) -> tuple[Tensor, ...]:
    spans = entry.new_spans or ((),) * len(entry.shape)
    flags = []
    for extent, axis in zip(entry.shape, spans, strict=True):
        new = torch.zeros(extent, dtype=torch.bool)
        for begin, end in axis:
            new[begin:end] = True
        flags.append(new)
    return tuple(flags)


def _fused_part(model: Any, name: str, stored: list[str], entries: Mapping[str, TensorEntry]) -> Part:
    """Loads what the certificate says of each stored tensor as ones and zeros into the parameter, and reads it back."""
    flags = {}
    for one in stored:
        entry = entries[one]
        like = torch.empty(entry.shape, dtype=torch.bfloat16)
        kind = _kind(entry)
        part = Part(kind, _axis_flags(entry) if kind is Kind.MIXED else ())
        flags[one] = part.new_entries(like).to(torch.bfloat16)
    Places(model).load(flags, torch.bfloat16)
    dense = model.get_parameter(name).detach() != 0
    release(model.get_submodule(name.rpartition(".")[0]))
    axes = tuple(_all_along(dense, axis) for axis in range(dense.dim()))
    part = Part(Kind.MIXED, axes)
    return part if torch.equal(part.new_entries(dense), dense) else Part(Kind.MIXED, dense=dense)


def _all_along(dense: Tensor, axis: int) -> Tensor:
    return dense.movedim(axis, 0).flatten(1).all(dim=1)
