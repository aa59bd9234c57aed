"""Peak memory of a job in closed form: the moments of a step, their maximum, and the breakdown users read.

Owns how components add up: a step passes through moments (loss, top layer, bottom layer, optimizer step) that do not
overlap, so the peak is the largest, and a component that is not alive in it counts 0. Then the process: allocator slack
and context. Must not know machines; `engine.advise` compares with what is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Estimate, Origin, Part
from engine.estimate.measured import measured_bytes
from engine.estimate.own_answers import writing_of
from engine.estimate.process import base_parts, process_bounds
from engine.estimate.program.head import learns_fp32_head
from engine.estimate.program.style import widens
from engine.estimate.shapes import shape_of
from engine.estimate.state import (
    adapter_weight_bytes,
    autocast_mixed,
    bucket_bytes,
    copy_width,
    gathered_block_bytes,
    gradient_bytes,
    key_value_cache_bytes,
    optimizer_bytes,
    optimizer_transient_bytes,
    teacher_bytes,
    teacher_formula,
    trainable_parameters,
    weight_bytes,
    weight_formula,
)
from engine.estimate.surroundings import around, masks, windowed_layers
from engine.estimate.tape import ACTIVATIONS, GRADIENTS, LOGITS, NOTHING, TEMPORARY, Moment
from engine.estimate.walks import HeadWalk, LayerWalk, head_walk, layer_walk, logit_share
from engine.estimate.workload import DeviceKind, Loss, Method, OptimizerKind, Purpose, Workload

TRACED = "operators of transformers 5 and peft walked tensor by tensor, checked against fake-tensor traces"
PHASE_WORDS = {
    "loss": "logits and loss",
    "layers": "the layer in work during backward",
    "gradients": "all gradients at the end of backward",
    "step": "the optimizer step",
    "forward": "the layer in work going forward",
    "measuring": "keys and values of the longest text that is measured",
    "writing": "the student's own answers while they are written",
}


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes alive at the largest moment of a step, one device; `phase` is a key of PHASE_WORDS."""

    phase: str
    weights: float
    teacher: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    temporary: float
    at_loss: float = 0.0
    """All that is alive while the loss is computed, which is when an allocator's holes are widest."""

    @property
    def allocated(self) -> float:
        """What the allocator hands out at the peak."""
        return (
            self.weights
            + self.teacher
            + self.adapter
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.temporary
        )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One moment that could be the peak, beside the state."""

    phase: str
    gradients: float
    activations: float
    logits: float
    temporary: float

    @property
    def total(self) -> float:
        return self.gradients + self.activations + self.logits + self.temporary


def peak_of(work: Workload) -> Peak:
    """Peak = state + max over moments; see `_training_moments`. Source: own derivation from traces."""
    return _peak_of(work)


@lru_cache(maxsize=8192)
def _peak_of(work: Workload) -> Peak:
    share = 1.0 / work.shards
    workspaces = float(work.workspace_bytes) if work.device is DeviceKind.GPU else 0.0
    fixed = workspaces + gathered_block_bytes(work) + bucket_bytes(work)
    training = work.purpose is Purpose.TRAIN
    candidates = list(_training_moments(work) if training else _asking_moments(work))
    top = max(candidates, key=lambda moment: moment.total)
    loss = max((moment.total for moment in candidates if moment.phase == "loss"), default=0.0)
    peak = Peak(
        phase=top.phase,
        weights=weight_bytes(work) * share,
        teacher=teacher_bytes(work),
        adapter=adapter_weight_bytes(work) * share,
        gradients=top.gradients,
        optimizer=optimizer_bytes(work) * share if training else 0.0,
        activations=top.activations,
        logits=top.logits,
        temporary=top.temporary + fixed,
    )
    return replace(peak, at_loss=peak.allocated - top.total + loss)


def _training_moments(work: Workload) -> Iterable[_Candidate]:
    """The moments of a training step.

    loss: what all layers keep + the head's walk; layers: the top layer's backward with every other layer's tensors
    still kept, or the bottom layer's with every gradient already made; gradients: the end of backward, with the
    gradient of the embeddings where they learn; step: every gradient + the optimizer's transient.
    """
    share, tokens = 1.0 / work.shards, float(work.tokens)
    head = head_walk(work)
    stack = _Stack.of(work)
    gradients = gradient_bytes(work) * share
    early = gradients if work.accumulation > 1 else 0.0
    alive = around(work)
    kept = 0.0 if work.offload_activations else stack.kept(work)
    for moment in head.moments:
        yield _with(moment, work, "loss", early, kept + alive, share)
    length = float(work.sequence)
    held = head.held.at(tokens, length)
    head_gradient = head.held.fixed[GRADIENTS]
    for walk in stack.walks:
        one = (walk.boundary_bytes * tokens) if work.checkpointing else walk.kept.total(tokens, length)
        others = 0.0 if work.offload_activations else max(kept - (0.0 if work.checkpointing else one), 0.0)
        waiting = one if work.offload_activations and work.checkpointing else 0.0
        for moment in walk.backward:
            top = _with(moment, work, "layers", 0.0, others + waiting + alive, share)
            made = max(top.gradients + head_gradient * share, early) if not work.step_in_backward else top.gradients
            yield _Candidate("layers", made, top.activations, top.logits + held[LOGITS], top.temporary)
    if not work.checkpointing:
        embedded = stack.bottom.boundary_bytes * tokens  # a local of the model holds it
        for walk in (*stack.walks, stack.bottom):
            others = max(kept - walk.kept.total(tokens, length), 0.0)
            for moment in walk.forward:
                yield _with(moment, work, "forward", early, others + embedded + alive + masks(work) * tokens, share)
    walk = stack.bottom
    last = walk.boundary_bytes * tokens if work.checkpointing else 0.0
    if widens(work):  # the embedding's 16 bits are cast once for every norm that reads them
        reads = 2 if work.architecture.norm_placement == "parallel" else 1
        last += (4.0 * reads + 2.0) * work.architecture.hidden_size * tokens  # and the stream's gradient cast back
    above = gradients - (walk.gradient_bytes + (0.0 if stack.tied else stack.embedding)) * share
    for moment in walk.backward:
        bottom = _with(moment, work, "gradients", 0.0, last + alive, share)
        made = bottom.gradients if work.step_in_backward else max(above + bottom.gradients, early)
        yield _Candidate("gradients", made, bottom.activations, held[LOGITS], bottom.temporary)
    if stack.embedding:
        yield _Candidate(
            "gradients",
            stack.embedding * share if work.step_in_backward else gradients,
            alive,
            held[LOGITS],
            tokens * (stack.bottom.boundary_bytes + stack.widened) + (stack.summing * share if stack.tied else 0.0),
        )
    yield from _measuring(work)
    if (writing := writing_of(work)) is not None:  # between steps: no gradients
        yield from (replace(moment, phase="writing") for moment in _asking_moments(writing))
    if not work.step_in_backward:
        yield _Candidate("step", gradients, 0.0, 0.0, optimizer_transient_bytes(work) * share)


def _measuring(work: Workload) -> Iterable[_Candidate]:
    """The longest text that is measured; see `engine.estimate.measured`."""
    if work.measured_tokens:
        found = measured_bytes(work)
        yield _Candidate("measuring", 0.0, found.cache, found.logits, found.layer)


def measuring_allocated(work: Workload) -> float:
    """Allocated bytes while the longest text is measured, beside the state; 0 where none is."""
    workspaces = float(work.workspace_bytes) if work.device is DeviceKind.GPU else 0.0
    state = weight_bytes(work) + adapter_weight_bytes(work) + optimizer_bytes(work)
    return max((moment.total + state + workspaces for moment in _measuring(work)), default=0.0)


@dataclass(frozen=True, slots=True)
class _Stack:
    """The layers of a job as the backward pass meets them."""

    walks: tuple[LayerWalk, ...]
    """Distinct kinds of layer, those that learn first."""
    counts: tuple[int, ...]
    """How many of each keep something for the backward pass, the bottom one left out."""
    bottom: LayerWalk
    """The lowest layer that takes part."""
    checkpointing: bool
    embedding: float
    """Bytes of the embedding's gradient where it learns."""
    tied: bool
    widened: float
    """Bytes per token of the embedding's gradient in fp32, where a learning copy's result was narrowed."""
    summing: float
    """Bytes beyond it while the gradients of a tied head and embedding are added up."""

    @classmethod
    def of(cls, work: Workload) -> _Stack:
        a, windowed = work.architecture, windowed_layers(work)
        embeddings = work.method is Method.FULL or work.train_embeddings
        width = 4.0 if autocast_mixed(work) else copy_width(work) if work.train_embeddings else work.compute_bytes
        embedding = float(a.vocab_size * a.hidden_size * width) if embeddings else 0.0
        learns = work.method is not Method.ADAPTER
        if work.method is Method.NEW_BLOCKS:
            new = max(min(work.trained_layers, a.layers), 1)
            # Blocks are spread evenly, the last one last. Without checkpoints nothing below the lowest takes part; with
            # them transformers has the embedding's output require a gradient, and every layer does.
            below = 0 if work.checkpointing else a.layers // new - 1
            learns = not work.checkpointing or new == a.layers
            kinds = [(True, new - learns), (False, a.layers - below - new - (not learns))]
        else:
            kinds = [(learns, a.layers - 1)]
        walks, counts = [], []
        for kind, count in kinds:
            cut = round(count * windowed / max(a.layers, 1))
            for inside, part in ((True, cut), (False, count - cut)):
                if part:
                    walks.append(layer_walk(work, learns=kind, windowed=inside))
                    counts.append(part)
        lowest = not (embeddings or work.checkpointing)
        bottom = layer_walk(work, learns=learns, windowed=2 * windowed > a.layers, lowest=lowest)
        # The head's gradient is a view, to which autograd does not add in place; cast by autocast it is none.
        summing = embedding if autocast_mixed(work) or learns_fp32_head(work) else 2.0 * embedding
        widened = 4.0 * a.hidden_size if learns_fp32_head(work) else 0.0
        tied = a.tied_embeddings
        return cls(tuple(walks), tuple(counts), bottom, work.checkpointing, embedding, tied, widened, summing)

    def kept(self, work: Workload) -> float:
        """What all layers keep once the forward pass is through."""
        tokens, length = float(work.tokens), float(work.sequence)
        return sum(
            count * (walk.boundary_bytes * tokens if self.checkpointing else walk.kept.total(tokens, length))
            for walk, count in zip((*self.walks, self.bottom), (*self.counts, 1), strict=True)
        )


