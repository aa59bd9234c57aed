"""RMS and layer norms as the families compute them.

Owns their operators and temporaries. Must not know where a norm stands in a layer.
"""

from __future__ import annotations

from engine.estimate.program.style import FP32, OWN_LAYER_NORM, Style
from engine.estimate.tape import Buffer, Tape, Var
from engine.models.architecture import Architecture


def norm(tape: Tape, x: Var, a: Architecture, style: Style, *, values: float = 0.0) -> Var:
    """The family's norm over `values` (the hidden size by default)."""
    if a.family in OWN_LAYER_NORM:
        return _centred_norm(tape, x, style)
    if a.norm == "layernorm":
        return _layer_norm(tape, x, style)
    return _rms_norm(tape, x, style, late_gain=a.family in ("gemma", "gemma2", "gemma3", "olmo2", "olmo3"))


def _rms_norm(tape: Tape, x: Var, style: Style, *, late_gain: bool) -> Var:
    """x·rsqrt(mean(x²)) in fp32, then the gain: in the input's type (Llama) or in fp32 before the cast (Gemma)."""
    wide = tape.cast(x, FP32)
    tape.flash(wide.values * FP32)  # x², gone once its mean is taken
    scaled = _normalise(tape, wide)
    if late_gain:
        tape.drop(wide)
        learns = style.learns or style.norm_learns
        gained = tape.elementwise(scaled, saves_input=learns, learns=learns)
        tape.drop(scaled)
        out = tape.cast(gained, x.value_bytes)
        tape.drop(gained)
        return out
    narrow = tape.cast(scaled, x.value_bytes)
    tape.drop(scaled, wide)
    if style.norm_learns and x.value_bytes < FP32:
        gained = _promote(tape, narrow, FP32, learns=True)
        out = tape.cast(gained, x.value_bytes)
        tape.drop(gained)
    elif style.norm_weight > x.value_bytes:
        out = _promote(tape, narrow, style.norm_weight)
    else:
        learns = style.learns or style.norm_learns
        out = tape.elementwise(narrow, saves_input=learns, flashes=1 if learns else 0, learns=learns)
    tape.drop(narrow)
    return out


def _promote(tape: Tape, x: Var, width: float, *, learns: bool = False) -> Var:
    """A product with a wider gain: the result takes its type. A gain that learns keeps x; its gradient is a whole
    product before it is summed."""
    y = tape.var(x.values, width, learns=x.learns or learns)

    def backward(gradient: Buffer) -> None:
        own = tape.make(x.values * width) if learns else None
        wide = tape.make(x.values * width)
        tape.free(gradient)
        if own is not None:
            tape.free(own)
        back = tape.make(x.values * x.value_bytes)
        tape.free(wide)
        tape.give(x, back)

    tape.record(y, backward, (x.buffer,) if learns else ())
    return y


def _normalise(tape: Tape, x: Var) -> Var:
    """x · rsqrt(mean(x²) + eps): saves x (for the square and the product). Backward makes five copies of x at its
    height: the product's gradient, the gradient of the square, and the three factors of its derivative."""
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


def _centred_norm(tape: Tape, x: Var, style: Style) -> Var:
    """Cohere's layer norm, operator by operator in fp32: (x - mean) is made twice, once for its square and once for
    the product with rsqrt(variance), and both are kept; then the gain, and the cast."""
    wide = tape.cast(x, FP32)
    size = wide.values * FP32
    first = tape.make(size)
    tape.flash(size)  # its square
    second = tape.make(size)
    y = tape.var(wide.values, FP32, learns=x.learns)

    def backward(gradient: Buffer) -> None:
        product = tape.make(size)  # g · r
        tape.flash(size)  # g · (x - mean), summed to one value
        tape.free(gradient)
        tape.give(wide, product)
        mean = tape.make(size)
        power = tape.make(size)
        scaled = tape.make(size)
        square = tape.make(size)
        for temporary in (power, mean, scaled):
            tape.free(temporary)
        tape.give(wide, square)

    tape.record(y, backward, (first, second))
    tape.free(first)
    tape.free(second)
    tape.drop(wide)
    learns = style.learns or style.norm_learns
    gained = tape.elementwise(y, saves_input=learns, learns=learns)
    tape.drop(y)
    out = tape.cast(gained, x.value_bytes)
    tape.drop(gained)
    return out


def _layer_norm(tape: Tape, x: Var, style: Style) -> Var:
    """One kernel; keeps its input. Under CUDA autocast it computes in fp32 and returns fp32."""
    source = tape.cast(x, FP32) if style.autocast else x
    y = tape.var(source.values, source.value_bytes, learns=x.learns or style.learns or style.norm_learns)

    def backward(gradient: Buffer) -> None:
        back = tape.make(source.values * source.value_bytes)
        tape.free(gradient)
        tape.give(source, back)

    tape.record(y, backward, (source.buffer,))
    if source is not x:
        tape.drop(source)
    if style.norm_learns and y.value_bytes > x.value_bytes:
        out = tape.cast(y, x.value_bytes)
        tape.drop(y)
        return out
    return y
