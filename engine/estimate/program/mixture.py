"""A mixture of experts in place of the feed-forward part: routing, grouped products, weighting, a shared expert.

Owns transformers' `grouped_mm` path (the default on cards and CPUs) and what peft's expert adapters add to it. Must not
know the rest of the layer. Sources: transformers 5.23 `integrations/moe.py`, peft 0.21 `tuners/lora/layer.py`
(`ParamWrapper`: W + s·BA of all experts is made whole, in 16 bits, and kept for the backward pass).
"""

from __future__ import annotations

from collections.abc import Callable

from engine.estimate.program.style import FP32, Style
from engine.estimate.shapes import EXPERTS
from engine.estimate.tape import Buffer, Tape, Var
from engine.models.architecture import Architecture, Moe

FeedForward = Callable[[Tape, Var, Architecture, Style, int], Var]


def mixture(tape: Tape, x: Var, a: Architecture, moe: Moe, style: Style, dense: FeedForward) -> Var:
    """k of E experts for every token, summed by their weights; `dense` is the program of a shared expert."""
    h, f, k = a.hidden_size, moe.expert_intermediate_size, moe.experts_per_token
    shared = dense(tape, x, a, style, moe.shared_intermediate_size) if moe.shared_intermediate_size else None
    weights = _router(tape, x, moe, k)
    picked = _gather(tape, x, k)
    both = _grouped(tape, picked, moe.experts, h, 2 * f, k, style)
    tape.drop(picked)
    gate = Var(k * f, both.value_bytes, tape.hold(both.buffer), learns=both.learns)
    up = Var(k * f, both.value_bytes, tape.hold(both.buffer), learns=both.learns)
    for part in (gate, up):
        _slice(tape, part, both)
    tape.drop(both)
    active = tape.elementwise(gate, saves_input=True)
    middle = tape.multiply(active, up)
    tape.drop(gate, up, active)
    out = _grouped(tape, middle, moe.experts, f, h, k, style)
    tape.drop(middle)
    weighted = _weigh(tape, out, weights)
    tape.drop(out, weights)
    result = _sum(tape, weighted, h)
    tape.drop(weighted)
    if shared is not None:
        gated = tape.elementwise(shared, saves_input=True)
        tape.drop(shared)
        total = tape.add(result, gated)
        tape.drop(result, gated)
        result = total
    return result


def _router(tape: Tape, x: Var, moe: Moe, k: int) -> Var:
    """Logits of all experts, their softmax in fp32 (kept), the k best."""
    logits = tape.make(moe.experts * x.value_bytes)
    kept = tape.make(moe.experts * FP32)
    tape.free(logits)
    weights = tape.var(k, x.value_bytes, learns=x.learns)

    def backward(gradient: Buffer) -> None:
        tape.flash(2 * moe.experts * FP32)
        back = tape.make(x.values * x.value_bytes)
        tape.free(gradient)
        tape.give(x, back)

    tape.record(weights, backward, (kept,))
    tape.free(kept)
    return weights


def _gather(tape: Tape, x: Var, k: int) -> Var:
    """Each token's row once per expert it visits."""
    y = tape.var(k * x.values, x.value_bytes, learns=x.learns)

    def backward(gradient: Buffer) -> None:
        back = tape.make(x.values * x.value_bytes)
        tape.free(gradient)
        tape.give(x, back)

    tape.record(y, backward)
    return y


def _grouped(tape: Tape, x: Var, experts: int, inputs: int, outputs: int, k: int, style: Style) -> Var:
    """All experts' products at once. Adapters make the whole sum W + s·BA before, and its gradient afterwards."""
    matrices = float(experts * inputs * outputs) * style.compute
    adapted = EXPERTS in style.adapted
    merged = tape.make(0.0, matrices if adapted else 0.0)
    source = tape.cast(x, style.compute)
    y = tape.var(k * outputs, style.compute, learns=source.learns or adapted or style.learns)
    ranks = experts * style.rank * (2 if outputs > inputs else 1)

    def backward(gradient: Buffer) -> None:
        back = tape.make(source.values * style.compute) if source.learns else None
        if style.learns:
            tape.parameter_gradient(matrices)
        if adapted:
            whole = tape.make(0.0, matrices)
            tape.parameter_gradient(ranks * (inputs + outputs) * style.adapter)
            tape.free(whole)
        tape.free(gradient)
        if back is not None:
            tape.give(source, back)

    needed = adapted or style.learns
    tape.record(y, backward, (merged, *((source.buffer,) if needed else ())))
    tape.free(merged)
    tape.drop(source)
    return y


def _slice(tape: Tape, part: Var, whole: Var) -> None:
    size = whole.values * whole.value_bytes

    def backward(gradient: Buffer) -> None:
        back = tape.make(size)
        tape.free(gradient)
        tape.give(whole, back)

    tape.record(part, backward)


def _weigh(tape: Tape, x: Var, weights: Var) -> Var:
    """Rows times their router weights: both are kept."""
    y = tape.var(x.values, x.value_bytes, learns=True)

    def backward(gradient: Buffer) -> None:
        back = tape.make(x.values * x.value_bytes)
        tape.flash(x.values * x.value_bytes)
        own = tape.make(weights.values * weights.value_bytes)
        tape.free(gradient)
        tape.give(x, back)
        tape.give(weights, own)

    tape.record(y, backward, (x.buffer, weights.buffer))
    return y


def _sum(tape: Tape, x: Var, hidden: int) -> Var:
    """Rows back in order (a copy), then summed over a token's experts."""
    ordered = tape.elementwise(x)
    y = tape.var(hidden, x.value_bytes, learns=True)
    size = x.values * x.value_bytes

    def backward(gradient: Buffer) -> None:
        back = tape.make(size)
        tape.free(gradient)
        tape.give(ordered, back)

    tape.record(y, backward)
    tape.drop(ordered)
    return y