def _with(moment: Moment, work: Workload, phase: str, gradients: float, kept: float, share: float) -> _Candidate:
    """A walk's moment on top of what is kept."""
    kinds = moment.at(float(work.tokens), float(work.sequence))
    return _Candidate(
        phase,
        max(kinds[GRADIENTS] * share, gradients) if gradients else kinds[GRADIENTS] * share,
        kept + kinds[ACTIVATIONS],
        max(kinds[LOGITS], 0.0),
        max(kinds[TEMPORARY], 0.0),
    )


def _asking_moments(work: Workload) -> Iterable[_Candidate]:
    """Forward passes only: one layer at a time, then logits; generation adds the KV cache.

    Evaluation turns the logits of every position to fp32 and takes their log_softmax; generation keeps one position's.
    """
    yield from _measuring(work)
    tokens, a = float(work.tokens), work.architecture
    walk = layer_walk(replace(work, checkpointing=True), learns=False)  # nothing is kept
    cache = key_value_cache_bytes(work) if work.purpose is Purpose.GENERATE else 0.0
    for moment in walk.forward:
        kinds = moment.at(tokens, float(work.sequence))
        embedded = walk.boundary_bytes * tokens  # a local of the model holds it
        yield _Candidate("forward", 0.0, sum(kinds) + embedded + cache + around(work), 0.0, 0.0)
    positions = float(work.batch) if work.purpose is Purpose.GENERATE else tokens * logit_share(work)
    widened = 4.0 if work.compute_bytes == 2 else 0.0
    width = work.compute_bytes + widened + (4.0 if work.purpose is Purpose.EVALUATE else 0.0)
    yield _Candidate("loss", 0.0, cache + 24.0 * tokens, width * a.vocab_size * positions, 0.0)


