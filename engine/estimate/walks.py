"""Walks of the tape through one layer and through the head, remembered: what is kept, and the largest moments.

Owns the caching by what a walk depends on; batch size is not among it, since moments are straight lines in tokens. All
moments are relative to the walk's start. Must not know how many layers there are or what else is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from engine.estimate.program.decoder import layer
from engine.estimate.program.head import head_and_loss
from engine.estimate.program.style import style_of
from engine.estimate.tape import TEMPORARY, Buffer, Moment, Tape, Var, combined
from engine.estimate.workload import Attention, DeviceKind, OptimizerKind, Purpose, TeacherHeld, Workload


@dataclass(frozen=True, slots=True)
class LayerWalk:
    """One decoder layer."""

    boundary_bytes: float
    """Its input, per token: what a checkpoint keeps."""
    kept: Moment
    """What it keeps for its backward pass without checkpointing."""
    forward: tuple[Moment, ...]
    """Largest moments of the forward pass, kept tensors included when there is no checkpoint."""
    backward: tuple[Moment, ...]
    """Largest moments from the incoming gradient to the outgoing one: with checkpointing the recomputation included,
    without it what the layer had kept included."""
    gradient_bytes: float
    """Of the parameters that learn in it."""


@dataclass(frozen=True, slots=True)
class HeadWalk:
    """Final norm, output head, loss and back to the last hidden state."""

    moments: tuple[Moment, ...]
    held: Moment
    """What is still alive afterwards: the head's gradient, logits that the caller holds."""


def layer_walk(work: Workload, *, learns: bool, windowed: bool = False, lowest: bool = False) -> LayerWalk:
    """The walk through one layer of `work` whose own weights learn or do not; `windowed`: a sliding window cuts it;
    `lowest`: nothing below it learns, so its input needs no gradient."""
    return _layer_walk(_key(work), learns, windowed, lowest)


def head_walk(work: Workload) -> HeadWalk:
    """The walk through the head of `work`, with the share of the positions that carry loss."""
    return _head_walk(replace(_key(work), masked=False), logit_share(work), shown_share(work))


def shown_share(work: Workload) -> float:
    """Share of the positions that the head is shown at all."""
    return work.trained_share if work.stack.selective_head else 1.0


def logit_share(work: Workload) -> float:
    """Share of the positions whose logits are alive at once."""
    share = shown_share(work)
    if work.loss.value != "full logits":
        share = min(share, work.stack.loss_chunk_tokens / work.tokens)
    return share


def _key(work: Workload) -> Workload:
    """`work` without what a walk does not depend on, so that equal walks are walked once."""
    quadratic = work.attention is Attention.EAGER or work.architecture.family == "gemma2"
    return replace(
        work,
        batch=1,
        sequence=work.sequence if quadratic else 1024,
        accumulation=1,
        trained_share=1.0,
        foreach=False,
        optimizer=OptimizerKind.ADAMW,
        step_in_backward=False,
        optimizer_on_host=False,
        trained_layers=0,
        measured_tokens=0,
        shards=1,
        replicas=1,
        nodes=1,
        teacher=None,
        teacher_held=TeacherHeld.PACKED,
        teacher_top_k=0,
        purpose=Purpose.TRAIN,
        device=DeviceKind.GPU,
        workspace_bytes=0,
        capability=0,
        expandable_segments=True,
    )


@lru_cache(maxsize=4096)
def _layer_walk(work: Workload, learns: bool, windowed: bool, lowest: bool) -> LayerWalk:
    a, style = work.architecture, style_of(work, learns=learns, windowed=windowed)
    hidden = float(a.hidden_size)
    boundary = hidden * style.hidden
    first = Tape(saving=not work.checkpointing)
    x = first.var(hidden, style.hidden, learns=not lowest)
    out = layer(first, x, a, style)
    forward = first.take_peaks()
    first.drop(x, out)
    kept = first.now()
    if work.checkpointing:
        again = Tape()
        x = Var(hidden, style.hidden, Buffer(0.0, 0.0, 0), learns=not lowest)
        out = layer(again, x, a, style)
        recomputed = again.take_recomputed_peaks()
        again.drop(out)
        saved = again.now()
        again.take_peaks()
        again.go_backward(out, again.make(boundary, kind=TEMPORARY))
        waiting = combined(again.at_first_save or saved, saved, -1.0)
        backward = tuple(combined(moment, waiting) for moment in recomputed) + again.take_peaks()
        end = again.now()
    else:
        first.take_peaks()
        first.go_backward(out, first.make(boundary))
        backward = first.take_peaks()
        end = first.now()
    stored, hump = work.stack.stored_factor, work.stack.hump_factor
    if stored != 1.0 or hump != 1.0:
        kept, forward = _scaled(kept, stored), tuple(_scaled(moment, stored) for moment in forward)
        backward = tuple(_scaled(moment, hump if work.checkpointing else stored) for moment in backward)
    return LayerWalk(boundary, kept, forward, _frontier(backward), end.fixed[2])


def _scaled(moment: Moment, factor: float) -> Moment:
    """What grows with tokens, times `factor`: kernels that fuse operators keep and make less."""
    a, b, c, d = moment.per_token
    return Moment((a * factor, b * factor, c * factor, d * factor), moment.fixed)


@lru_cache(maxsize=4096)
def _head_walk(work: Workload, share: float, picked: float) -> HeadWalk:
    tape = Tape()
    width = style_of(work, learns=False).hidden
    x = tape.var(float(work.architecture.hidden_size), width, learns=True)
    head_and_loss(tape, x, work, share, picked)
    moments = tape.take_peaks()
    if x.gradient is not None:
        tape.free(x.gradient)
    return HeadWalk(_frontier(moments), tape.now())


def _frontier(moments: tuple[Moment, ...]) -> tuple[Moment, ...]:
    """Only moments that are the largest for some number of tokens and some length."""
    best: list[Moment] = []
    for moment in moments:
        if not any(other.at_least(moment) for other in best):
            best = [other for other in best if not moment.at_least(other)] + [moment]
    return tuple(best)
