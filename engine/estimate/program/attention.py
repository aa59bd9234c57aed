"""Attention: projections, rotary positions, scores by a fused kernel or eagerly.

Owns the order in which `self_attn.forward` makes and drops tensors. Must not know the rest of the layer.
"""

from __future__ import annotations

from engine.estimate.program.norms import norm
from engine.estimate.program.projections import linear
from engine.estimate.program.style import FP32, Style
from engine.estimate.shapes import FUSED_ATTENTION, shape_of
from engine.estimate.tape import Buffer, Tape, Var
from engine.models.architecture import Architecture


def attention(tape: Tape, x: Var, a: Architecture, style: Style) -> Var:
    """Projections, rotary positions, scores, output projection; as `self_attn.forward` frees its locals."""
    s = shape_of(a)
    query, key, value, held = _projections(tape, x, a, style)
    if a.qk_norm != "none":
        query, key = _head_norm(tape, query, a, style), _head_norm(tape, key, a, style)
    if a.rope.kind != "none":
        query, key = _rotate_both(tape, query, key, a)
    if style.autocast and query.value_bytes != style.compute:  # autocast turns the operands of attention to 16 bits
        wide, (query, key, value) = (query, key, value), [tape.cast(v, style.compute) for v in (query, key, value)]
        out = _scores(tape, query, key, value, a, style)
        tape.drop(*wide)
    else:
        out = _scores(tape, query, key, value, a, style)
    tape.drop(query, key, value)
    if a.family in JOINED_ROTATION and not style.eager:  # heads stand before tokens: turned round by a copy
        turned = tape.copy(out)
        tape.drop(out)
        out = turned
    projected = linear(tape, out, ("o_proj",), s.query, s.hidden, style)
    tape.drop(out, *held)
    return projected


def _projections(tape: Tape, x: Var, a: Architecture, style: Style) -> tuple[Var, Var, Var, tuple[Var, ...]]:
    """Query, key, value, and what the function's locals hold until it returns."""
    s = shape_of(a)
    if a.family in FUSED_ATTENTION:
        fused = linear(tape, x, ("q_proj", "k_proj", "v_proj"), s.hidden, s.query + 2 * s.key_value, style)
        if a.family == "falcon":
            return (*_falcon_slices(tape, fused, a), (fused,))
        return (*slices(tape, fused, (s.query, s.key_value, s.key_value)), ())
    return (
        linear(tape, x, ("q_proj",), s.hidden, s.query, style),
        linear(tape, x, ("k_proj",), s.hidden, s.key_value, style),
        linear(tape, x, ("v_proj",), s.hidden, s.key_value, style),
        (),
    )


def _falcon_slices(tape: Tape, fused: Var, a: Architecture) -> tuple[Var, Var, Var]:
    """A view of the queries (a copy where groups stand between them); keys and values picked out by index, which
    copies, and spread to every query head where there are several."""
    s, whole = shape_of(a), fused.values * fused.value_bytes
    query = Var(s.query, fused.value_bytes, tape.hold(fused.buffer), learns=fused.learns)
    _spread_back(tape, query, fused, whole)
    grouped = 1 < a.key_value_heads < a.attention_heads
    if grouped:
        copied = tape.copy(query)
        tape.drop(query)
        query = copied
    picked = []
    for _ in range(2):
        part = tape.var(s.key_value, fused.value_bytes, learns=fused.learns)
        _spread_back(tape, part, fused, whole)
        if grouped:
            wide = _repeat(tape, part, s.query)
            tape.drop(part)
            part = wide
        picked.append(part)
    return query, picked[0], picked[1]


def _spread_back(tape: Tape, part: Var, whole: Var, size: float) -> None:
    def backward(gradient: Buffer) -> None:
        back = tape.make(size)
        tape.free(gradient)
        tape.give(whole, back)

    tape.record(part, backward)


def slices(tape: Tape, fused: Var, widths: tuple[int, int, int]) -> tuple[Var, Var, Var]:
    """Views of one storage. Each slice's gradient is spread to the whole width and summed there."""
    views = []
    whole = fused.values * fused.value_bytes
    for width in widths:
        part = Var(width, fused.value_bytes, tape.hold(fused.buffer), learns=fused.learns)

        def backward(gradient: Buffer) -> None:
            back = tape.make(whole)
            tape.free(gradient)
            tape.give(fused, back)

        tape.record(part, backward)
        views.append(part)
    tape.drop(fused)
    return views[0], views[1], views[2]


def _head_norm(tape: Tape, x: Var, a: Architecture, style: Style) -> Var:
    out = norm(tape, x, a, style)
    tape.drop(x)
    return out


JOINED_ROTATION = ("phi3", "gpt_neox", "stablelm", "phi", "glm4")
"""Families whose rotated and unrotated parts are joined into a new tensor, also when nothing is left unrotated."""


def _rotate_both(tape: Tape, query: Var, key: Var, a: Architecture) -> tuple[Var, Var]:
    """q·cos + rotate_half(q)·sin for both, then the unrotated ones are let go."""
    share, joins = a.rope.partial_factor, a.family in JOINED_ROTATION
    if a.family == "cohere":  # turned in fp32; the caller holds the originals meanwhile
        wide = tape.cast(query, FP32), tape.cast(key, FP32)
        both = [_rotate(tape, one, share, joins=joins) for one in wide]
        narrow = tape.cast(both[0], query.value_bytes), tape.cast(both[1], key.value_bytes)
        tape.drop(*both, *wide, query, key)
        return narrow
    turned = _rotate(tape, query, share, joins=joins), _rotate(tape, key, share, joins=joins)
    tape.drop(query, key)
    return turned