def allocated_bytes(work: Workload) -> float:
    """What torch reports as peak allocated: state, activations, humps and workspaces, without slack and context."""
    return peak_of(work).allocated


def memory_bounds(work: Workload, calibration: Calibration | None = None) -> tuple[float, float, float]:
    """Process memory low, likely, high in bytes, without a breakdown; for searches."""
    return process_bounds(peak_of(work).allocated, work, calibration)


def estimate_memory(work: Workload, calibration: Calibration | None = None) -> Estimate:
    """Process memory on the device that trains, with its breakdown; the parts sum to `likely`."""
    peak = peak_of(work)
    low, likely, high = process_bounds(peak.allocated, work, calibration)
    parts = (*_state_parts(peak, work), *_token_parts(peak, work), *base_parts(peak.allocated, work, calibration))
    origin = Origin.FORMULA if calibration is None else calibration.origin
    return Estimate(low, likely, high, "bytes", origin, parts)


def limiting_words(work: Workload) -> str:
    """The largest term in words: "logits and loss: 128,256-word vocabulary x 2,048 tokens"."""
    peak = peak_of(work)
    shape = shape_of(work.architecture)
    positions = round(work.tokens * logit_share(work))
    terms = {
        f"weights: {shape.parameters:,} parameters": peak.weights,
        f"logits and loss: {shape.vocabulary:,}-word vocabulary x {positions:,} tokens": peak.logits,
        f"activations: {shape.layers} layers x {work.tokens:,} tokens": 0.0
        if peak.phase == "measuring"
        else peak.activations + peak.temporary,
        f"optimizer: {trainable_parameters(work):,} trained parameters": peak.optimizer + peak.gradients,
    }
    if peak.phase == "measuring":
        terms[f"keys and values: {shape.layers} layers x {work.measured_tokens:,} measured tokens"] = peak.activations
    if work.teacher is not None:
        terms[f"teacher: {work.teacher.parameters:,} parameters"] = peak.teacher
    return max(terms, key=lambda words: terms[words])


