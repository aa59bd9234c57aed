"""What a merged model's tensors are made of: which are copied, which are changed and by what, what is tied to what.

Owns these decisions. Must not read a tensor's data but to see whether two are equal. A tensor of the result is

    W + sum of w (F(W) - W)    F(W): what an adapter's base holds there with the adapter: a whole copy it was trained to
                               (modules_to_save, biases), rows it was trained to, a low-rank update added

so that several adapters merge as the weighted sum of their true updates, whatever their kinds, and one with weight 1 as
itself. A tied head follows the embedding as long as an adapter changes both alike; where it changes one of them only,
the model that was trained has two matrices, and so has the merged one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.adapters.base import Base
from engine.adapters.folder import Adapted, AdapterFolder, Rows
from engine.errors import EngineError
from engine.models.headers import TensorHeader
from engine.models.weights import EMBEDDING_NAMES, HEAD_NAMES
from engine.surgery import numbers
from engine.surgery.checks import equal_data


@dataclass(frozen=True, slots=True)
class Weighed:
    """An adapter and its share."""

    adapter: AdapterFolder
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """What one adapter does to one tensor."""

    weight: float
    whole: TensorHeader | None = None
    """Takes the base's place."""
    rows: Rows | None = None
    """Take the place of rows after that."""
    adapted: Adapted | None = None
    """Its update is added after that."""
    bias: Adapted | None = None
    """For a bias: the update's own, times its scale, is added."""

    @property
    def changes(self) -> bool:
        """Whether the tensor is another one afterwards."""
        return any(one is not None for one in (self.whole, self.rows, self.adapted, self.bias))


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the result."""

    name: str
    base: TensorHeader
    """What it starts from; an untied head starts from the embedding."""
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...] = ()
    """Empty for a copy."""

    @property
    def replaced_by(self) -> TensorHeader | None:
        """The stored tensor that it is, where nothing has to be computed."""
        if len(self.parts) != 1 or self.parts[0].weight != 1.0:
            return None
        part = self.parts[0]
        return None if any(one is not None for one in (part.rows, part.adapted, part.bias)) else part.whole


@dataclass(frozen=True, slots=True)
class MergePlan:
    """All tensors, in the base's order, and what the config has to say."""

    targets: tuple[Target, ...]
    unties: bool
    """Embedding and head were one matrix and are two now."""
    vocabulary: int
    """Rows of the embedding where they are not as many as the base's, else 0."""
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Changes:
    """Parts by the base's tensor, in the order of the adapters."""

    parts: dict[str, list[Part]] = field(default_factory=dict)

    def add(self, name: str, number: int, part: Part) -> None:
        """Put together with what the same adapter (`number`) does to the tensor already."""
        known = self.parts.setdefault(name, [])
        while len(known) <= number:
            known.append(Part(0.0))
        held = known[number]
        known[number] = Part(
            part.weight,
            part.whole or held.whole,
            part.rows or held.rows,
            part.adapted or held.adapted,
            part.bias or held.bias,
        )

    def of(self, name: str) -> tuple[Part, ...]:
        """What changes it."""
        return tuple(part for part in self.parts.get(name, ()) if part.changes and part.weight)


def plan_merge(base: Base, mix: Sequence[Weighed], dtype: str, *, tied: bool) -> MergePlan:
    """`tied`: what the base's config says of embedding and head. `dtype`: the format's name, "" keeps every tensor's.

    Raises EngineError `merge.no_tensor`, `merge.no_bias`, `merge.vocabulary`.
    """
    tensors = tuple(base.tensors.values())
    table = next((one for one in tensors if one.name.endswith(EMBEDDING_NAMES) and len(one.shape) == 2), None)
    head = next((one for one in tensors if one.name.endswith(HEAD_NAMES) and len(one.shape) == 2), None)
    if table is not None and (head is None or (tied and equal_data(head, table))):
        return _plan_tied(base, table, head.name if head is not None else _head_name(mix), mix, dtype)
    changes = _changes(base, mix, "")
    targets = tuple(_target(tensor, changes.of(tensor.name), dtype) for tensor in tensors)
    ends = [target for target in targets if target.base in (table, head)]
    return MergePlan(targets, False, _vocabulary(ends, table))


def _plan_tied(base: Base, table: TensorHeader, head_name: str, mix: Sequence[Weighed], dtype: str) -> MergePlan:
    """The head is the embedding; it is stored only where an adapter parts them."""
    changes = _changes(base, mix, head_name)
    of_table, of_head = _ends(changes, table.name, head_name, mix)
    together = _same(of_table, of_head)
    targets = []
    for tensor in base.tensors.values():
        if tensor.name != head_name:
            targets.append(_target(tensor, of_table if tensor is table else changes.of(tensor.name), dtype))
    if not together:
        targets.append(_target(table, of_head, dtype, name=head_name))
    ends = [target for target in targets if target.base is table]
    return MergePlan(tuple(targets), not together, _vocabulary(ends, table))


