"""A decoder layer and an output head as programs for the tape, following transformers' modelling code line by line.

Owns the order of operators per family and per stack: norms, projections with or without adapter, rotary positions,
attention, feed-forward, mixtures, loss. Sources: transformers 5.23 `models/*/modeling_*.py`, peft 0.21 `lora/layer.py`,
`lora/bnb.py`, bitsandbytes 0.50, torch 2.13 `derivatives.yaml`. Must not know machines or totals.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.shapes import FUSED_ATTENTION, adapted_modules, shape_of
from engine.estimate.stacks import Stack
from engine.estimate.tape import LOGITS, Buffer, Tape, Var
from engine.estimate.workload import Attention, Loss, Method, Workload
from engine.models.architecture import Architecture

FP32 = 4.0
HALF = 2.0


@dataclass(frozen=True, slots=True)
class Style:
    """What a program needs to know of a job beyond widths."""

    compute: float
    """Bytes per value of weights and activations."""
    hidden: float
    """Bytes per value of the residual stream."""
    autocast: bool
    packed: bool
    learns: bool
    """The layer's own weights learn."""
    adapted: frozenset[str]
    adapter: float
    rank: int
    dora: bool
    dropout: bool
    norm_weight: float
    """Bytes per value of norm gains: fp32 after kbit preparation."""
    masked: bool
    """A mask reaches attention: packed rows, a window shorter than the sequence, Falcon always."""
    eager: bool
    sequence: int
    repeats: bool = False
    """Keys and values are copied to every query head although no mask asks for it."""
    packed_input: int = 0
    """Bytes per value that a packed product keeps of its input."""


def style_of(work: Workload, *, learns: bool, windowed: bool = False) -> Style:
    """The style of `work` for layers whose weights learn or do not, within a sliding window that matters or not."""
    kbit = work.stack.kbit_prepared and work.packed
    adapter = work.method is Method.ADAPTER
    autocast = work.stack.autocast and work.compute_bytes == 2
    # Layer norms under autocast return fp32, and 4-bit layers return the type they are given.
    widened = work.packed and autocast and work.architecture.norm == "layernorm"
    return Style(
        compute=float(work.compute_bytes),
        hidden=FP32 if kbit or widened else float(work.compute_bytes),
        autocast=autocast,
        packed=work.packed,
        learns=learns,
        adapted=frozenset(adapted_modules(work.architecture, work.targets)) if adapter else frozenset(),
        adapter=float(work.adapter_bytes),
        rank=work.rank,
        dora=work.dora,
        dropout=work.dropout,
        norm_weight=FP32 if kbit else float(work.compute_bytes),
        masked=work.masked or windowed or work.architecture.family == "falcon",
        eager=work.attention is Attention.EAGER or work.architecture.family == "gemma2",
        sequence=work.sequence,
        repeats=work.stack.repeats_keys and work.attention is not Attention.FLASH,
        packed_input=work.stack.packed_input_bytes,
    )


# ── norms ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def norm(tape: Tape, x: Var, a: Architecture, style: Style, *, values: float = 0.0) -> Var:
    """The family's norm over `values` (the hidden size by default)."""
    if a.norm == "layernorm":
        return _layer_norm(tape, x, style)
    return _rms_norm(tape, x, style, late_gain=a.family in ("gemma", "gemma2", "gemma3", "olmo2"))


def _rms_norm(tape: Tape, x: Var, style: Style, *, late_gain: bool) -> Var:
    """x·rsqrt(mean(x²)) in fp32, then the gain: in the input's type (Llama) or in fp32 before the cast (Gemma)."""
    wide = tape.cast(x, FP32)
    tape.flash(wide.values * FP32)  # x², gone once its mean is taken
    scaled = _normalise(tape, wide)
    if late_gain:
        tape.drop(wide)
        gained = tape.elementwise(scaled, saves_input=style.learns)
        tape.drop(scaled)
        out = tape.cast(gained, x.value_bytes)
        tape.drop(gained)
        return out
    narrow = tape.cast(scaled, x.value_bytes)
    tape.drop(scaled, wide)
    if style.norm_weight > x.value_bytes:
        out = _promote(tape, narrow, style.norm_weight)
    else:
        out = tape.elementwise(narrow, saves_input=style.learns, flashes=1 if style.learns else 0)
    tape.drop(narrow)
    return out


