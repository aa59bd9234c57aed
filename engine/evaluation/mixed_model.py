"""A loaded base under a mix of adapters that changes from one score to the next.

Owns the hooks. Must not know rows or scores. The base's matrices are never touched: what a mix adds is computed beside
them, so that changing weights costs nothing and weights of 0 give the base bit for bit.

    y = W x + b   becomes   y + L (R x) + g (W x) + D x + c      sums over the adapters, each with its weight
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.adapters.base import Base
from engine.adapters.folder import Adapted, AdapterFolder
from engine.adapters.tensors import read_float
from engine.adapters.update import Update, bias_of, update_of
from engine.errors import EngineError
from engine.evaluation.model import LoadedModel
from engine.jobs.spec_mix import MixMethod, MixSection
from engine.surgery.numbers import Array

SUMS = (MixMethod.EXACT, MixMethod.LINEAR)
"""Methods whose result is a sum of the updates, each of which can be added by itself."""


@dataclass(slots=True)
class _Site:
    """One module of the base, with everything adapters do to it. O outputs, I inputs, R rank."""

    module: nn.Module
    embedding: bool
    updates: dict[int, Update]
    """By the adapter's place."""
    biases: dict[int, Tensor]
    weight: Array | None
    """(O, I), float32; only where an update is a part of it (DoRA)."""
    adapted: dict[int, Adapted]
    left: Tensor | None = None  # (O, R)
    right: Tensor | None = None  # (R, I)
    gain: Tensor | None = None  # (O,)
    dense: Tensor | None = None  # (O, I)
    added: Tensor | None = None  # (O,)

    def clear(self) -> None:
        """The base again."""
        self.left = self.right = self.gain = self.dense = self.added = None

    def hook(self, _module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """What the mix adds to the module's output."""
        if self.left is None and self.gain is None and self.dense is None and self.added is None:
            return None
        found = output.float()
        with torch.autocast(output.device.type, enabled=False):
            if self.gain is not None:
                bias = getattr(self.module, "bias", None)
                found = found + self.gain * (found if bias is None else found - bias.float())
            if self.left is not None and self.right is not None:
                inner = self.right.T[arguments[0]] if self.embedding else arguments[0].float() @ self.right.T
                found = found + inner @ self.left.T
            if self.dense is not None:
                found = found + (self.dense.T[arguments[0]] if self.embedding else arguments[0].float() @ self.dense.T)
            if self.added is not None:
                found = found + self.added
        return found.to(output.dtype)


@dataclass(slots=True)
class _Replaced:
    """A parameter that adapters replace, whole or in rows: P + sum of w (P' - P)."""

    parameter: nn.Parameter
    base: Tensor
    differences: dict[int, Tensor] = field(default_factory=dict)


class MixedModel:
    """`take` puts a mix on the model; `take` with zeros takes it off."""

    def __init__(self, model: LoadedModel, adapters: Sequence[AdapterFolder], base: Base) -> None:
        """Raises EngineError `adapter.*` for adapters that do not belong to the model."""
        self.model = model
        self.adapters = tuple(adapters)
        self._base = base
        self._sites = [self._site(name) for name in dict.fromkeys(a.module for one in adapters for a in one.adapted)]
        self._replaced = self._replacements()
        for site in self._sites:
            site.module.register_forward_hook(site.hook)

    def take(self, weights: Sequence[float], mix: MixSection | None = None, seed: int = 17) -> None:
        """The mix of `mix` (left out: the plain sum). An adapter of weight 0 has no part in it, and no vote.
        Raises EngineError `adapter.weights`."""
        if len(weights) != len(self.adapters):
            raise ValueError(f"{len(weights)} weights for {len(self.adapters)} adapters")
        mix = mix or MixSection()
        used = {place: float(weight) for place, weight in enumerate(weights) if weight}
        if mix.method is MixMethod.LINEAR and used:
            used = _shares(used)
        for site in self._sites:
            site.clear()
            mine = {place: weight for place, weight in used.items() if place in site.updates}
            if not mine:
                continue
            if mix.method in SUMS and not mix.rank:
                self._sum(site, mine)
            else:
                self._other(site, mine, len(used), mix, seed)
            self._add_biases(site, mine)
        for one in self._replaced:
            self._replace(one, used)

    # ── what a mix is at one module ──────────────────────────────────────────────────────────────────────────────
    def _sum(self, site: _Site, weights: dict[int, float]) -> None:
        parts = [(site.updates[place], weight) for place, weight in weights.items()]
        left = [self._on_device(update.left) * weight for update, weight in parts]
        site.left = torch.cat(left, 1)
        site.right = torch.cat([self._on_device(update.right) for update, _ in parts], 0)
        gains = [self._on_device(update.gain) * weight for update, weight in parts if update.gain is not None]
        site.gain = torch.stack(gains).sum(0) if gains else None

    def _other(self, site: _Site, weights: dict[int, float], adapters: int, mix: MixSection, seed: int) -> None:
        raise NotImplementedError

    def _add_biases(self, site: _Site, weights: dict[int, float]) -> None:
        parts = [site.biases[place] * weight for place, weight in weights.items() if place in site.biases]
        site.added = torch.stack(parts).sum(0) if parts else None

    def _replace(self, one: _Replaced, weights: dict[int, float]) -> None:
        found = one.base
        for place, difference in one.differences.items():
            if weights.get(place):
                found = found + (difference * weights[place]).to(found.device)
        one.parameter.data.copy_(found)

    def _on_device(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.model.device)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _site(self, name: str) -> _Site:
        try:
            module = self.model.model.get_submodule(name)
        except AttributeError as error:
            raise EngineError(
                "adapter.other_base",
                f"The model has no module '{name[:80]}', which an adapter changes.",
                next_step="Name the base that the adapters were trained on with --base.",
            ) from error
        adapted = {
            place: one for place, adapter in enumerate(self.adapters) for one in adapter.adapted if one.module == name
        }
        stored = self._base.find(f"{name}.weight")
        needs = any(one.magnitude is not None or one.start.value != "none" for one in adapted.values())
        weight = read_float(stored) if needs and stored is not None else None
        updates = {place: update_of(one, weight) for place, one in adapted.items()}
        biases = {
            place: self._on_device(bias)
            for place, one in adapted.items()
            if (bias := bias_of(one)) is not None
        }  # fmt: skip
        inner = weight if weight is None or not next(iter(adapted.values())).transposed else weight.T
        embedding = isinstance(module, nn.Embedding)
        return _Site(module, embedding, updates, biases, inner, adapted)

    def _replacements(self) -> list[_Replaced]:
        found: dict[str, _Replaced] = {}
        for place, adapter in enumerate(self.adapters):
            for whole in adapter.whole:
                one = self._parameter(found, whole.name, adapter)
                values = torch.from_numpy(read_float(whole.tensor))
                if values.shape != one.base.shape:
                    raise _resized(adapter, whole.name)
                one.differences[place] = values - one.base.float().cpu()
            for rows in adapter.rows:
                one = self._parameter(found, rows.weight, adapter)
                difference = one.differences.get(place, torch.zeros(one.base.shape))
                values = torch.from_numpy(read_float(rows.tensor))
                difference[list(rows.indices)] = values - one.base[list(rows.indices)].float().cpu()
                one.differences[place] = difference
        return list(found.values())

    def _parameter(self, found: dict[str, _Replaced], name: str, adapter: AdapterFolder) -> _Replaced:
        if name not in found:
            try:
                parameter = self.model.model.get_parameter(name)
            except AttributeError as error:
                raise _resized(adapter, name) from error
            found[name] = _Replaced(parameter, parameter.data.clone())
        return found[name]


def _shares(weights: dict[int, float]) -> dict[int, float]:
    total = sum(weights.values())
    if abs(total) < 1e-6:
        raise EngineError(
            "adapter.weights",
            "The weights sum to 0, so linear cannot divide by their sum.",
            next_step="Use the method exact, or other weights.",
        )
    return {place: weight / total for place, weight in weights.items()}


def _resized(adapter: AdapterFolder, name: str) -> EngineError:
    return EngineError(
        "adapter.not_scored",
        f"The adapter {adapter.path.name} replaces '{name[:80]}' by one of another shape.",
        cause="A model whose vocabulary was resized for one adapter is another model for the others.",
        next_step="Merge that adapter into the base first, and mix what was trained on the result.",
    )
