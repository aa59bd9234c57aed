"""What the adapter that comes out of a mix holds: which tensor in which form, of which rank.

Owns these decisions; headers are enough for them. Must not compute. Per tensor of the base that any adapter changes:

    FACTORS   all changes are of low rank: two factors
    WHOLE     an adapter has a copy of its own: a copy (modules_to_save, biases)
    ROWS      only single rows of an embedding change: those rows (trainable_token_indices)
    BIAS      only updates' own biases: one more of these (lora_bias)

The result is a DoRA adapter where an adapter is one and the sum is to be exact: rows of the base are scaled then, which
no low rank can say. It is plain LoRA otherwise, with scale 1 everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from engine.adapters.base import Base
from engine.adapters.changes import Change
from engine.adapters.recipe import Recipe, Share
from engine.adapters.tensors import same_values
from engine.errors import EngineError
from engine.models.headers import TensorHeader
from engine.models.weights import EMBEDDING_NAMES, HEAD_NAMES


class Form(StrEnum):
    FACTORS = "factors"
    WHOLE = "whole"
    ROWS = "rows"
    BIAS = "bias"


@dataclass(frozen=True, slots=True)
class Blend:
    """One tensor of the base and all that is done to it."""

    name: str
    """As adapters name it."""
    form: Form
    changes: tuple[tuple[int, Change], ...]
    """(number of the adapter, what it does)."""
    base: TensorHeader | None
    rank: int = 0
    """Of the result."""
    embedding: bool = False
    transposed: bool = False
    shape: tuple[int, ...] = ()
    """As the base stores it, or with the rows that an adapter adds to the vocabulary."""

    @property
    def module(self) -> str:
        """Without the parameter's own name."""
        return self.name.rpartition(".")[0]

    @property
    def indices(self) -> tuple[int, ...]:
        """Rows that any adapter replaces, sorted."""
        return tuple(sorted({row for _, change in self.changes if change.rows for row in change.rows.indices}))

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """Of the matrix, as stored."""
        return (self.shape[0], self.shape[1]) if len(self.shape) == 2 else (1, self.shape[0])


@dataclass(frozen=True, slots=True)
class MixPlan:
    """The result before it is computed."""

    blends: tuple[Blend, ...]
    dora: bool
    fan_in_fan_out: bool
    lora_bias: bool
    task_type: str
    copied: tuple[Blend, ...] = field(default=())
    """Unchanged tensors that belong to a module which is saved whole."""

    @property
    def resizing(self) -> frozenset[int]:
        """Numbers of the adapters that add rows to the vocabulary."""
        return frozenset(
            number
            for blend in self.blends
            for number, change in blend.changes
            if blend.base is not None and change.whole is not None and change.whole.shape[0] > blend.base.shape[0]
        )

    @property
    def targets(self) -> tuple[Blend, ...]:
        """What gets factors."""
        return tuple(blend for blend in self.blends if blend.form is Form.FACTORS)


def plan_mix(shares: Sequence[Share], recipe: Recipe, base: Base | None) -> MixPlan:
    """Raises EngineError `adapter.no_base` where the base's weights are needed and not given, `adapter.mix_form` where
    no adapter can be what is asked for."""
    changes = changes_of(shares, base)
    if base is None and any(one.needs_base for parts in changes.values() for _, one in parts):
        raise EngineError(
            "adapter.no_base",
            "The base's weights are needed to mix these adapters.",
            cause="DoRA, PiSSA, OLoRA, whole copies and rows of embeddings are differences to them.",
            next_step="Give the base's folder with --base, in 16 or 32 bits.",
        )
    _check_ties(changes, base)
    dora = recipe.is_exact and any(share.adapter.config.dora for share in shares)
    blends = [_blend(name, parts, base, recipe, dora) for name, parts in changes.items()]
    lora_bias = _may_add_biases(blends, dora)
    if not lora_bias:
        blends = [_bias_of_base(blend, base) for blend in blends]
    return MixPlan(
        blends=tuple(blends),
        dora=dora,
        fan_in_fan_out=any(share.adapter.config.fan_in_fan_out for share in shares),
        lora_bias=lora_bias,
        task_type=next((share.adapter.config.task_type for share in shares if share.adapter.config.task_type), ""),
        copied=tuple(_companions(blends, base)),
    )


def changes_of(shares: Sequence[Share], base: Base | None) -> dict[str, tuple[tuple[int, Change], ...]]:
    """What every adapter does to every tensor; copies equal to the base's are left out."""
    found: dict[str, dict[int, Change]] = {}

    def note(name: str, number: int, change: Change) -> None:
        of_tensor = found.setdefault(name, {})
        of_tensor[number] = of_tensor[number].joined(change) if number in of_tensor else change

    for number, share in enumerate(shares):
        for one in share.adapter.adapted:
            note(one.weight, number, Change(adapted=one))
            if one.bias is not None:
                note(f"{one.module}.bias", number, Change(bias=one))
        for whole in share.adapter.whole:
            stored = base.find(whole.name) if base is not None else None
            if stored is None or not same_values(stored, whole.tensor):
                note(whole.name, number, Change(whole=whole.tensor))
        for rows in share.adapter.rows:
            note(rows.weight, number, Change(rows=rows))
    return {name: tuple(sorted(parts.items(), key=lambda part: part[0])) for name, parts in found.items()}


