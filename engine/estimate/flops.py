"""What one micro-step asks of a device: matrix work by precision, bytes moved, kernels launched.

Owns those counts, one function per component, each with its formula. Must not know how fast any device is.
Symbols as in `engine.estimate.workload`; M are the matrix parameters one token passes in the layers, H those of the
head. Counts are of one card's micro-step; `engine.estimate.roofline` turns them into seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.shapes import Shape, adapted_modules, shape_of
from engine.estimate.state import autocast_mixed, gradient_bytes, trainable_parameters, weight_bytes
from engine.estimate.workload import (
    Attention,
    Loss,
    Method,
    OptimizerKind,
    Packing4Bit,
    Purpose,
    TeacherHeld,
    Workload,
)

UNPACKED_ACCESS = 4.6
"""Bytes moved to unpack one 4-bit value: 0.56 read, 2 written, 2 read again by the multiplication."""
GPTQ_ACCESS = 20.0
"""The same for GPTQ, whose values pass through 32-bit integers. Fits Qwen-72B-Int4 at 256 tokens, where it is most of
the time."""
BASE_KERNELS = 42
"""Of one decoder layer's forward pass in transformers: two norms of 7, rotary 12, 7 linears, attention, the rest."""
ADAPTER_KERNELS = 6
"""Cast, A, B, scale, add, cast back for each adapted linear."""
EAGER_SCORE_BYTES = 18.0
"""Per score, head and pass: written, masked, turned to fp32, soft-maxed, turned back, read."""
_LOSS_BYTES = {Loss.FULL: 30.0, Loss.CHUNKED: 14.0, Loss.FUSED: 6.0}
"""Per logit: cast, soft-max, loss and their gradients."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """One micro-step of one card, in numbers that do not depend on which card."""

    tokens: int
    matmul_flops: float
    """In the compute type."""
    fp32_flops: float
    """Multiplications outside tensor cores: fp32 adapters, and the head after kbit preparation."""
    attention_flops: float
    """With a fused kernel."""
    fp32_attention_flops: float
    """Fused attention on fp32 inputs: 4-bit weights after kbit preparation."""
    elementwise_bytes: float
    """Norms, activations, rotary, adapters' additions, logits and loss: kernels bound by bandwidth."""
    unpack_bytes: float
    """Dequantising 4-bit weights, in every pass."""
    weight_read_bytes: float
    """Weights once per pass: a floor for the multiplications."""
    cache_bytes: float
    """Keys and values read while generating."""
    optimizer_bytes: float
    """Traffic of the optimizer step, divided by the micro-steps it serves and by the cards that share it."""
    link_bytes: float
    """Between host and card: offloaded activations, optimizer or teacher."""
    peer_bytes: float
    """Between cards: gathered weights and reduced gradients of ZeRO-3/FSDP, reduced gradients of data parallel."""
    kernels: float
    """Launched from Python, one after the other."""


@dataclass(frozen=True, slots=True)
class _View:
    """A workload with what every count needs, worked out once."""

    work: Workload
    shape: Shape
    sizes: tuple[tuple[int, int], ...]
    """(in, out) of each adapted linear of a block."""
    trains: bool
    reach: float
    """Share of the layers that backward passes through."""
    again: float
    """1 where layers are recomputed."""
    wide: bool
    """The hidden state is fp32 although the weights are narrower."""

    @property
    def passes(self) -> float:
        """Uses of a layer's weights: forward, backward, recomputed forward."""
        return 1.0 + self.reach * (1.0 + self.again) if self.trains else 1.0

    @property
    def kernel_passes(self) -> float:
        """The same with backward counted twice: gradients of inputs and of what learns."""
        return 1.0 + self.reach * (2.0 + self.again) if self.trains else 1.0


def _view(work: Workload) -> _View:
    shape = shape_of(work.architecture)
    sizes: tuple[tuple[int, int], ...] = ()
    if work.method is Method.ADAPTER and work.targets:
        sizes = _sizes(shape, work.architecture.intermediate_size, adapted_modules(work.architecture, work.targets))
    prepared = work.packed and work.stack.kbit_prepared and not work.stack.autocast and work.compute_bytes == 2
    trains = work.purpose is Purpose.TRAIN
    return _View(work, shape, sizes, trains, backward_reach(work), 1.0 if work.checkpointing else 0.0, prepared)


def step_tokens(work: Workload) -> int:
    """Tokens one micro-step deals with: b·s, or b new ones while generating."""
    return work.batch if work.purpose is Purpose.GENERATE else work.tokens


