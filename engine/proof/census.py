"""Which new parts of a model learn: what was seen of their gradients, and the verdict.

Owns counting, by stored tensor and by coordinate. Must not know where gradients come from. A coordinate (a row, a
column, an expert) lives when any of its entries had a gradient at step 0 or at step 1; exactly zero is dead, because a
structure that cannot learn multiplies by exact zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.expansion.certificate import Liveness, TensorEntry
from engine.proof.twins import Pair, same_signatures, signature, twin_pairs

DEAD_SHARE = 0.1
"""More dead new coordinates than that, on top of twice the share of dead old ones, and the new part is not alive:
ReLUs lose a few by themselves, a structure that cannot learn loses all or a third."""
DEAD_SHARE_OF_VECTOR = 0.5
"""Biases of keys have no gradient but rounding's: softmax does not see them."""
JUDGED_STEP = 1
"""Up to which step a gradient has to have arrived."""

_ROUTER = re.compile(r".*(\brouter\b.*|\bgate)\.weight")
_EXPERT = re.compile(r"(?P<before>.*\bexperts)\.(?P<expert>\d+)\.(?P<after>.*)")


@dataclass(slots=True)
class _Seen:
    """What is known of one tensor with new parts."""

    new: dict[int, Tensor]
    """Axis -> (n,) True for new coordinates."""
    alive: dict[int, Tensor]
    """Axis -> (n,) True where a gradient arrived by `JUDGED_STEP`."""
    late: dict[int, Tensor]
    """Axis -> (n,) True where one arrived after it."""
    any_gradient: bool = False

    def lacking(self, axis: int) -> Tensor:
        """(n,) True for new coordinates without a gradient by `JUDGED_STEP`."""
        return self.new[axis] & ~self.alive[axis]

    def dead(self, axis: int) -> Tensor:
        """(n,) True for coordinates, old and new, without any gradient."""
        return ~(self.alive[axis] | self.late[axis])