def _check_ties(changes: Mapping[str, tuple[tuple[int, Change], ...]], base: Base | None) -> None:
    """peft lets a tied head follow rows of the embedding; beside another change of either that cannot be said."""
    if base is None or not base.tied:
        return
    ends = [name for name in changes if name.endswith((*EMBEDDING_NAMES, *HEAD_NAMES))]
    parts = [change for name in ends for _, change in changes[name]]
    if any(change.rows is not None for change in parts) and not all(change.is_rows for change in parts):
        raise EngineError(
            "adapter.mix_form",
            "One adapter changes rows of the tied embedding, another the embedding or the head.",
            cause="No adapter can say both on a base whose head is its embedding.",
            next_step="Make a model of it: --merged.",
        )


def _blend(name: str, parts: tuple[tuple[int, Change], ...], base: Base | None, recipe: Recipe, dora: bool) -> Blend:
    stored = base.find(name) if base is not None else None
    changes = [change for _, change in parts]
    adapted = next((change.adapted for change in changes if change.adapted is not None), None)
    shape = _shape(name, changes, stored)
    if all(change.is_low_rank for change in changes):
        assert adapted is not None
        _check_alike(name, changes)
        return Blend(
            name,
            Form.FACTORS,
            parts,
            stored,
            _rank(changes, recipe, shape),
            adapted.embedding,
            adapted.transposed,
            shape,
        )
    if all(change.is_rows for change in changes):
        return Blend(name, Form.ROWS, parts, stored, shape=shape)
    if all(change.bias is not None and change.whole is None for change in changes):
        return Blend(name, Form.BIAS, parts, stored, shape=shape)
    return Blend(name, Form.WHOLE, parts, stored, shape=shape)


def _rank(changes: Sequence[Change], recipe: Recipe, shape: tuple[int, ...]) -> int:
    together = sum(change.rank for change in changes)
    scaled = any(change.adapted is not None and change.adapted.magnitude is not None for change in changes)
    if recipe.is_sum and not scaled:
        return min(recipe.rank or together, together, *shape)
    return min(recipe.rank or together, *shape)


def _shape(name: str, changes: Sequence[Change], stored: TensorHeader | None) -> tuple[int, ...]:
    """As stored. Raises EngineError `adapter.mix_form` where vocabularies grew differently, or one shrank."""
    grown = {
        change.whole.shape
        for change in changes
        if change.whole is not None and stored is not None and change.whole.shape != stored.shape
    }
    if len(grown) > 1 or (grown and sum(1 for change in changes if change.whole is not None) > 1):
        raise EngineError(
            "adapter.mix_form",
            f"Several adapters have copies of '{name}', and a vocabulary was resized.",
            cause="Rows that the base does not have cannot be mixed: there is nothing they are a change of.",
            next_step="Merge the adapter with the resized vocabulary first, and mix the others on what comes out.",
        )
    if grown:
        shape = grown.pop()
        if stored is not None and shape[0] < stored.shape[0]:
            raise EngineError(
                "adapter.mix_form",
                f"An adapter's copy of '{name}' has {shape[0]:,} rows, and the base has {stored.shape[0]:,}.",
                cause="Its vocabulary was cut, and rows that are gone cannot be mixed.",
                next_step="Merge that adapter first, and mix the others on what comes out.",
            )
        return shape
    if stored is not None:
        return stored.shape
    adapted = next((change.adapted for change in changes if change.adapted is not None), None)
    if adapted is not None:
        return adapted.stored_shape
    bias = next(change.bias for change in changes if change.bias is not None)
    return (bias.outputs,)


def _check_alike(name: str, changes: Sequence[Change]) -> None:
    """Without a base nobody else has compared them."""
    shapes = {change.adapted.stored_shape for change in changes if change.adapted is not None}
    if len(shapes) > 1:
        raise EngineError(
            "adapter.other_base",
            f"The adapters were made for different bases: '{name.removesuffix('.weight')}' differs.",
            cause=f"Its shapes are {' and '.join(map(str, sorted(shapes)))}.",
            next_step="Mix adapters of one base.",
        )


def _may_add_biases(blends: Sequence[Blend], dora: bool) -> bool:
    """Whether the result can have updates' own biases: peft has none for DoRA, embeddings, or beside whole ones."""
    forms = {blend.form for blend in blends if blend.name.endswith(".bias")}
    targets = {blend.module for blend in blends if blend.form is Form.FACTORS}
    at_home = all(blend.module in targets for blend in blends if blend.form is Form.BIAS)
    embeddings = any(blend.embedding for blend in blends if blend.form is Form.FACTORS)
    return forms == {Form.BIAS} and at_home and not dora and not embeddings


def _bias_of_base(blend: Blend, base: Base | None) -> Blend:
    """An update's own bias as a changed bias of the base."""
    if blend.form is not Form.BIAS:
        return blend
    stored = base.find(blend.name) if base is not None else None
    if stored is None:
        raise EngineError(
            "adapter.mix_form",
            f"An adapter adds a bias to '{blend.module}', and the result cannot.",
            cause="peft has no biases of their own for DoRA, for embeddings, or beside trained biases, and this module "
            + ("has none in the base." if base is not None else "can only be looked at with the base."),
            next_step="Leave that adapter out." if base is not None else "Give the base with --base.",
        )
    return Blend(blend.name, Form.WHOLE, blend.changes, stored, shape=stored.shape)


def _companions(blends: Sequence[Blend], base: Base | None) -> Iterator[Blend]:
    """peft saves modules, not tensors: beside a changed weight stands the unchanged bias."""
    names = {blend.name for blend in blends}
    for blend in blends:
        if blend.form is not Form.WHOLE or base is None or not blend.name.endswith(".weight"):
            continue
        bias = f"{blend.module}.bias"
        stored = base.find(bias)
        if stored is not None and bias not in names:
            yield Blend(bias, Form.WHOLE, (), stored, shape=stored.shape)