def _promote(tape: Tape, x: Var, width: float) -> Var:
    """A product with a wider constant: the result takes its type."""
    y = tape.var(x.values, width, learns=x.learns)

    def backward(gradient: Buffer) -> None:
        wide = tape.make(x.values * width)
        tape.free(gradient)
        back = tape.make(x.values * x.value_bytes)
        tape.free(wide)
        tape.give(x, back)

    tape.record(y, backward)
    return y


def _normalise(tape: Tape, x: Var) -> Var:
    """x · rsqrt(mean(x²) + eps): saves x (for the square and the product). Backward makes five copies of x at its height:
    the product's gradient, the gradient of the square, and the three factors of its derivative."""
    y = tape.var(x.values, FP32, learns=x.learns)
    size = x.values * FP32

    def backward(gradient: Buffer) -> None:
        product = tape.make(size)  # g · r
        tape.flash(size)  # g · x, summed to one value
        tape.free(gradient)
        tape.give(x, product)
        mean = tape.make(size)  # the mean's gradient, spread out
        power = tape.make(size)  # x ** 1
        scaled = tape.make(size)  # 2 · x
        square = tape.make(size)
        tape.free(power)
        tape.free(mean)
        tape.free(scaled)
        tape.give(x, square)

    tape.record(y, backward, (x.buffer,))
    return y


def _layer_norm(tape: Tape, x: Var, style: Style) -> Var:
    """One kernel; keeps its input. Under CUDA autocast it computes in fp32 and returns fp32."""
    source = tape.cast(x, FP32) if style.autocast else x
    y = tape.var(source.values, source.value_bytes, learns=x.learns)

    def backward(gradient: Buffer) -> None:
        back = tape.make(source.values * source.value_bytes)
        tape.free(gradient)
        tape.give(source, back)

    tape.record(y, backward, (source.buffer,))
    if source is not x:
        tape.drop(source)
    return y


# ── projections ───────────────────────────────────────────────────────────────────────────────────────────────────
def linear(tape: Tape, x: Var, names: tuple[str, ...], inputs: int, outputs: int, style: Style) -> Var:
    """One linear layer that plays the parts `names` (fused layers play several), with its adapter if it has one."""
    adapted = any(name in style.adapted for name in names)
    if not adapted:
        return _plain(tape, x, inputs, outputs, style)
    if style.packed:
        return _adapted_packed(tape, x, inputs, outputs, style)
    return _adapted_plain(tape, x, inputs, outputs, style)


def _plain(tape: Tape, x: Var, inputs: int, outputs: int, style: Style) -> Var:
    if style.packed:
        return _packed(tape, x, inputs, outputs, style)
    source = tape.cast(x, style.compute)
    y = tape.var(outputs, style.compute, learns=source.learns or style.learns)
    _record_product(tape, y, source, inputs * outputs * style.compute if style.learns else 0.0)
    tape.drop(source)
    return y


def _record_product(tape: Tape, y: Var, x: Var, weight_gradient: float, *, keeps: Buffer | None = None) -> None:
    """y = x·Wᵀ. A learning W keeps x and gets its gradient after x's; `keeps` is a copy of W made for the product."""

    def backward(gradient: Buffer) -> None:
        back = tape.make(x.values * x.value_bytes) if x.learns else None
        if weight_gradient:
            tape.parameter_gradient(weight_gradient)
        tape.free(gradient)
        if back is not None:
            tape.give(x, back)

    saves = (*((x.buffer,) if weight_gradient else ()), *((keeps,) if keeps is not None and x.learns else ()))
    tape.record(y, backward, saves)


def _packed(tape: Tape, x: Var, inputs: int, outputs: int, style: Style) -> Var:
    """bitsandbytes: cast to the compute type, unpack the matrix for the product, cast back; nothing but W is kept."""
    source = tape.cast(x, style.compute)
    unpacked = tape.make(0.0, inputs * outputs * style.compute)
    y = tape.var(outputs, style.compute, learns=source.learns)
    tape.free(unpacked)

    def backward(gradient: Buffer) -> None:
        matrix = tape.make(0.0, inputs * outputs * style.compute)
        back = tape.make(source.values * style.compute)
        tape.free(matrix)
        tape.free(gradient)
        tape.give(source, back)

    if style.packed_input:  # bitsandbytes before 0.43 kept its input, for a gradient that is never computed
        copy = tape.make(x.values * max(style.packed_input - style.compute, 0.0))
        tape.record(y, backward, (source.buffer, copy))
        tape.free(copy)
    else:
        tape.record(y, backward)
    tape.drop(source)
    if x.value_bytes != style.compute:
        out = tape.cast(y, x.value_bytes)
        tape.drop(y)
        return out
    return y