def _state_parts(peak: Peak, work: Workload) -> tuple[Part, ...]:
    count = trainable_parameters(work)
    over = f" / {work.shards} cards" if work.shards > 1 else ""
    parts = [Part("weights", peak.weights, weight_formula(work) + over, "bitsandbytes, peft, torch")]
    if work.teacher is not None:
        parts.append(Part("teacher", peak.teacher, teacher_formula(work), "bitsandbytes, torch"))
    if work.method is Method.ADAPTER:
        text = f"{work.adapter_bytes} B x {count:,} (rank {work.rank})"
        parts.append(Part("adapter", peak.adapter, text + over, "peft: adapters stay in fp32"))
    if work.purpose is not Purpose.TRAIN:
        return tuple(parts)
    gradients = f"one copy of {count:,} trained parameters{over}" if peak.gradients else "not alive at the peak"
    parts.append(Part("gradients", peak.gradients, gradients, "torch autograd"))
    text = f"{_OPTIMIZER_WORDS[work.optimizer]} x {count:,} trained parameters{over}"
    if work.optimizer_on_host:
        text = "in host RAM"
    parts.append(Part("optimizer", peak.optimizer, text, "torch, bitsandbytes"))
    return tuple(parts)


_OPTIMIZER_WORDS = {
    OptimizerKind.ADAMW: "AdamW: two copies",
    OptimizerKind.ADAMW_8BIT: "8-bit AdamW: 2.03 B",
    OptimizerKind.PAGED_ADAMW_8BIT: "paged 8-bit AdamW, in unified memory that leaves a full card: 2.03 B",
    OptimizerKind.ADAMW_MIXED: "mixed precision: two states in fp32 (and a master copy where weights have 16 bits)",
    OptimizerKind.SGD: "SGD: no state, 0 B",
}


def _token_parts(peak: Peak, work: Workload) -> tuple[Part, ...]:
    shape = shape_of(work.architecture)
    tokens = f"{work.batch} x {work.sequence:,} tokens"
    where = PHASE_WORDS[peak.phase]
    if not peak.activations:
        activations = "not alive at the peak"
    elif peak.phase == "measuring":
        activations = f"keys and values of {shape.layers} layers x {work.measured_tokens:,} tokens, twice"
    elif peak.phase == "writing":
        activations = f"keys and values of {shape.layers} layers; peak: {where}"
    elif work.purpose is Purpose.GENERATE:
        activations = f"KV cache of {shape.layers} layers x {tokens}"
    elif work.checkpointing or work.purpose is Purpose.EVALUATE:
        activations = f"checkpoints of {shape.layers} layers x {tokens}; peak: {where}"
    else:
        activations = f"everything {shape.layers} layers keep x {tokens}; peak: {where}"
    positions = f"{work.tokens * logit_share(work):,.0f} positions"
    chunk = "" if work.loss is Loss.FULL else f", {work.loss.value} loss"
    each = peak.logits / max(work.architecture.vocab_size * work.tokens * logit_share(work), 1.0)
    logits = f"{each:.0f} B x {shape.vocabulary:,} words x {positions}{chunk}"
    if not peak.logits:
        logits = "not alive at the peak"
    return (
        Part("activations", peak.activations, activations, TRACED),
        Part("logits and loss", peak.logits, logits, TRACED),
        Part("temporary buffers", peak.temporary, "gradients of activations in work, cuBLAS workspaces", TRACED),
    )


__all__ = ["NOTHING", "HeadWalk", "Peak", "allocated_bytes", "estimate_memory", "limiting_words"]
__all__ += ["memory_bounds", "peak_of"]
