"""Feed-forward and whole decoder layers: pre-norm, post-norm, sandwich, parallel.

Owns the residual stream. Must not know how attention or projections work inside.
"""

from __future__ import annotations

from engine.estimate.program.attention import attention, slices
from engine.estimate.program.mixture import mixture
from engine.estimate.program.norms import norm
from engine.estimate.program.projections import linear
from engine.estimate.program.style import Style
from engine.estimate.shapes import FUSED_GATES
from engine.estimate.tape import Tape, Var
from engine.models.architecture import Architecture


def feed_forward(tape: Tape, x: Var, a: Architecture, style: Style) -> Var:
    """A dense feed-forward part, or the mixture of experts that most layers have instead."""
    if a.moe is not None and 2 * a.moe.moe_layers >= a.layers:
        return mixture(tape, x, a, a.moe, style, _dense)
    return _dense(tape, x, a, style, a.intermediate_size)


def _dense(tape: Tape, x: Var, a: Architecture, style: Style, f: int) -> Var:
    """down(act(gate(x)) · up(x)), or down(act(up(x))), `f` wide."""
    h = a.hidden_size
    if a.mlp_kind != "gated":
        wide = linear(tape, x, ("up_proj",), h, f, style)
        middle = _written_gelu(tape, wide) if a.family == "phi" else tape.elementwise(wide, saves_input=True)
        tape.drop(wide)
    elif a.family in FUSED_GATES:
        both = linear(tape, x, ("gate_proj", "up_proj"), h, 2 * f, style)
        gate, up, _ = slices(tape, both, (f, f, 0))
        active = tape.elementwise(gate, saves_input=True)
        middle = tape.multiply(up, active)
        tape.drop(gate, up, _, active)
    else:
        gate = linear(tape, x, ("gate_proj",), h, f, style)
        active = tape.elementwise(gate, saves_input=True)
        tape.drop(gate)
        up = linear(tape, x, ("up_proj",), h, f, style)
        middle = tape.multiply(active, up)
        tape.drop(active, up)
    out = linear(tape, middle, ("down_proj",), f, h, style)
    tape.drop(middle)
    return out


def _written_gelu(tape: Tape, x: Var) -> Var:
    """transformers' `gelu_new`, operator by operator: 0.5·x·(1 + tanh(c·(x + d·x³)))."""
    half = tape.elementwise(x)
    cube = tape.elementwise(x, saves_input=True)
    small = tape.elementwise(cube)
    tape.drop(cube)
    inner = tape.add(x, small)
    tape.drop(small)
    scaled = tape.elementwise(inner)
    tape.drop(inner)
    bent = tape.elementwise(scaled, saves_output=True)
    tape.drop(scaled)
    raised = tape.elementwise(bent)
    tape.drop(bent)
    out = tape.multiply(half, raised)
    tape.drop(half, raised)
    return out


def layer(tape: Tape, x: Var, a: Architecture, style: Style) -> Var:
    """One decoder layer; the caller keeps holding x."""
    if a.norm_placement == "parallel":
        return _parallel(tape, x, a, style)
    post = a.norm_placement == "post"
    both = a.norm_placement == "sandwich"
    stream = _residual_part(tape, x, a, style, attention, before=not post, after=post or both)
    out = _residual_part(tape, stream, a, style, feed_forward, before=not post, after=post or both)
    tape.drop(stream)
    return out


def _residual_part(
    tape: Tape, x: Var, a: Architecture, style: Style, part: object, *, before: bool, after: bool
) -> Var:
    entering = norm(tape, x, a, style) if before else tape.view(x)
    left: Var = part(tape, entering, a, style)  # type: ignore[operator]
    tape.drop(entering)
    if after:
        normed = norm(tape, left, a, style)
        tape.drop(left)
        left = normed
    if a.family == "granite":
        scaled = tape.elementwise(left)
        tape.drop(left)
        left = scaled
    out = tape.add(x, left)
    tape.drop(left)
    return out


def _parallel(tape: Tape, x: Var, a: Architecture, style: Style) -> Var:
    """Attention and feed-forward side by side on norms of the same input (GPT-NeoX, Falcon)."""
    entering = norm(tape, x, a, style)
    both = a.family == "falcon" and a.key_value_heads > 1  # each its own norm, made before attention
    beside = norm(tape, x, a, style) if both else None
    first = attention(tape, entering, a, style)
    if a.family == "gpt_neox":
        beside = norm(tape, x, a, style)
    if beside is not None:
        tape.drop(entering)
        entering = beside
    second = feed_forward(tape, entering, a, style)
    tape.drop(entering)
    joined = tape.add(second, first)
    tape.drop(first, second)
    out = tape.add(joined, x)
    tape.drop(joined)
    return out
