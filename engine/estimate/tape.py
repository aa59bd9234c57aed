"""A training step in symbols: which tensors live when, without computing anything.

Owns a miniature of autograd. A program calls operators in the order in which the library's code does; every operator
says what it makes, what it saves for the backward pass and what it makes there (source: torch's `derivatives.yaml` and
the operators' own formulas, checked against fake-tensor traces). Sizes have three parts: bytes per token, bytes per
pair of tokens of one sequence (masks), and bytes that do not depend on tokens, so that one walk answers every batch and
length. The largest moments are kept as a frontier of such sizes.

Must not know models: `engine.estimate.program` writes the programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

KINDS = ("activations", "logits", "gradients", "temporary")
ACTIVATIONS, LOGITS, GRADIENTS, TEMPORARY = range(4)


@dataclass(frozen=True, slots=True)
class Moment:
    """What is alive at one moment beyond what was before the program: per token and fixed, by kind; per pair."""

    per_token: tuple[float, float, float, float]
    fixed: tuple[float, float, float, float]
    per_pair: float = 0.0
    """Masks, counted to the activations."""

    def at_least(self, other: Moment) -> bool:
        """Whether this one is as large whatever the tokens and the sequence are."""
        return (
            self.per_pair >= other.per_pair
            and sum(self.per_token) >= sum(other.per_token)
            and sum(self.fixed) >= sum(other.fixed)
        )

    def total(self, tokens: float, sequence: float) -> float:
        """Bytes with so many tokens in sequences of that length."""
        return tokens * (sum(self.per_token) + sequence * self.per_pair) + sum(self.fixed)

    def at(self, tokens: float, sequence: float) -> tuple[float, float, float, float]:
        """Bytes by kind with so many tokens in sequences of that length."""
        p, f = self.per_token, self.fixed
        first = tokens * (p[0] + sequence * self.per_pair) + f[0]
        return first, tokens * p[1] + f[1], tokens * p[2] + f[2], tokens * p[3] + f[3]


def combined(first: Moment, second: Moment, sign: float = 1.0) -> Moment:
    """first + sign · second."""
    a, b, c, d = (x + sign * y for x, y in zip(first.per_token, second.per_token, strict=True))
    e, f, g, h = (x + sign * y for x, y in zip(first.fixed, second.fixed, strict=True))
    return Moment((a, b, c, d), (e, f, g, h), first.per_pair + sign * second.per_pair)


NOTHING = Moment((0.0,) * 4, (0.0,) * 4)


class Buffer:
    """One storage: alive while somebody holds it."""

    __slots__ = ("fixed", "holders", "kind", "per_pair", "per_token")

    def __init__(self, per_token: float, fixed: float, kind: int, per_pair: float = 0.0) -> None:
        self.per_token, self.fixed, self.kind, self.per_pair, self.holders = per_token, fixed, kind, per_pair, 1


class Var:
    """A tensor: values per token, bytes per value, its storage, and the gradient that waits for it."""

    __slots__ = ("buffer", "fixed_values", "gradient", "learns", "value_bytes", "values")

    def __init__(self, values: float, value_bytes: float, buffer: Buffer, *, learns: bool, fixed: float = 0.0) -> None:
        self.values, self.value_bytes, self.buffer, self.learns = values, value_bytes, buffer, learns
        self.fixed_values = fixed
        self.gradient: Buffer | None = None


class Tape:
    """Live bytes, the frontier of their largest moments, and the steps of the backward pass."""

    def __init__(self, *, saving: bool = True) -> None:
        self.saving = saving
        """False inside a checkpointed forward pass: nothing is kept but what Python holds."""
        self._per_token = [0.0, 0.0, 0.0, 0.0]
        self._fixed = [0.0, 0.0, 0.0, 0.0]
        self._born = ACTIVATIONS
        self._per_pair = 0.0
        self._frontier: list[Moment] = []
        self._steps: list[tuple[Var, Callable[[Buffer], None], tuple[Buffer, ...]]] = []
        self._before_last_save: list[Moment] = []
        self._logits = False
        self.at_first_save: Moment | None = None
        """What was alive when the backward pass first asked for a saved tensor: there a checkpoint recomputes."""

    # ── storages ──────────────────────────────────────────────────────────────────────────────────────────────────
    def make(self, per_token: float, fixed: float = 0.0, kind: int | None = None, per_pair: float = 0.0) -> Buffer:
        """A new storage, held once by whoever asked."""
        chosen = kind if kind is not None else LOGITS if self._logits else self._born
        self._per_token[chosen] += per_token
        self._fixed[chosen] += fixed
        self._per_pair += per_pair
        self._note()
        return Buffer(per_token, fixed, chosen, per_pair)

    def hold(self, buffer: Buffer) -> Buffer:
        """One more holder."""
        buffer.holders += 1
        return buffer

    def free(self, buffer: Buffer) -> None:
        """One holder less; without any the storage is gone."""
        buffer.holders -= 1
        if buffer.holders == 0:
            self._per_token[buffer.kind] -= buffer.per_token
            self._fixed[buffer.kind] -= buffer.fixed
            self._per_pair -= buffer.per_pair

    def flash(self, per_token: float, fixed: float = 0.0) -> None:
        """Something that is made and gone within one operator."""
        self.free(self.make(per_token, fixed))

    def logits(self, on: bool) -> None:
        """From now on storages count as logits, or no longer."""
        self._logits = on

    def _note(self) -> None:
        moment = self.now()
        kept = []
        for other in self._frontier:
            if other.at_least(moment):
                return
            if not moment.at_least(other):
                kept.append(other)
        kept.append(moment)
        self._frontier = kept

    # ── results ───────────────────────────────────────────────────────────────────────────────────────────────────
    def now(self) -> Moment:
        """What is alive at this moment."""
        p, f = self._per_token, self._fixed
        return Moment((p[0], p[1], p[2], p[3]), (f[0], f[1], f[2], f[3]), self._per_pair)

    def take_peaks(self) -> tuple[Moment, ...]:
        """The largest moments since the last call."""
        peaks = tuple(self._frontier)
        self._frontier = []
        self._note()
        return peaks or (self.now(),)

    def take_recomputed_peaks(self) -> tuple[Moment, ...]:
        """As `take_peaks`, up to the last tensor that was saved: a recomputation stops there."""
        self._frontier = self._before_last_save
        return self.take_peaks()

    # ── operators ─────────────────────────────────────────────────────────────────────────────────────────────────
    def var(self, values: float, value_bytes: float, *, learns: bool, fixed: float = 0.0) -> Var:
        """A new tensor."""
        buffer = self.make(values * value_bytes, fixed * value_bytes)
        return Var(values, value_bytes, buffer, learns=learns, fixed=fixed)

    def drop(self, *variables: Var) -> None:
        """Python lets go of them."""
        for variable in variables:
            self.free(variable.buffer)

    def view(self, x: Var, values: float | None = None) -> Var:
        """The same storage under another shape; gradients pass through."""
        y = Var(x.values if values is None else values, x.value_bytes, self.hold(x.buffer), learns=x.learns)

        def backward(gradient: Buffer) -> None:
            self.give(x, gradient)

        self.record(y, backward)
        return y

    def record(self, y: Var, backward: Callable[[Buffer], None], saves: tuple[Buffer, ...] = ()) -> None:
        """`backward(gradient of y)` runs in reverse order; it frees the gradient. `saves` are held until then."""
        if not y.learns or not self.saving:
            return
        for buffer in saves:
            self.hold(buffer)
        self._steps.append((y, backward, saves))
        if saves:
            self._before_last_save = list(self._frontier)

    def give(self, x: Var, gradient: Buffer) -> None:
        """`gradient` is added to what waits for x (in place, as autograd does); it changes hands."""
        if not x.learns:
            self.free(gradient)
        elif x.gradient is None:
            x.gradient = gradient
        else:
            if x.gradient.holders > 1:  # shared with another branch: the sum is a new tensor
                shared, x.gradient = x.gradient, self.make(gradient.per_token, gradient.fixed)
                self.free(shared)
            self.free(gradient)

    def parameter_gradient(self, fixed: float) -> None:
        """A gradient of parameters that stays until the optimizer's step."""
        self.make(0.0, fixed, GRADIENTS)

    def go_backward(self, y: Var, gradient: Buffer) -> None:
        """Run the recorded steps for `gradient` of `y`, newest first."""
        self._born = TEMPORARY
        self.give(y, gradient)
        self.at_first_save = None
        for variable, backward, saves in reversed(self._steps):
            waiting = variable.gradient
            if saves and waiting is not None and self.at_first_save is None:
                self.at_first_save = self.now()
            if waiting is not None:
                variable.gradient = None
                backward(waiting)
            for buffer in saves:
                self.free(buffer)
        self._steps.clear()
        self._born = ACTIVATIONS

    # ── the operators that blocks are made of ─────────────────────────────────────────────────────────────────────
    def cast(self, x: Var, value_bytes: float) -> Var:
        """`x.to(dtype)`: the same tensor when the type is the same, else a copy; saves nothing."""
        if x.value_bytes == value_bytes:
            return self.view(x)
        y = self.var(x.values, value_bytes, learns=x.learns, fixed=x.fixed_values)

        def backward(gradient: Buffer) -> None:
            back = self.make(x.values * x.value_bytes, x.fixed_values * x.value_bytes)
            self.free(gradient)
            self.give(x, back)

        self.record(y, backward)
        return y

    def elementwise(
        self, x: Var, *, saves_input: bool = False, saves_output: bool = False, flashes: int = 0, learns: bool = False
    ) -> Var:
        """One value in, one value out (scaling, activation functions). `flashes`: values made within its backward;
        `learns`: by a parameter of its own."""
        y = self.var(x.values, x.value_bytes, learns=x.learns or learns)
        size = x.values * x.value_bytes

        def backward(gradient: Buffer) -> None:
            if flashes:
                self.flash(flashes * size)
            back = self.make(size)
            self.free(gradient)
            self.give(x, back)

        saves = (*((x.buffer,) if saves_input else ()), *((y.buffer,) if saves_output else ()))
        self.record(y, backward, saves)
        return y

    def copy(self, x: Var) -> Var:
        """`clone`, `contiguous` of another order: a new storage; its gradient is handed on as it is."""
        y = self.var(x.values, x.value_bytes, learns=x.learns)
        self.record(y, lambda gradient: self.give(x, gradient))
        return y

    def add(self, x: Var, y: Var) -> Var:
        """x + y in the wider type: both get the same gradient, cast where types differ. Saves nothing."""
        width = max(x.value_bytes, y.value_bytes)
        z = self.var(max(x.values, y.values), width, learns=x.learns or y.learns)

        def backward(gradient: Buffer) -> None:
            for variable in (x, y):
                if not variable.learns:
                    continue
                if variable.value_bytes == width:
                    self.give(variable, self.hold(gradient))
                else:
                    self.give(variable, self.make(variable.values * variable.value_bytes))
            self.free(gradient)

        self.record(z, backward)
        return z

    def multiply(self, x: Var, y: Var) -> Var:
        """x * y, values alike: each saves the other."""
        z = self.var(x.values, x.value_bytes, learns=x.learns or y.learns)

        def backward(gradient: Buffer) -> None:
            if x.learns:
                first = self.make(x.values * x.value_bytes)
            if y.learns:
                second = self.make(y.values * y.value_bytes)
            self.free(gradient)
            if x.learns:
                self.give(x, first)
            if y.learns:
                self.give(y, second)

        saves = (*((x.buffer,) if y.learns else ()), *((y.buffer,) if x.learns else ()))
        self.record(z, backward, saves)
        return z
