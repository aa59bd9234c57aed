"""A loaded base under a mix of adapters that changes from one score to the next.

Owns the hooks. Must not know rows or scores. The base's matrices are never touched: what a mix adds is computed beside
them, so that changing weights costs nothing and weights of 0 give the base bit for bit.

    y = W x + b   becomes   y + L (R x) + g (W x) + c      sums over the adapters, each with its weight
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.adapters.base import Base
from engine.adapters.changes import Change
from engine.adapters.factors import leading, truncated
from engine.adapters.folder import AdapterFolder
from engine.adapters.methods import InMemory, combine
from engine.adapters.recipe import Recipe, Share, weights_of
from engine.adapters.tensors import read_float
from engine.adapters.update import Update, bias_of, update_of
from engine.errors import EngineError
from engine.evaluation.model import LoadedModel
from engine.jobs.spec_mix import MixSection
from engine.surgery.numbers import Array


@dataclass(slots=True)
class _Site:
    """One module of the base, with everything adapters do to it. O outputs, I inputs, R rank."""

    name: str
    """Of its weight, as the base stores it."""
    module_name: str
    module: nn.Module
    embedding: bool
    transposed: bool
    """Whether the base stores its weight as (I, O)."""
    updates: dict[int, Update]
    """By the adapter's place."""
    biases: dict[int, Array]
    changes: dict[int, Change]
    """What the updates come from."""
    weight: Array | None
    """(O, I), float32; only where an update is a part of it (DoRA)."""
    left: Tensor | None = None  # (O, R)
    right: Tensor | None = None  # (R, I)
    gain: Tensor | None = None  # (O,)
    added: Tensor | None = None  # (O,)

    def clear(self) -> None:
        """The base again."""
        self.left = self.right = self.gain = self.added = None

    def hook(self, _module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """What the mix adds to the module's output."""
        if self.left is None and self.gain is None and self.added is None:
            return None
        found = output.float()
        with torch.autocast(output.device.type, enabled=False):
            if self.gain is not None:
                bias = getattr(self.module, "bias", None)
                found = found + self.gain * (found if bias is None else found - bias.float())
            if self.left is not None and self.right is not None:
                inner = self.right.T[arguments[0]] if self.embedding else arguments[0].float() @ self.right.T
                found = found + inner @ self.left.T
            if self.added is not None:
                found = found + self.added
        return found.to(output.dtype)


@dataclass(slots=True)
class _Replaced:
    """A parameter that adapters replace, whole or in rows: P + sum of w (P' - P)."""

    name: str
    """As the base stores it."""
    parameter: nn.Parameter
    base: Tensor
    differences: dict[int, Tensor] = field(default_factory=dict)
    changes: dict[int, Change] = field(default_factory=dict)
    """What the differences come from."""


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
        Raises EngineError `adapter.mix`."""
        if len(weights) != len(self.adapters):
            raise ValueError(f"{len(weights)} weights for {len(self.adapters)} adapters")
        mix = mix or MixSection()
        recipe = Recipe(mix.method, mix.density, mix.signs, mix.rank, seed)
        used = {place: float(weight) for place, weight in enumerate(weights) if weight}
        if used:
            shares = [Share(self.adapters[place], weight) for place, weight in used.items()]
            used = dict(zip(used, weights_of(shares, recipe), strict=True))
        for site in self._sites:
            site.clear()
            mine = {place: weight for place, weight in used.items() if place in site.updates}
            if not mine:
                continue
            if recipe.is_exact:
                self._sum(site, mine)
            else:
                self._cut(site, mine, recipe)
            self._add_biases(site, mine, recipe)
        for one in self._replaced:
            self._replace(one, used, recipe)

    # ── what a mix is at one module ──────────────────────────────────────────────────────────────────────────────
    def _sum(self, site: _Site, weights: dict[int, float]) -> None:
        parts = [(site.updates[place], weight) for place, weight in weights.items()]
        left = [self._on_device(update.left) * weight for update, weight in parts]
        site.left = torch.cat(left, 1)
        site.right = torch.cat([self._on_device(update.right) for update, _ in parts], 0)
        gains = [self._on_device(update.gain) * weight for update, weight in parts if update.gain is not None]
        site.gain = torch.stack(gains).sum(0) if gains else None

    def _cut(self, site: _Site, weights: dict[int, float], recipe: Recipe) -> None:
        """Methods that are no sum, and sums of a smaller rank: what comes out is of low rank, as it is stored."""
        updates = [site.updates[place] for place in weights]
        rank = recipe.rank or sum(update.right.shape[0] for update in updates)
        if recipe.is_sum and all(update.gain is None for update in updates):
            left = np.concatenate([site.updates[place].left * np.float32(w) for place, w in weights.items()], 1)
            right = np.concatenate([update.right for update in updates], 0)
            found = truncated(left, right, min(rank, right.shape[0])) if rank < right.shape[0] else (left, right)
        else:
            dense = [update.dense(site.weight) for update in updates]
            sources = [InMemory(np.ascontiguousarray(one.T) if site.transposed else one) for one in dense]
            marks = [site.changes[place].mark for place in weights] if recipe.draws else ()
            mixed = combine(sources, list(weights.values()), recipe, site.name, marks)
            u, values, vt = leading(mixed.T if site.transposed else mixed, min(rank, *mixed.shape))
            found = (u * values, vt)
        site.left, site.right = (self._on_device(np.ascontiguousarray(part)) for part in found)

    def _add_biases(self, site: _Site, weights: dict[int, float], recipe: Recipe) -> None:
        mine = {place: weight for place, weight in weights.items() if place in site.biases}
        if not mine:
            return
        sources = [InMemory(site.biases[place].reshape(1, -1)) for place in mine]
        marks = [Change(bias=site.changes[place].adapted).mark for place in mine] if recipe.draws else ()
        name = self._stored_name(f"{site.module_name}.bias")
        site.added = self._on_device(combine(sources, list(mine.values()), recipe, name, marks)[0])

    def _replace(self, one: _Replaced, weights: dict[int, float], recipe: Recipe) -> None:
        mine = {place: weights[place] for place in one.differences if place in weights}
        if not mine:
            one.parameter.data.copy_(one.base)
            return
        sources = [InMemory(one.differences[place].reshape(-1, one.base.shape[-1]).numpy()) for place in mine]
        marks = [one.changes[place].mark for place in mine] if recipe.draws else ()
        mixed = torch.from_numpy(combine(sources, list(mine.values()), recipe, one.name, marks))
        one.parameter.data.copy_(one.base.float() + mixed.reshape(one.base.shape).to(one.base.device))

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
            place: bias
            for place, one in adapted.items()
            if (bias := bias_of(one)) is not None
        }  # fmt: skip
        transposed = next(iter(adapted.values())).transposed
        inner = weight.T if weight is not None and transposed else weight
        needs_weight = any(update.gain is not None for update in updates.values())
        return _Site(
            self._stored_name(f"{name}.weight"),
            name,
            module,
            isinstance(module, nn.Embedding),
            transposed,
            updates,
            biases,
            {place: Change(adapted=one) for place, one in adapted.items()},
            inner if needs_weight else None,
        )

    def _replacements(self) -> list[_Replaced]:
        found: dict[str, _Replaced] = {}
        for place, adapter in enumerate(self.adapters):
            for whole in adapter.whole:
                one = self._parameter(found, whole.name, adapter)
                values = torch.from_numpy(read_float(whole.tensor))
                if values.shape != one.base.shape:
                    raise _resized(adapter, whole.name)
                one.differences[place] = values - one.base.float().cpu()
                one.changes[place] = Change(whole=whole.tensor)
            for rows in adapter.rows:
                one = self._parameter(found, rows.weight, adapter)
                difference = one.differences.get(place, torch.zeros(one.base.shape))
                values = torch.from_numpy(read_float(rows.tensor))
                difference[list(rows.indices)] = values - one.base[list(rows.indices)].float().cpu()
                one.differences[place] = difference
                one.changes[place] = one.changes.get(place, Change()).joined(Change(rows=rows))
        return list(found.values())

    def _stored_name(self, name: str) -> str:
        """What is dropped at random goes by it, in a mix and in a merged model as well."""
        stored = self._base.find(name)
        return stored.name if stored is not None else name

    def _parameter(self, found: dict[str, _Replaced], name: str, adapter: AdapterFolder) -> _Replaced:
        if name not in found:
            try:
                parameter = self.model.model.get_parameter(name)
            except AttributeError as error:
                raise _resized(adapter, name) from error
            found[name] = _Replaced(self._stored_name(name), parameter, parameter.data.clone())
        return found[name]


def _resized(adapter: AdapterFolder, name: str) -> EngineError:
    return EngineError(
        "adapter.not_scored",
        f"The adapter {adapter.path.name} replaces '{name[:80]}' by one of another shape.",
        cause="A model whose vocabulary was resized for one adapter is another model for the others.",
        next_step="Merge that adapter into the base first, and mix what was trained on the result.",
    )