@dataclass(slots=True)
class Census:
    """Feed it with `see`, then ask for `verdict`."""

    entries: Mapping[str, TensorEntry]
    prefix: str = ""
    """The model's base prefix: some checkpoints store names without it."""
    buffers: frozenset[str] = frozenset()
    """Stored tensors that are no parameters: no gradient is meant to reach them."""
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _twins: dict[str, tuple[int, list[Pair]]] = field(default_factory=dict)
    _experts: dict[str, dict[int, tuple[float, ...]]] = field(default_factory=dict)
    _moving: set[str] = field(default_factory=set)
    """Kinds of tensors (names without numbers) of which one, old or new, had a gradient."""

    def see(self, step: int, gradients: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Gradients under stored names; those of step 1 with the values that they belong to."""
        for given, gradient in gradients.items():
            name = self._stored_name(given)
            if name is None:
                continue
            if step == JUDGED_STEP:
                self._compare_expert(name, gradient, values[given])
            if bool((gradient != 0).any()):
                self._moving.add(_kind(name))
            if not _has_new(self.entries[name]):
                continue
            seen = self._seen.setdefault(name, _begin(self.entries[name], gradient))
            self._note(seen, seen.alive if step <= JUDGED_STEP else seen.late, gradient)
            if step == JUDGED_STEP:
                self._look_for_twins(name, seen, gradient, values[given])

    def _stored_name(self, name: str) -> str | None:
        for candidate in (name, name.removeprefix(f"{self.prefix}."), f"{self.prefix}.{name}"):
            if candidate in self.entries:
                return candidate
        return None

    @staticmethod
    def _note(seen: _Seen, arrived: dict[int, Tensor], gradient: Tensor) -> None:
        moved = gradient != 0
        seen.any_gradient |= bool(moved.any())
        for axis, alive in arrived.items():
            others = [number for number in range(gradient.dim()) if number != axis]
            found = moved.any(dim=others) if others else moved
            if found.shape == alive.shape:  # of an embedding only the rows of the text are there
                alive |= found

    def _look_for_twins(self, name: str, seen: _Seen, gradient: Tensor, value: Tensor) -> None:
        for axis, new in seen.new.items():
            if new.shape[0] == gradient.shape[axis]:
                pairs = twin_pairs(value, gradient, axis, new)
                if pairs:
                    self._twins[f"{name}:{axis}"] = (axis, pairs)

    def _compare_expert(self, name: str, gradient: Tensor, value: Tensor) -> None:
        """Experts with tensors of their own: two of one layer may be twins as wholes, a new one of an old one too."""
        expert = _EXPERT.fullmatch(name)
        if expert and gradient.dim() > 1:
            group = f"{expert['before']}.*.{expert['after']}"
            self._experts.setdefault(group, {})[int(expert["expert"])] = signature(value, gradient)

    def all_alive(self, judged: frozenset[str] | None = None) -> bool:
        """Whether every new coordinate of the judged tensors has had a gradient by `JUDGED_STEP`."""
        judged_ones = (seen for name, seen in self._seen.items() if judged is None or name in judged)
        return not any(bool(seen.lacking(axis).any()) for seen in judged_ones for axis in seen.new)

    def verdict(self, judged: frozenset[str] | None = None, note: str = "") -> Liveness:
        """The section of the certificate. `judged` are the tensors whose surroundings took the step, where not all
        could."""
        new = [name for name, entry in self.entries.items() if _has_new(entry) and name not in self.buffers]
        asked = [name for name in new if judged is None or name in judged]
        unseen = [name for name in asked if name not in self._seen]
        dead: list[str] = []
        late: list[str] = []
        grave, idle = False, False
        for name in asked:
            if name in unseen or (len(self.entries[name].shape) < 2 and _kind(name) not in self._moving):
                continue  # the second: a vector that no layer learns by gradients, such as a router's balance
            seen = self._seen[name]
            lost = self._lost(name, seen)
            dead += [f"{name}: {loss.words}" for loss in lost]
            grave |= any(loss.grave for loss in lost)
            idle |= any(loss.unchosen for loss in lost)
            if not lost and any(bool(seen.lacking(axis).any()) for axis in seen.new):
                late.append(name)
        return Liveness(
            checked=True,
            alive=not grave and not unseen,
            new_tensors=len(new),
            dead=tuple(dead),
            twins=tuple(self._twin_words()),
            reason=" ".join(_reasons(note, unseen, idle, late)),
        )

    def _lost(self, name: str, seen: _Seen) -> list[_Loss]:
        """What of a tensor's new part is dead."""
        axes = len(self.entries[name].shape)
        if not seen.any_gradient and _EXPERT.fullmatch(name):
            return [_Loss("its expert was never chosen on this text", grave=False, unchosen=True)]
        if not axes and not seen.any_gradient:
            return [_Loss("no gradient", grave=True)]
        losses = []
        for axis, new in seen.new.items():
            dead = seen.dead(axis)
            lost, count, old = int((new & dead).sum()), int(new.sum()), int((~new).sum())
            if not lost:
                continue
            by_expert = axis == 0 and (axes > 2 or _ROUTER.fullmatch(name) is not None) and lost < count
            if by_expert:
                losses.append(_Loss(f"{lost} of {count} new experts never chosen on this text", False, unchosen=True))
                continue
            usual = int((~new & dead).sum()) / old if old else 0.0
            allowed = DEAD_SHARE_OF_VECTOR if axes < 2 else DEAD_SHARE + 2 * usual
            losses.append(_Loss(f"{lost} of {count} new on axis {axis}", grave=lost / count > allowed))
        return losses

    def _twin_words(self) -> list[str]:
        words = []
        for key, (axis, pairs) in self._twins.items():
            name = key.rpartition(":")[0]
            first = f"{pairs[0][0]} and {pairs[0][1]}"
            words.append(f"{name}: {len(pairs)} pairs on axis {axis}, such as {first}")
        for group, found in self._experts.items():
            numbers = sorted(found)
            pairs = [
                (a, b)
                for position, a in enumerate(numbers)
                for b in numbers[position + 1 :]
                if same_signatures(found[a], found[b]) and self._is_new(group, a, b)
            ]
            if pairs:
                words.append(f"{group}: {len(pairs)} pairs of experts, such as {pairs[0][0]} and {pairs[0][1]}")
        return words

    def _is_new(self, group: str, *experts: int) -> bool:
        return any(_has_new(self.entries[group.replace("*", str(number), 1)]) for number in experts)


def _has_new(entry: TensorEntry) -> bool:
    return entry.new or any(entry.new_spans)


def _begin(entry: TensorEntry, gradient: Tensor) -> _Seen:
    spans = entry.new_spans
    if entry.new and not any(spans):
        spans = (((0, entry.shape[0]),),) if entry.shape else ()
    new: dict[int, Tensor] = {}
    for axis, ranges in enumerate(spans):
        if ranges:
            mask = torch.zeros(entry.shape[axis], dtype=torch.bool)
            for begin, end in ranges:
                mask[begin:end] = True
            new[axis] = mask
    alive, late = ({axis: torch.zeros_like(mask) for axis, mask in new.items()} for _ in range(2))
    return _Seen(new, alive, late)


@dataclass(frozen=True, slots=True)
class _Loss:
    """A part that has no gradient."""

    words: str
    grave: bool
    unchosen: bool = False
    """Only because the text's tokens went elsewhere."""


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _reasons(note: str, unseen: list[str], idle: bool, late: list[str]) -> list[str]:
    reasons = [note] if note else []
    if unseen:
        reasons.append(f"The model has no parameter for {_few(unseen)}.")
    if idle:
        reasons.append("That no token of the text chose an expert is no defect.")
    if late:
        reasons.append(f"The first whole gradient comes at step 2 for {_few(late)}.")
    return reasons


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
