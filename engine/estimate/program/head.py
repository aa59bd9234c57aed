"""Final norm, output head and cross-entropy, forward and back to the last hidden state.

Owns the logits. Must not know layers.
"""

from __future__ import annotations

from engine.estimate.program.norms import norm
from engine.estimate.program.style import FP32, HALF, style_of
from engine.estimate.stacks import Stack
from engine.estimate.tape import LOGITS, Buffer, Tape, Var
from engine.estimate.workload import Method, Workload


def head_and_loss(tape: Tape, x: Var, work: Workload, share: float) -> None:
    """Final norm, output head, cross-entropy, and backward to the last hidden state, which is let go once normed.

    `share` of the tokens reach the head.
    """
    a, stack = work.architecture, work.stack
    full = work.method is Method.FULL
    style = style_of(work, learns=full)
    normed = norm(tape, x, a, style)
    tape.drop(x)
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
    for saves in {"granite": (False,), "cohere": (False,), "gemma2": (False, True, False)}.get(a.family, ()):
        scaled = tape.elementwise(logits, saves_output=saves)  # a constant factor; or / cap, tanh, x cap
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