def step_work(work: Workload) -> StepWork:
    """All counts of one micro-step."""
    view = _view(work)
    tokens = step_tokens(work)
    dense, slow = _matmul_flops(view)
    attention = _attention_flops(view) * tokens
    if work.attention is Attention.EAGER:
        dense, slow = (dense, slow + attention / tokens) if view.wide else (dense + attention / tokens, slow)
        attention = 0.0
    wide_attention = view.wide and work.attention is Attention.SDPA
    teacher = _teacher(work)
    trained = trainable_parameters(work) if view.trains else 0
    weights = weight_bytes(work)
    return StepWork(
        tokens=tokens,
        matmul_flops=(dense + teacher.flops) * tokens + _dora_flops(view),
        fp32_flops=slow * tokens,
        attention_flops=0.0 if wide_attention else attention,
        fp32_attention_flops=attention if wide_attention else 0.0,
        elementwise_bytes=_elementwise_bytes(view) + teacher.elementwise_bytes,
        unpack_bytes=_unpack_bytes(view) + teacher.unpack_bytes,
        weight_read_bytes=view.passes * weights + teacher.weight_read_bytes,
        cache_bytes=_cache_bytes(view),
        optimizer_bytes=_optimizer_traffic(view, trained) / work.shards,
        link_bytes=_link_bytes(view, trained) + teacher.link_bytes,
        peer_bytes=_peer_bytes(view, weights, trained),
        kernels=_kernels(view) + teacher.kernels,
    )