def _adapted_plain(tape: Tape, x: Var, inputs: int, outputs: int, style: Style) -> Var:
    """peft `lora.Linear.forward`: the input is cast to the adapter's type, results add in the wider type, cast back."""
    result = _plain(tape, x, inputs, outputs, style)
    returned = result.value_bytes
    source = tape.cast(x, style.adapter)
    update = _low_rank(tape, source, inputs, outputs, style)
    if style.dora:
        total = _dora(tape, source, result, update, inputs, outputs, style)
    else:
        total = tape.add(result, update)
    tape.drop(result, update, source)
    out = tape.cast(total, returned)
    tape.drop(total)
    return out


def _adapted_packed(tape: Tape, x: Var, inputs: int, outputs: int, style: Style) -> Var:
    """peft `lora.bnb.Linear4bit.forward`: a defensive copy of the base result; no cast of the input under autocast."""
    base = _packed(tape, x, inputs, outputs, style)
    result = tape.elementwise(base)
    tape.drop(base)
    source = tape.view(x) if style.autocast else tape.cast(x, style.adapter)
    update = _low_rank(tape, source, inputs, outputs, style)
    if not style.autocast and not style.dora:
        narrow = tape.cast(update, result.value_bytes)
        tape.drop(update)
        update = narrow
    if style.dora:
        total = _dora(tape, source, result, update, inputs, outputs, style)
    else:
        total = tape.add(result, update)
    tape.drop(result, update, source)
    return total


def _low_rank(tape: Tape, x: Var, inputs: int, outputs: int, style: Style) -> Var:
    """scaling · B(A(dropout(x))): keeps the input of A, the rank-wide middle and, under autocast, 16-bit copies of A and B."""
    width = style.compute if style.autocast else style.adapter
    dropped = _dropout(tape, x) if style.dropout else tape.view(x)
    source = tape.cast(dropped, width)
    tape.drop(dropped)
    copied = style.rank * width if width != style.adapter else 0.0
    first = tape.make(0.0, inputs * copied)
    middle = tape.var(style.rank, width, learns=True)
    _record_product(tape, middle, source, inputs * style.rank * style.adapter, keeps=first)
    tape.drop(source)
    second = tape.make(0.0, outputs * copied)
    wide = tape.var(outputs, width, learns=True)
    _record_product(tape, wide, middle, outputs * style.rank * style.adapter, keeps=second)
    tape.drop(middle)
    tape.free(first)
    tape.free(second)
    scaled = tape.elementwise(wide)
    tape.drop(wide)
    return scaled


def _dropout(tape: Tape, x: Var) -> Var:
    """native_dropout: the dropped values and a mask of one byte each."""
    y = tape.var(x.values, x.value_bytes, learns=x.learns)
    mask = tape.make(x.values)

    def backward(gradient: Buffer) -> None:
        back = tape.make(x.values * x.value_bytes)
        tape.free(gradient)
        tape.give(x, back)

    tape.record(y, backward, (mask,))
    tape.free(mask)
    return y


def _dora(tape: Tape, x: Var, result: Var, update: Var, inputs: int, outputs: int, style: Style) -> Var:
    """peft `dora.py`: the norm of W + s·BA, then (m/norm − 1)·base + m/norm·update; keeps base and update.

    The norm multiplies an identity of `inputs` through the adapter and unpacks W: matrices, no tokens.
    """
    matrix = inputs * outputs * FP32
    tape.flash(0.0, 3 * matrix + inputs * inputs * style.adapter)
    width = max(result.value_bytes, update.value_bytes)
    total = tape.var(outputs, width, learns=True)
    first = tape.make(outputs * width)
    tape.free(first)

    def backward(gradient: Buffer) -> None:
        tape.flash(outputs * width)
        left = tape.make(outputs * result.value_bytes)
        right = tape.make(outputs * update.value_bytes)
        tape.parameter_gradient(outputs * FP32)
        tape.free(gradient)
        tape.give(result, left) if result.learns else tape.free(left)
        tape.give(update, right)

    tape.record(total, backward, (result.buffer, update.buffer))
    return total


