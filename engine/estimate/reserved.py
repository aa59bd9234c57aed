"""Reserved over allocated of a training process whose allocator keeps ordinary segments: two steps, replayed.

Owns the order in which a run asks for memory: weights, casts, adapter, then steps as the tape walks them. Must not know
what segments are (`allocator`) nor what a layer does (`program`). The order is physics, but that
loaders make a tied head once more was found on one published row (m063). On published T4 runs (SDPA,
22 configurations) what it reserves is within 0.7 % of what was measured for 16-bit weights and within 4 % for
NF4. A replay takes some 0.1 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from engine.estimate.allocator import Block, CachingAllocator
from engine.estimate.program.decoder import layer
from engine.estimate.program.head import head_and_loss
from engine.estimate.program.style import style_of
from engine.estimate.shapes import adapted_linears, shape_of
from engine.estimate.state import copy_width, packed_value_bytes
from engine.estimate.tape import GRADIENTS, Buffer, Tape, Var
from engine.estimate.walks import logit_share, shown_share
from engine.estimate.workload import Method, OptimizerKind, Workload

STEPS = 2

_Live = dict[int, tuple[Block, Buffer]]


class _Replay(Tape):
    """A tape whose storages are requested from an allocator; shared among the layers of a step."""

    def __init__(self, allocator: CachingAllocator, work: Workload, live: _Live, *, saving: bool = True) -> None:
        super().__init__(saving=saving)
        self._allocator, self._work, self.live = allocator, work, live

    def make(self, per_token: float, fixed: float = 0.0, kind: int | None = None, per_pair: float = 0.0) -> Buffer:
        buffer = super().make(per_token, fixed, kind, per_pair)
        size = (per_token + per_pair * self._work.sequence) * self._work.tokens + fixed
        if size > 0:
            self.live[id(buffer)] = (self._allocator.request(size), buffer)
        return buffer

    def free(self, buffer: Buffer) -> None:
        super().free(buffer)
        if buffer.holders <= 0:
            entry = self.live.pop(id(buffer), None)
            if entry is not None:
                self._allocator.release(entry[0])

    def _note(self) -> None:
        """The allocator remembers the peak."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What two replayed steps show."""

    ratio: float
    """Peak reserved / peak allocated, at least 1."""
    state_share: float
    """Share of the peak that stays between steps: weights, adapter, states."""
    token_share: float
    """Share of the peak that grows with tokens: what forward and backward allocate beside the state."""


@lru_cache(maxsize=1024)
def replayed(work: Workload) -> Replayed:
    """Two training steps on one device, without expandable segments."""
    run = _Run(work)
    run.load()
    for step in range(STEPS):
        run.step(first=step == 0)
    allocator = run.allocator
    peak = max(allocator.peak_allocated, 1)
    return Replayed(max(allocator.peak_reserved / peak, 1.0), run.state_bytes / peak, run.token_bytes / peak)