def _ends(
    changes: _Changes, table: str, head: str, mix: Sequence[Weighed]
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """What becomes of the one matrix as an embedding, and as a head."""
    of_table: list[Part] = []
    of_head: list[Part] = []
    nothing = Part(0.0)
    for number, one in enumerate(mix):
        mine = _at(changes, table, number) or nothing
        heads = _at(changes, head, number) or nothing
        config = one.adapter.config
        if config.ensure_weight_tying:
            heads = mine
        else:
            # What was saved of the base itself, and single rows, belong to both; trained copies and updates to one.
            shared = None if _is_copy(table, config.modules_to_save) else mine.whole
            heads = replace(heads, whole=heads.whole or shared, rows=heads.rows or mine.rows)
        of_table.append(replace(mine, weight=one.weight))
        of_head.append(replace(heads, weight=one.weight))
    return tuple(p for p in of_table if p.changes and p.weight), tuple(p for p in of_head if p.changes and p.weight)


def _is_copy(name: str, modules_to_save: Sequence[str]) -> bool:
    """Whether a module learns as a copy of its own beside the base's (peft's `modules_to_save`)."""
    module = name.removesuffix(".weight")
    return any(module == one or module.endswith(f".{one}") for one in modules_to_save)


def _at(changes: _Changes, name: str, number: int) -> Part | None:
    known = changes.parts.get(name, [])
    return known[number] if number < len(known) else None


def _same(one: Sequence[Part], other: Sequence[Part]) -> bool:
    """Whether both come to the same numbers: the same parts, or copies that were saved twice."""
    if tuple(one) == tuple(other):
        return True
    if len(one) != len(other):
        return False
    for first, second in zip(one, other, strict=True):
        if replace(first, whole=None) != replace(second, whole=None):
            return False
        if first.whole is None or second.whole is None or not equal_data(first.whole, second.whole):
            return False
    return True


def _changes(base: Base, mix: Sequence[Weighed], head_name: str) -> _Changes:
    """Every part of every adapter, by the base's tensor; `head_name`: what a tied head goes by."""
    found = _Changes()

    def named(name: str, adapter: AdapterFolder) -> str:
        if head_name and name.endswith(HEAD_NAMES):
            return head_name
        stored = base.find(name)
        if stored is None:
            raise _no_tensor(name, adapter)
        return stored.name

    for number, one in enumerate(mix):
        adapter, weight = one.adapter, one.weight
        for adapted in adapter.adapted:
            found.add(named(adapted.weight, adapter), number, Part(weight, adapted=adapted))
            if adapted.bias is not None:
                found.add(_bias(adapted, base, adapter), number, Part(weight, bias=adapted))
        for whole in adapter.whole:
            found.add(named(whole.name, adapter), number, Part(weight, whole=whole.tensor))
        for rows in adapter.rows:
            found.add(named(rows.weight, adapter), number, Part(weight, rows=rows))
    return found


def _no_tensor(name: str, adapter: AdapterFolder) -> EngineError:
    return EngineError(
        "merge.no_tensor",
        f"The base has no tensor '{name[:80]}', which the adapter {adapter.path.name} changes.",
        cause="The adapter was trained on another model, or on a form of it that is stored under other names.",
        next_step="Name the model that the adapter was trained on with --base.",
    )


def _bias(adapted: Adapted, base: Base, adapter: AdapterFolder) -> str:
    found = base.find(f"{adapted.module}.bias")
    if found is not None:
        return found.name
    raise EngineError(
        "merge.no_bias",
        f"The adapter {adapter.path.name} adds a bias to '{adapted.module[:80]}', which has none in the base.",
        cause="A merged model would have a parameter that its architecture does not know.",
        next_step="Keep the adapter beside its base; it cannot be merged.",
    )


def _head_name(mix: Sequence[Weighed]) -> str:
    """How the head is called where the base does not store one: as an adapter calls it."""
    for one in mix:
        names = [adapted.weight for adapted in one.adapter.adapted]
        names += [whole.name for whole in one.adapter.whole]
        for name in names:
            if name.endswith(HEAD_NAMES):
                return name
    return HEAD_NAMES[0]


def _target(tensor: TensorHeader, parts: tuple[Part, ...], dtype: str, *, name: str = "") -> Target:
    shapes = {part.whole.shape if part.whole is not None else tensor.shape for part in parts}
    if len(shapes) > 1 or (len(parts) > 1 and shapes != {tensor.shape}):
        raise EngineError(
            "merge.vocabulary",
            f"Several adapters change '{tensor.name[:80]}', and a vocabulary was resized.",
            cause=f"{' and '.join(f'{shape[0]:,} rows' for shape in sorted(shapes))}; the base has {tensor.shape[0]:,}."
            " Rows that the base does not have are no change of it, and cannot be added.",
            next_step="Merge one of them first, and train or mix the others on what comes out.",
        )
    kind = dtype if dtype and tensor.dtype in numbers.FLOATS else tensor.dtype
    return Target(name or tensor.name, tensor, shapes.pop() if shapes else tensor.shape, kind, parts)


def _vocabulary(ends: Sequence[Target], table: TensorHeader | None) -> int:
    """Rows of embedding and head where they changed. Raises EngineError `merge.vocabulary` where they differ."""
    if table is None or all(target.shape == target.base.shape for target in ends):
        return 0
    rows = {target.shape[0] for target in ends}
    if len(rows) > 1:
        counts = " and ".join(f"{target.shape[0]:,} of '{target.name}'" for target in ends)
        raise EngineError(
            "merge.vocabulary",
            "Embedding and output head would have different numbers of tokens.",
            cause=f"The rows are {counts}: the adapter holds only one of the two resized.",
            next_step="Save the adapter again with save_embedding_layers=True, so that it holds both.",
        )
    found = rows.pop()
    return 0 if found == table.shape[0] else found