def _rotate(tape: Tape, x: Var, share: float, *, joins: bool) -> Var:
    width = x.value_bytes
    part = x.values * share
    first = tape.make(part * width)  # x · cos
    negative = tape.make(part / 2 * width)
    half = tape.make(part * width)
    tape.free(negative)
    second = tape.make(part * width)  # rotate_half(x) · sin
    tape.free(half)
    y = tape.var(part, width, learns=x.learns)
    tape.free(first)
    tape.free(second)
    if joins:
        joined = tape.var(x.values, width, learns=x.learns)
        tape.drop(y)
        y = joined

    def backward(gradient: Buffer) -> None:
        sine = tape.make(part * width)
        left = tape.make(part * width)
        tape.free(sine)
        right = tape.make(part / 2 * width)
        tape.free(left)
        both = tape.make(part * width)
        tape.free(right)
        cosine = tape.make(part * width)
        tape.free(gradient)
        tape.free(cosine)
        if joins:
            whole = tape.make(x.values * width)
            tape.free(both)
            both = whole
        tape.give(x, both)

    tape.record(y, backward)
    return y


def _scores(tape: Tape, query: Var, key: Var, value: Var, a: Architecture, style: Style) -> Var:
    if style.eager:
        return _eager(tape, query, key, value, a, style)
    s = shape_of(a)
    width = query.value_bytes
    copies = []
    if (style.masked or style.repeats or a.head_dim > 256) and s.query != s.key_value:
        many = a.key_value_heads > 1
        key, value = _repeat(tape, key, s.query, copies=many), _repeat(tape, value, s.query, copies=many)
        copies = [key, value]
    mask = tape.make(0.0, per_pair=width) if style.masked else None
    learns = query.learns or key.learns or value.learns
    y = tape.var(s.query, width, learns=learns)
    statistics = tape.make(4.0 * s.heads)

    def backward(gradient: Buffer) -> None:
        grads = [tape.make(v.values * width) for v in (query, key, value)]
        tape.free(gradient)
        for variable, back in zip((query, key, value), grads, strict=True):
            tape.give(variable, back)

    saves = (query.buffer, key.buffer, value.buffer, y.buffer, statistics, *((mask,) if mask else ()))
    tape.record(y, backward, saves)
    tape.free(statistics)
    if mask:
        tape.free(mask)
    tape.drop(*copies)
    return y


def _repeat(tape: Tape, x: Var, values: float, *, copies: bool = True) -> Var:
    """Keys or values copied to every query head; a single head is only viewed so often."""
    if copies:
        y = tape.var(values, x.value_bytes, learns=x.learns)
    else:
        y = Var(values, x.value_bytes, tape.hold(x.buffer), learns=x.learns)

    def backward(gradient: Buffer) -> None:
        back = tape.make(x.values * x.value_bytes)
        tape.free(gradient)
        tape.give(x, back)

    tape.record(y, backward)
    return y


def _eager(tape: Tape, query: Var, key: Var, value: Var, a: Architecture, style: Style) -> Var:
    """Scores of all pairs: a·s values per token. Keeps the fp32 probabilities and their 16-bit copy."""
    s = shape_of(a)
    pairs = float(s.heads * style.sequence)
    width = query.value_bytes
    if s.query != s.key_value:
        many = a.key_value_heads > 1
        key, value = _repeat(tape, key, s.query, copies=many), _repeat(tape, value, s.query, copies=many)
    raw = tape.var(pairs, width, learns=True)

    def score_backward(gradient: Buffer) -> None:
        back_query, back_key = tape.make(s.query * width), tape.make(s.query * width)
        tape.free(gradient)
        tape.give(query, back_query)
        tape.give(key, back_key)

    tape.record(raw, score_backward, (query.buffer, key.buffer))
    scaled = tape.elementwise(raw)
    tape.drop(raw)
    if a.family == "gemma2":  # scores capped: / cap, tanh (kept), x cap
        for saves in (False, True, False):
            capped = tape.elementwise(scaled, saves_output=saves)
            tape.drop(scaled)
            scaled = capped
    masked = tape.elementwise(scaled)
    tape.drop(scaled)
    soft = tape.var(pairs, FP32, learns=True)  # CUDA's softmax reads 16 bits and writes fp32: no copy between

    def soft_backward(gradient: Buffer) -> None:
        product = tape.make(pairs * FP32)  # gradient · probabilities, whole
        back = tape.make(pairs * width)
        tape.free(product)
        tape.free(gradient)
        tape.give(masked, back)

    tape.record(soft, soft_backward, (soft.buffer,))
    tape.drop(masked)
    narrow = tape.cast(soft, width)
    tape.drop(soft)
    y = tape.var(s.query, width, learns=True)

    def backward(gradient: Buffer) -> None:
        back_pairs, back_value = tape.make(pairs * width), tape.make(s.query * width)
        tape.free(gradient)
        tape.give(narrow, back_pairs)
        tape.give(value, back_value)

    tape.record(y, backward, (narrow.buffer, value.buffer))
    out = tape.copy(y)  # transposed to token order: a copy
    tape.drop(y, narrow)
    if s.query != s.key_value:
        tape.drop(key, value)
    return out