def backward_reach(work: Workload) -> float:
    """Share of the layers backward passes through: all, or those from the lowest new block up.

    With n new blocks spread evenly over L layers, each closing its group, the lowest is layer L/n (LLaMA-Pro).
    """
    if work.method is not Method.NEW_BLOCKS:
        return 1.0
    layers, new = max(work.architecture.layers, 1), max(work.trained_layers, 1)
    return 1.0 - (max(layers // new, 1) - 1) / layers


def matmul_flops_per_token(work: Workload) -> tuple[float, float]:
    """(compute-type FLOPs, fp32 FLOPs) per token.

    Forward 2M + 2H; backward to inputs the same where it reaches; backward to weights 2 x trained matrices; a
    recomputed forward 2M with checkpointing (the head is not recomputed). Adapters 2A per pass beside them, in fp32
    where no autocast turns them into the compute type. H counts only positions with loss where the stack selects them.
    Source: counting multiplications.
    """
    return _matmul_flops(_view(work))


def attention_flops_per_token(work: Workload) -> float:
    """Scores and values: 4·q per pair forward, 10·q backward with a fused kernel (8·q eager), 4·q recomputed.

    Pairs per token: s/2 when the causal half is skipped (SDPA and flash without a mask), else s; in sliding-window
    layers at most the window. Generating, each new token meets the whole cache.
    Source: FlashAttention-2's counts (2 multiplications forward, 5 backward).
    """
    return _attention_flops(_view(work))


def elementwise_bytes(work: Workload) -> float:
    """Traffic of bandwidth-bound kernels, all tokens of the micro-step.

    Per layer and pass 76h + 24(q + kv) + 10f bytes (norms in fp32, rotary, residuals, gate; 16-bit), twice that for
    backward; 24 B x out + 6 B x in for each fp32 adapter (10 B x out under autocast); doubled where the hidden state is
    fp32. Eager attention 18 B per score. Logits 30 B x V x T in full, 14 B in chunks, 6 B fused.
    Source: counting reads and writes of the transformers modelling code.
    """
    return _elementwise_bytes(_view(work))


def optimizer_traffic_bytes(work: Workload) -> float:
    """Parameters, gradients and states read and written once per step, divided by the micro-steps.

    AdamW: 7 copies in the parameter's type (x1.5 with `foreach`); mixed 34 B; 8-bit 3 copies and 4 B; SGD 3 copies.
    """
    return _optimizer_traffic(_view(work), trainable_parameters(work))


# ── multiplications ───────────────────────────────────────────────────────────────────────────────────────────────
def _matmul_flops(view: _View) -> tuple[float, float]:
    work, shape = view.work, view.shape
    layers = float(shape.layers * shape.layer_matmul)
    selects = work.stack.selective_head and work.purpose is not Purpose.GENERATE
    head = shape.head * (work.trained_share if selects else 1.0)
    slow = 0.0
    if view.trains:
        flops = 2.0 * layers + (2.0 + 2.0 * view.again) * view.reach * layers + 4.0 * head
        flops += _weight_gradient_flops(work, layers, head)
    else:
        flops = 2.0 * (layers + head)
    if view.sizes:
        adapter = (6.0 + 2.0 * view.again) if view.trains else 2.0
        adapter *= shape.layers * work.rank * sum(into + out for into, out in view.sizes)
        if work.adapter_bytes == 4 and work.compute_bytes == 2 and not work.stack.autocast:
            slow += adapter
        else:
            flops += adapter
    if view.wide:
        in_fp32 = head * (4.0 if view.trains else 2.0)
        flops, slow = flops - in_fp32, slow + in_fp32
    return flops, slow


def _weight_gradient_flops(work: Workload, layers: float, head: float) -> float:
    """2 per trained matrix parameter and token; frozen ones are skipped."""
    if work.method is Method.FULL:
        return 2.0 * (layers + head)
    if work.method is Method.NEW_BLOCKS:
        return 2.0 * layers * min(work.trained_layers, work.architecture.layers) / max(work.architecture.layers, 1)
    return 2.0 * head if work.train_embeddings else 0.0


def _attention_flops(view: _View) -> float:
    pairs = _pairs_per_token(view.work)
    if not view.trains:
        return 4.0 * view.shape.query * pairs
    backward = 8.0 if view.work.attention is Attention.EAGER else 10.0
    return view.shape.query * pairs * (4.0 + view.reach * (backward + 4.0 * view.again))


def _pairs_per_token(work: Workload) -> float:
    """Key positions one token meets, summed over the layers."""
    a, s = work.architecture, float(work.sequence)
    causal = work.attention is not Attention.EAGER and not work.masked and work.purpose is not Purpose.GENERATE
    half = 0.5 if causal else 1.0
    local = min(a.sliding_layers, a.layers) if a.sliding_window else 0
    window = float(min(a.sliding_window or 0, work.sequence))
    return (a.layers - local) * s * half + local * (window if window < s else s * half)


def _sizes(shape: Shape, f: int, modules: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    h = shape.hidden
    table = {
        "q_proj": (h, shape.query),
        "k_proj": (h, shape.key_value),
        "v_proj": (h, shape.key_value),
        "o_proj": (shape.query, h),
        "gate_proj": (h, f),
        "up_proj": (h, f),
        "down_proj": (f, h),
    }
    # What adapters of fused experts add is small beside the experts themselves and is left out.
    return tuple(table[name] for name in modules if name in table)


def _dora_flops(view: _View) -> float:
    """Weight norms in every forward pass: identity x A (2·in²·r), then x B (2·in·r·out), per adapted linear.

    Source: peft.
    """
    if not view.work.dora:
        return 0.0
    per_layer = sum(2.0 * view.work.rank * into * (into + out) for into, out in view.sizes)
    return per_layer * view.shape.layers * (1.0 + view.again if view.trains else 1.0)


# ── traffic ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _elementwise_bytes(view: _View) -> float:
    work, shape = view.work, view.shape
    width = 2.0 if work.compute_bytes == 4 or view.wide else 1.0
    per_layer = _layer_elementwise(shape) * width + 8.0 * shape.hidden * shape.routed
    if view.sizes:
        fp32_adapter = work.adapter_bytes == 4 and not work.stack.autocast
        per_out, per_in = (24.0, 6.0) if fp32_adapter else (10.0, 0.0)
        per_in += 5.0 if work.dropout else 0.0
        per_out += 6.0 if work.dora else 0.0
        per_layer += sum(per_out * out + per_in * into for into, out in view.sizes)
    total = shape.layers * per_layer * view.kernel_passes
    if work.attention is Attention.EAGER:
        total += EAGER_SCORE_BYTES * shape.heads * shape.layers * work.sequence * view.kernel_passes
    if work.dora:
        total += 6.0 * sum(into * out for into, out in view.sizes) * shape.layers * view.passes / step_tokens(work)
    per_logit = _LOSS_BYTES[work.loss] if view.trains else 12.0
    share = work.trained_share if work.stack.selective_head and work.purpose is not Purpose.GENERATE else 1.0
    return step_tokens(work) * (total + per_logit * shape.vocabulary * share)


def _layer_elementwise(shape: Shape) -> float:
    return 76.0 * shape.hidden + 24.0 * (shape.query + shape.key_value) + 10.0 * shape.feed_forward


def _unpack_bytes(view: _View) -> float:
    if not view.work.packed:
        return 0.0
    access = GPTQ_ACCESS if view.work.packing is Packing4Bit.GPTQ else UNPACKED_ACCESS
    return access * view.shape.quantizable * view.passes


def _cache_bytes(view: _View) -> float:
    """Generating: 2·2·kv·L bytes per cached position and sequence, windows respected."""
    if view.work.purpose is not Purpose.GENERATE:
        return 0.0
    return 4.0 * view.shape.key_value * _pairs_per_token(view.work) * view.work.batch


def _optimizer_traffic(view: _View, trained: int) -> float:
    work = view.work
    if not view.trains:
        return 0.0
    width = work.adapter_bytes if work.method is Method.ADAPTER else work.compute_bytes
    if work.optimizer is OptimizerKind.ADAMW:
        per_parameter = 7.0 * width * (1.5 if work.foreach else 1.0)
    elif work.optimizer is OptimizerKind.ADAMW_MIXED:
        per_parameter = 34.0
    else:
        per_parameter = 3.0 * width + (0.0 if work.optimizer is OptimizerKind.SGD else 4.0)
    return per_parameter * trained / work.accumulation


def _link_bytes(view: _View, trained: int) -> float:
    """Offloaded activations go out and back; gradients go to a host optimizer and parameters come back."""
    work, shape, moved = view.work, view.shape, 0.0
    if not view.trains:
        return 0.0
    if work.offload_activations:
        per_token = 2.0 * shape.hidden if work.checkpointing else 16.0 * shape.hidden + 8.0 * shape.feed_forward
        moved = 2.0 * per_token * shape.layers * work.tokens
    if work.optimizer_on_host:
        moved += 2.0 * work.compute_bytes * trained / work.accumulation / work.shards
    return moved


def _peer_bytes(view: _View, weights: float, trained: int) -> float:
    """ZeRO-3/FSDP: each card receives the others' shares of the weights per pass and of the gradients per step.
    Data parallel: a ring moves 2 (R - 1) / R of the gradients to and from each card, once per optimizer step.
    Source: Patarasu & Yuan, Bandwidth optimal all-reduce, 2009."""
    shards, replicas = view.work.shards, view.work.replicas
    if autocast_mixed(view.work):  # gathered in the compute type
        weights = float(view.work.compute_bytes * view.work.architecture.parameters)
    gathered = (shards - 1) / shards * (view.passes * weights + 2.0 * trained) if shards > 1 else 0.0
    ring = 2.0 * (replicas - 1) / replicas if view.trains else 0.0
    return gathered + ring * gradient_bytes(view.work) / shards / view.work.accumulation


def _kernels(view: _View) -> float:
    """Launches: (42 + 6 per adapter) x layers x (passes, backward twice); half as many again when sharded."""
    work = view.work
    per_layer = BASE_KERNELS + ADAPTER_KERNELS * len(view.sizes) * (2.5 if work.dora else 1.0)
    per_layer += 14 if work.packed else 0
    if work.architecture.moe is not None:
        per_layer += 4.0 * min(work.architecture.moe.experts, 16)
    return 30.0 + per_layer * view.shape.layers * view.kernel_passes * (1.5 if work.shards > 1 else 1.0)


# ── teacher ───────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class _TeacherWork:
    flops: float = 0.0
    """Per token."""
    elementwise_bytes: float = 0.0
    unpack_bytes: float = 0.0
    weight_read_bytes: float = 0.0
    link_bytes: float = 0.0
    kernels: float = 0.0


_NO_TEACHER = _TeacherWork()


def _teacher(work: Workload) -> _TeacherWork:
    """One forward pass of the teacher; none when its logits were cached. Offloaded, its weights cross the link."""
    if work.teacher is None or work.purpose is not Purpose.TRAIN or work.teacher_held is TeacherHeld.CACHED:
        return _NO_TEACHER
    shape = shape_of(work.teacher)
    packed = work.packed if work.teacher_held is TeacherHeld.SHARED else work.teacher_held is TeacherHeld.PACKED
    stored = 2.0 * shape.parameters
    pairs = work.sequence * shape.layers * (1.0 if work.masked else 0.5)
    share = work.trained_share if work.stack.selective_head else 1.0
    elementwise = shape.layers * _layer_elementwise(shape) + 12.0 * shape.vocabulary * share
    return _TeacherWork(
        flops=2.0 * (shape.layers * shape.layer_matmul + shape.head * share) + 4.0 * shape.query * pairs,
        elementwise_bytes=work.tokens * elementwise,
        unpack_bytes=UNPACKED_ACCESS * shape.quantizable if packed else 0.0,
        weight_read_bytes=0.28 * stored if packed else stored,
        link_bytes=stored if work.teacher_held is TeacherHeld.OFFLOADED else 0.0,
        kernels=float(BASE_KERNELS * shape.layers),
    )