# ── attention ─────────────────────────────────────────────────────────────────────────────────────────────────────
def attention(tape: Tape, x: Var, a: Architecture, style: Style) -> Var:
    """Projections, rotary positions, scores, output projection; as `self_attn.forward` frees its locals."""
    s = shape_of(a)
    query, key, value = _projections(tape, x, a, style)
    if a.qk_norm != "none":
        query, key = _head_norm(tape, query, a, style), _head_norm(tape, key, a, style)
    if a.rope.kind != "none":
        query, key = _rotate_both(tape, query, key, a)
    if a.family == "falcon" and s.key_value < s.query and a.key_value_heads > 1:
        key, value = _repeat_dropping(tape, key, s.query), _repeat_dropping(tape, value, s.query)
    if style.autocast and query.value_bytes != style.compute:  # autocast turns the operands of attention to 16 bits
        wide, (query, key, value) = (query, key, value), [tape.cast(v, style.compute) for v in (query, key, value)]
        out = _scores(tape, query, key, value, a, style)
        tape.drop(*wide)
    else:
        out = _scores(tape, query, key, value, a, style)
    tape.drop(query, key, value)
    if a.family in JOINED_ROTATION and not style.eager:  # heads stand before tokens: turned round by a copy
        turned = tape.elementwise(out)
        tape.drop(out)
        out = turned
    projected = linear(tape, out, ("o_proj",), s.query, s.hidden, style)
    tape.drop(out)
    return projected


def _projections(tape: Tape, x: Var, a: Architecture, style: Style) -> tuple[Var, Var, Var]:
    s = shape_of(a)
    if a.family in FUSED_ATTENTION:
        fused = linear(
            tape, x, ("q_proj", "k_proj", "v_proj"), s.hidden, s.query + 2 * s.key_value, style
        )
        return _slices(tape, fused, (s.query, s.key_value, s.key_value))
    return (
        linear(tape, x, ("q_proj",), s.hidden, s.query, style),
        linear(tape, x, ("k_proj",), s.hidden, s.key_value, style),
        linear(tape, x, ("v_proj",), s.hidden, s.key_value, style),
    )


def _slices(tape: Tape, fused: Var, widths: tuple[int, int, int]) -> tuple[Var, Var, Var]:
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


JOINED_ROTATION = ("phi3", "gpt_neox", "stablelm")
"""Families whose rotated and unrotated parts are joined into a new tensor, also when nothing is left unrotated."""


def _repeat_dropping(tape: Tape, x: Var, values: float) -> Var:
    """Falcon spreads keys and values to every query head before anything else."""
    y = _repeat(tape, x, values)
    tape.drop(x)
    return y


def _rotate_both(tape: Tape, query: Var, key: Var, a: Architecture) -> tuple[Var, Var]:
    """q·cos + rotate_half(q)·sin for both, then the unrotated ones are let go."""
    share, joins = a.rope.partial_factor, a.family in JOINED_ROTATION
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
    mask = tape.make(style.sequence * width) if style.masked else None
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
    wide = tape.cast(masked, FP32)
    soft = tape.elementwise(wide, saves_output=True)
    tape.drop(masked, wide)
    narrow = tape.cast(soft, width)
    tape.drop(soft)
    y = tape.var(s.query, width, learns=True)

    def backward(gradient: Buffer) -> None:
        back_pairs, back_value = tape.make(pairs * width), tape.make(s.query * width)
        tape.free(gradient)
        tape.give(narrow, back_pairs)
        tape.give(value, back_value)

    tape.record(y, backward, (narrow.buffer, value.buffer))
    out = tape.elementwise(y)  # transposed to token order: a copy
    tape.drop(y, narrow)
    if s.query != s.key_value:
        tape.drop(key, value)
    return out


# ── feed-forward ──────────────────────────────────────────────────────────────────────────────────────────────────
def feed_forward(tape: Tape, x: Var, a: Architecture, style: Style) -> Var:
    """down(act(gate(x)) · up(x)), or down(act(up(x)))."""
    h, f = a.hidden_size, a.intermediate_size
    if a.mlp_kind != "gated":
        wide = linear(tape, x, ("up_proj",), h, f, style)
        middle = tape.elementwise(wide, saves_input=True)
        tape.drop(wide)
    elif a.family == "phi3":
        both = linear(tape, x, ("gate_proj", "up_proj"), h, 2 * f, style)
        gate, up, _ = _slices(tape, both, (f, f, 0))
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