class _Run:
    """One process: its allocator and what it keeps between steps."""

    def __init__(self, work: Workload) -> None:
        self.work, self.allocator = work, CachingAllocator()
        self.state_bytes = self.token_bytes = 0
        self._style = {learns: style_of(work, learns=learns) for learns in (True, False)}

    def load(self) -> None:
        """Weights in the order of the model, packed ones by way of their 16-bit form; casts, adapter, workspace."""
        work, a, take = self.work, self.work.architecture, self.allocator.request
        embedding = float(a.vocab_size * a.hidden_size)
        outer = [take(work.compute_bytes * embedding)]
        for _ in range(a.layers):
            for elements in _matrices(work):
                self._weight(elements)
            for _ in range(2):
                take(work.compute_bytes * a.hidden_size)
        if not a.tied_embeddings or work.packed:
            outer.append(take(work.compute_bytes * embedding))
        if work.packed and a.tied_embeddings:  # some loaders make the tied head as well, and drop it
            self.allocator.release(outer.pop())
        if work.packed and copy_width(work) > work.compute_bytes:
            for block in outer:
                take(copy_width(work) * embedding)
                self.allocator.release(block)
        for size in self._adapter_sizes():
            take(size)
        take(work.workspace_bytes / 2)

    def _weight(self, elements: float) -> None:
        take = self.allocator.request
        whole = take(self.work.compute_bytes * elements)
        if self.work.packed:
            take(elements / 2)
            take(elements * (packed_value_bytes(self.work.packing) - 0.5))
            self.allocator.release(whole)

    def _adapter_sizes(self) -> list[float]:
        work = self.work
        if work.method is not Method.ADAPTER:
            return []
        sizes = []
        for linear in adapted_linears(work.architecture, work.targets):
            sizes += [float(work.adapter_bytes * work.rank * width) for width in (linear.inputs, linear.outputs)]
        sizes *= work.architecture.layers
        if work.train_embeddings:
            a = work.architecture
            sizes += [copy_width(work) * a.vocab_size * a.hidden_size] * (1 if a.tied_embeddings else 2)
        return sizes

    def step(self, *, first: bool) -> None:
        """Forward, loss, backward, optimizer."""
        live: _Live = {}
        before = self.allocator.recent_peak_allocated = self.allocator.allocated
        layers = self._forward(live)
        head = _Replay(self.allocator, self.work, live)
        hidden = self._input(Buffer(0.0, 0.0, 0))
        head_and_loss(head, hidden, self.work, logit_share(self.work), shown_share(self.work))
        if first:
            self.allocator.request(self.work.workspace_bytes / 2)
        loss_peak = self.allocator.recent_peak_allocated
        gradient = self._backward(live, layers, hidden.gradient)
        if gradient is not None:
            head.free(gradient)
        peak = self.allocator.recent_peak_allocated if self.work.method is Method.ADAPTER else loss_peak
        self.state_bytes, self.token_bytes = before, peak - before
        self._optimize(live, first=first)
        if self.work.stack.empties_cache:
            self.allocator.empty_cache()

    def _input(self, buffer: Buffer) -> Var:
        hidden = float(self.work.architecture.hidden_size)
        return Var(hidden, self._style[False].hidden, buffer, learns=True)

    def _learns(self, index: int) -> bool:
        work = self.work
        if work.method is Method.NEW_BLOCKS:
            every = max(work.architecture.layers // max(work.trained_layers, 1), 1)
            return index % every == every - 1
        return work.method is Method.FULL

    def _forward(self, live: _Live) -> list[_Layer]:
        work, count = self.work, self.work.architecture.layers
        tape = _Replay(self.allocator, work, live)
        x = tape.var(float(work.architecture.hidden_size), self._style[False].hidden, learns=True)
        layers: list[_Layer] = []
        for index in range(count):
            own = _Replay(self.allocator, work, live, saving=not work.checkpointing)
            source = self._input(x.buffer)
            out = layer(own, source, work.architecture, self._style[self._learns(index)])
            layers.append(_Layer(own, source, out))
            if work.offload_activations:
                own.free(x.buffer)
            x = out
        return layers

    def _backward(self, live: _Live, layers: list[_Layer], gradient: Buffer | None) -> Buffer | None:
        for index in reversed(range(len(layers))):
            one = layers[index]
            tape, source, out = one.tape, one.source, one.out
            if self.work.checkpointing:
                tape = _Replay(self.allocator, self.work, live)
                source = self._input(Buffer(0.0, 0.0, 0))
                recomputed = layer(tape, source, self.work.architecture, self._style[self._learns(index)])
                if not self.work.offload_activations or index == len(layers) - 1:
                    one.tape.free(out.buffer)
                out = recomputed
            tape.drop(out)
            if gradient is not None:
                tape.go_backward(out, gradient)
            gradient = source.gradient
        return gradient

    def _optimize(self, live: _Live, *, first: bool) -> None:
        work = self.work
        blocks = [entry[0] for entry in live.values() if entry[1].kind == GRADIENTS]
        per_gradient = {OptimizerKind.ADAMW: 2.0, OptimizerKind.ADAMW_MIXED: 6.0, OptimizerKind.SGD: 0.0}.get(
            work.optimizer, 2.03 / work.compute_bytes
        )
        if first and not work.optimizer_on_host and per_gradient:
            for block in blocks:
                self.allocator.request(block.size * per_gradient / 2)
                self.allocator.request(block.size * per_gradient / 2)
        if work.foreach:
            copies = [self.allocator.request(block.size * work.stack.foreach_copies) for block in blocks]
            for block in copies:
                self.allocator.release(block)
        for entry in live.values():
            self.allocator.release(entry[0])


class _Layer:
    """What the forward pass left of one layer."""

    __slots__ = ("out", "source", "tape")

    def __init__(self, tape: _Replay, source: Var, out: Var) -> None:
        self.tape, self.source, self.out = tape, source, out


def _matrices(work: Workload) -> list[float]:
    """Elements of the weight matrices of one average layer, in the order of the model."""
    a, s = work.architecture, shape_of(work.architecture)
    attention = [s.hidden * s.query, s.hidden * s.key_value, s.hidden * s.key_value, s.query * s.hidden]
    if a.moe is not None:
        rest = max(a.linear_parameters / max(a.layers, 1) - sum(attention), 0.0)
        return [float(size) for size in attention] + [rest * 2 / 3, rest / 3]
    matrices = 3 if a.mlp_kind == "gated" else 2
    return [float(size) for size in attention] + [float(s.hidden * a.intermediate_size)] * matrices
