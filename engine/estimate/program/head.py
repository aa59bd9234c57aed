"""Final norm, output head and cross-entropy, forward and back to the last hidden state.

Owns the logits. Must not know layers.
"""

from __future__ import annotations

from engine.estimate.program.norms import norm
from engine.estimate.program.style import FP32, HALF, style_of
from engine.estimate.stacks import Stack
from engine.estimate.tape import LOGITS, Buffer, Tape, Var
from engine.estimate.workload import Method, Workload


def head_and_loss(tape: Tape, x: Var, work: Workload, share: float, picked: float) -> None:
    """Final norm, output head, cross-entropy, and backward to the last hidden state, which is let go once normed.

    `picked`: share of the tokens that carry loss; `share` of the tokens have logits at one time.
    """
    a, stack = work.architecture, work.stack
    full = work.method is Method.FULL
    style = style_of(work, learns=full)
    normed = norm(tape, x, a, style)
    tape.drop(x)
    in_pieces = stack.checkpointed_chunks and share < picked
    shown = picked if in_pieces else share
    if shown < 1.0 or stack.selective_head:
        normed = _picked(tape, normed, shown)
    width = FP32 if (stack.kbit_prepared and work.packed) or work.compute_bytes == 4 else HALF
    if in_pieces:
        _loss_in_pieces(tape, normed, work, share, width)
        return
    vocabulary = share * a.vocab_size
    learns_head = full or work.train_embeddings
    matrix = float(a.vocab_size * a.hidden_size)
    tape.logits(True)
    early = tape.make(a.vocab_size * width if stack.logits_before_chunks and share < 1.0 else 0.0)
    copied = learns_fp32_head(work)
    narrow = tape.make(0.0, matrix * HALF if copied else 0.0)  # autocast's, kept for the product's backward
    logits = tape.var(vocabulary, width, learns=True)
    gradient = matrix * (FP32 if copied else work.compute_bytes) if learns_head else 0.0
    unpacked = matrix * work.compute_bytes if stack.packs_head and work.packed else 0.0
    tape.flash(0.0, unpacked)
    twice = stack.chunks_add_gradients and share < 1.0
    passing = unpacked + (gradient if twice else 0.0) + (matrix * HALF if copied else 0.0)
    _record_head(tape, logits, normed, gradient, passing, narrow)
    tape.free(narrow)
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


def learns_fp32_head(work: Workload) -> bool:
    """Whether the head is a learning fp32 copy that autocast narrows for its product."""
    learns = work.method is Method.ADAPTER and work.train_embeddings
    return learns and work.stack.fp32_copies and work.compute_bytes == HALF


def _picked(tape: Tape, whole: Var, share: float) -> Var:
    """Only the positions whose logits are wanted; their gradient is spread out again."""
    picked = tape.var(share * whole.values, whole.value_bytes, learns=whole.learns)

    def spread(gradient: Buffer) -> None:
        back = tape.make(whole.values * whole.value_bytes)
        tape.free(gradient)
        tape.give(whole, back)

    tape.record(picked, spread)
    tape.drop(whole)
    return picked


def _loss_in_pieces(tape: Tape, hidden: Var, work: Workload, share: float, width: float) -> None:
    """Head and loss of one piece after another, each run again in the backward pass (`SelectiveHead.loss_at`).

    Forward a piece has its logits, their fp32 copy and the log_softmax; backward the log_softmax and its two
    gradients, while the hidden states' gradients of the pieces before wait to be joined.
    """
    a = work.architecture
    matrix, values = float(a.vocab_size * a.hidden_size), share * a.vocab_size
    copied, learns = learns_fp32_head(work), work.train_embeddings or work.method is Method.FULL
    states = hidden.values * hidden.value_bytes
    loss = tape.var(0.0, FP32, learns=True)

    def backward(gradient: Buffer) -> None:
        before = tape.make(max(states - share * a.hidden_size * hidden.value_bytes, 0.0))
        tape.logits(True)
        narrow = tape.make(0.0, matrix * HALF if copied else 0.0)
        summed = tape.make(0.0, matrix * HALF if copied else 0.0)  # gradients of the copy, of all pieces so far
        tape.flash(values * (width + FP32 + (FP32 if width < FP32 else 0.0)))
        kept, from_loss, back = (tape.make(values * FP32) for _ in range(3))
        tape.free(from_loss)
        tape.free(kept)
        if width < FP32:
            thin = tape.make(values * width)
            tape.free(back)
            back = thin
        tape.logits(False)
        piece = tape.make(share * a.hidden_size * hidden.value_bytes)
        if learns:  # this piece's gradient, before it is added
            tape.flash(0.0, matrix * (HALF if copied else work.compute_bytes))
        tape.free(back)
        tape.free(narrow)
        if learns:
            tape.parameter_gradient(matrix * (FP32 if copied else work.compute_bytes))
        tape.free(summed)
        tape.free(gradient)
        joined = tape.make(states)
        tape.free(before)
        tape.free(piece)
        selected = tape.make(states)
        tape.free(joined)
        tape.give(hidden, selected)

    tape.record(loss, backward)
    tape.logits(True)
    narrow = tape.make(0.0, matrix * HALF if copied else 0.0)
    tape.flash(values * (width + FP32 + (FP32 if width < FP32 else 0.0)))
    tape.free(narrow)
    tape.logits(False)
    tape.drop(hidden)
    tape.go_backward(loss, tape.make(FP32 * 0.0))


def _record_head(tape: Tape, logits: Var, x: Var, weight_gradient: float, passing: float, narrow: Buffer) -> None:
    """`narrow` is a copy of the matrix made for the product; `passing`: bytes of matrices that exist only during the
    product (an unpacked head, a gradient to be added)."""

    def backward(gradient: Buffer) -> None:
        tape.logits(False)
        back = tape.make(x.values * x.value_bytes)
        if weight_gradient:
            tape.parameter_gradient(weight_gradient)
        if passing:
            tape.flash(0.0, passing)
        tape.free(gradient)
        tape.give(x, back)

    tape.record(logits, backward, (x.buffer, narrow) if weight_gradient else ())


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
