"""Linear layers: plain, packed to 4 bits, with LoRA or DoRA beside them.

Owns what peft and bitsandbytes keep and make around a product. Must not know which projection of a layer it is.
"""

from __future__ import annotations

from engine.estimate.program.style import FP32, Style
from engine.estimate.tape import Buffer, Tape, Var


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
    total = _dora(tape, source, result, update, inputs, outputs, style) if style.dora else tape.add(result, update)
    tape.drop(result, update, source)
    out = tape.cast(total, returned)
    tape.drop(total)
    return out


def _adapted_packed(tape: Tape, x: Var, inputs: int, outputs: int, style: Style) -> Var:
    """peft `lora.bnb.Linear4bit.forward`: a defensive copy of the base result; no cast of the input under autocast."""
    base = _packed(tape, x, inputs, outputs, style)
    result = tape.copy(base)
    tape.drop(base)
    source = tape.view(x) if style.autocast else tape.cast(x, style.adapter)
    update = _low_rank(tape, source, inputs, outputs, style)
    if not style.autocast and not style.dora:
        narrow = tape.cast(update, result.value_bytes)
        tape.drop(update)
        update = narrow
    total = _dora(tape, source, result, update, inputs, outputs, style) if style.dora else tape.add(result, update)
    tape.drop(result, update, source)
    return total


def _low_rank(tape: Tape, x: Var, inputs: int, outputs: int, style: Style) -> Var:
    """scaling · B(A(dropout(x))): keeps the input of A, the rank-wide middle and, under autocast, copies of A and B."""
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