# ── whole blocks ──────────────────────────────────────────────────────────────────────────────────────────────────
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
    first = attention(tape, entering, a, style)
    if a.family == "gpt_neox" or (a.family == "falcon" and a.key_value_heads > 1):
        tape.drop(entering)
        entering = norm(tape, x, a, style)
    second = feed_forward(tape, entering, a, style)
    tape.drop(entering)
    joined = tape.add(second, first)
    tape.drop(first, second)
    out = tape.add(joined, x)
    tape.drop(joined)
    return out


def head_and_loss(tape: Tape, x: Var, work: Workload, share: float) -> None:
    """Final norm, output head, cross-entropy, and backward to the last hidden state. `share` of the tokens reach it."""
    a, stack = work.architecture, work.stack
    full = work.method is Method.FULL
    style = style_of(work, learns=full)
    normed = norm(tape, x, a, style)
    if share < 1.0 or stack.selective_head:
        picked = tape.var(share * normed.values, normed.value_bytes, learns=normed.learns)
        whole = normed

        def spread(gradient: Buffer) -> None:
            back = tape.make(whole.values * whole.value_bytes)
            tape.free(gradient)
            tape.give(whole, back)

        tape.record(picked, spread)
        tape.drop(whole)
        normed = picked
    vocabulary = share * a.vocab_size
    width = FP32 if (stack.kbit_prepared and work.packed) or work.compute_bytes == 4 else HALF
    learns_head = full or work.train_embeddings
    tape.logits(True)
    early = tape.make(a.vocab_size * width if stack.logits_before_chunks and share < 1.0 else 0.0)
    logits = tape.var(vocabulary, width, learns=True)
    gradient = a.vocab_size * a.hidden_size * float(work.compute_bytes) if learns_head else 0.0
    unpacked = a.vocab_size * a.hidden_size * float(work.compute_bytes) if stack.packs_head and work.packed else 0.0
    tape.flash(0.0, unpacked)
    twice = stack.chunks_add_gradients and share < 1.0
    _record_head(tape, logits, normed, gradient, unpacked + (gradient if twice else 0.0))
    tape.drop(normed)
    for saves in {"granite": (False,), "gemma2": (False, True, False)}.get(a.family, ()):
        scaled = tape.elementwise(logits, saves_output=saves)  # a division; or / cap, tanh, x cap
        tape.drop(logits)
        logits = scaled
    held = [logits] if stack.holds_output else []
    wide = tape.cast(logits, FP32) if stack.fp32_logits else tape.view(logits)
    if not held:
        tape.drop(logits)
    _cross_entropy(tape, wide, held, stack)
    tape.free(early)


def _record_head(tape: Tape, logits: Var, x: Var, weight_gradient: float, passing: float) -> None:
    """`passing`: bytes of matrices that exist only during the product (an unpacked head, a gradient to be added)."""

    def backward(gradient: Buffer) -> None:
        tape.logits(False)
        back = tape.make(x.values * x.value_bytes)
        if weight_gradient:
            tape.parameter_gradient(weight_gradient)
        if passing:
            tape.flash(0.0, passing)
        tape.free(gradient)
        tape.give(x, back)

    tape.record(logits, backward, (x.buffer,) if weight_gradient else ())


def _cross_entropy(tape: Tape, wide: Var, held: list[Var], stack: Stack) -> None:
    """log_softmax (kept), its gradient from the loss and from itself: three copies at once, fp32 as a rule.

    Older models copy logits without the last position first; autocast turns 16-bit ones to fp32 only here.
    """
    moved = tape.elementwise(wide) if stack.shifted_copy else tape.view(wide)
    source = tape.cast(moved, FP32) if stack.autocast else tape.view(moved)
    size = source.values * source.value_bytes * stack.loss_factor
    kept = tape.make(size, kind=LOGITS)
    tape.drop(source, moved, wide)
    from_loss = tape.make(size, kind=LOGITS)
    back = tape.make(size, kind=LOGITS)
    tape.free(from_loss)
    tape.free(kept)
    tape.go_backward(source, back)
    del held


def has_chunked_loss(work: Workload) -> bool:
    """Whether only a part of the logits is alive at once."""
    return work.loss is not Loss.FULL
