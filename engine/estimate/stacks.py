"""Whose code trains, and of which year: the few facts by which training stacks differ in memory.

Owns those facts, each with its source. Must not know models, machines or published rows.
Which tensors exist follows from the code of the frameworks as known, these sizes do not: they were set so that
published runs are met, and carry over to other runs less surely: `varied_slack` (ms-swift), `buffer_bytes` and
`state_bytes_per_parameter` (DeepSpeed, FSDP), `packed_input_bytes` 4 (litgpt), every `*_factor`, `context_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.estimate.estimate import Range
from engine.units import GIB


@dataclass(frozen=True, slots=True)
class Stack:
    """One way of running a training step."""

    id: str
    title: str
    source: str
    autocast: bool = False
    """Forward under torch.autocast (transformers' Trainer with bf16 or fp16)."""
    kbit_prepared: bool = False
    """4-bit runs pass peft's `prepare_model_for_kbit_training`: whatever is not 4-bit becomes fp32, and so does the
    hidden state between layers."""
    selective_head: bool = False
    """Logits only for positions that carry loss."""
    holds_output: bool = False
    """The script keeps the model's output while it goes backward, so the logits live on."""
    shifted_copy: bool = False
    """The loss copies logits to drop the last position (transformers before late 2024)."""
    fp32_logits: bool = True
    """Logits are turned to fp32 before the loss."""
    repeats_keys: bool = False
    """Keys and values are repeated to all heads in every layer (before native grouped attention)."""
    loss_chunk_tokens: int = 1024
    """Tokens per chunk of a chunked loss."""
    foreach_copies: float = 1.0
    """Copies of the trained parameters that torch's `foreach` step makes: two in torch 2.0 (root and denominator)."""
    packed_input_bytes: int = 0
    """Bytes kept per value of every 4-bit linear's input until its backward (bitsandbytes before 0.43 saved it for a
    gradient that is never computed)."""
    packs_experts: bool = False
    """Experts of mixtures are linear layers of their own, which 4-bit packing reaches (transformers before 5)."""
    packs_head: bool = False
    """The output head is packed to 4 bits as well."""
    stored_factor: float = 1.0
    """What a layer keeps relative to transformers' layer (compiled or hand-written kernels keep less)."""
    hump_factor: float = 1.0
    """The layer in work relative to transformers' layer."""
    chunks_add_gradients: bool = False
    """A chunked loss goes backward chunk by chunk: the head's gradient exists twice while it adds up."""
    checkpointed_chunks: bool = False
    """A chunked loss runs head and loss of every chunk again in the backward pass; the hidden states of all chunks, and
    then their gradients, exist as a whole (engine/evaluation/head.py)."""
    fp32_copies: bool = False
    """What learns whole beside an adapter is an fp32 copy whose results are narrowed again
    (engine/train/also_trained.py); else it has the type of the rest."""
    logits_before_chunks: bool = False
    """The 16-bit logits of all chunks exist before the loss takes the first one."""
    loss_factor: float = 1.0
    """What the loss makes beyond the logits, relative to torch's operators (a compiled loss fuses some)."""
    state_bytes_per_parameter: float = 0.0
    """Bytes per trained parameter beside weights, gradients and optimizer (fp32 gradient copies of DeepSpeed)."""
    buffer_bytes: float = 0.0
    """Communication buckets, gathered parameters beyond two blocks, masks that the model keeps."""
    context_bytes: Range | None = None
    """Process memory beside the allocator where this stack's differs: low, likely, high."""
    slack: Range | None = None
    """Reserved / allocated - 1 where steps are not replayed (sharded runs): low, likely, high."""
    empties_cache: bool = False
    """The script calls `torch.cuda.empty_cache()` between steps: segments do not outlive a step."""
    varied_slack: float = 0.0
    """Lengths that vary from batch to batch: what their blocks leave in segments, over the longest batch's own."""


OURS = Stack(
    id="scaler-wizard",
    title="this program's worker",
    source="engine/train, dry run",
    autocast=True,
    selective_head=True,
    checkpointed_chunks=True,
    fp32_copies=True,
)
HF = Stack(
    id="hf",
    title="transformers 4.45 or later with peft",
    source="traced on transformers 5.23 / torch 2.13, checked on published T4 runs",
    kbit_prepared=True,
    holds_output=True,
)
HF_2023 = Stack(
    id="hf-2023",
    title="transformers 4.30 to 4.44 with peft",
    source="LlamaForCausalLM of transformers 4.36: logits.float(), shifted contiguous copy, repeat_kv",
    autocast=True,
    kbit_prepared=True,
    shifted_copy=True,
    repeats_keys=True,
    packs_experts=True,
    context_bytes=Range(0.4 * GIB, 0.6 * GIB, 1.2 * GIB),
    slack=Range(0.02, 0.08, 0.25),
)
QWEN_2023 = replace(
    HF_2023,
    id="qwen-2023",
    title="Qwen-1 remote code with the Trainer in bf16, torch 2.0",
    source="modeling_qwen.py: bf16 logits, shifted bf16 copy, fp32 only inside the loss (autocast); flash-attn kernels "
    "and all CUDA modules loaded",
    context_bytes=Range(0.5 * GIB, 0.9 * GIB, 1.4 * GIB),
    fp32_logits=False,
    repeats_keys=False,
    foreach_copies=2.0,
)
QWEN_2023_DEEPSPEED = replace(
    QWEN_2023,
    id="qwen-2023-deepspeed",
    title="Qwen-1 remote code on GPTQ weights under DeepSpeed ZeRO-2 in fp16",
    source="ds_config_zero2.json: whole model in fp16, no autocast: logits, copy and softmax have 2 bytes each; per "
    "trained parameter fp32 master (4), rest of the fp32 states (4), fp32 gradients (4), flat copies (4)",
    autocast=False,
    kbit_prepared=False,
    state_bytes_per_parameter=16.0,
    buffer_bytes=1.0 * GIB,
    context_bytes=Range(0.8 * GIB, 1.3 * GIB, 2.2 * GIB),
)
QWEN_2023_ZERO3 = replace(
    QWEN_2023_DEEPSPEED,
    id="qwen-2023-zero3",
    title="Qwen-1 remote code under DeepSpeed ZeRO-3 in bf16",
    source="ds_config_zero3.json: fp32 master and states; fp32 gradients of a sub-group of 1e9 (4 GB), 1e9 live "
    "parameters (2 GB), norms taken in fp64 of the largest tensor (2.5 to 5 GB)",
    state_bytes_per_parameter=0.0,
    buffer_bytes=10.0 * GIB,
)
MS_SWIFT = replace(
    HF_2023,
    id="ms-swift-2023",
    title="ms-swift 1.x and 2.x",
    source="swift's trainer logs torch.cuda.max_memory_reserved; models as transformers 4.36 or their remote code; "
    "batches of one row, each of another length",
    varied_slack=1.9,
)
LLAMA_FACTORY = replace(
    HF_2023,
    id="llama-factory-2024",
    title="LLaMA-Factory of early 2024 (transformers 4.38, FlashAttention-2)",
    source="same modelling code as transformers 4.38; adapters in fp32, compute under autocast; no fp32 embeddings",
    kbit_prepared=False,
)
PEFT_BENCH = replace(
    HF,
    id="peft-benchmark",
    title="peft method_comparison (transformers 4.5x, no Trainer, bf16)",
    source="method_comparison/MetaMathQA/run.py: own loop without autocast, padded batches, empty_cache every few"
    " steps",
    holds_output=False,
    empties_cache=True,
)
LITGPT = Stack(
    id="litgpt",
    title="litgpt (Lightning Fabric, bf16-true)",
    source="litgpt/model.py, lora.py, utils.chunked_cross_entropy; bitsandbytes replaces every Linear, the head too",
    repeats_keys=True,
    loss_chunk_tokens=128,
    packed_input_bytes=4,
    packs_experts=True,
    packs_head=True,
    foreach_copies=1.0,
    context_bytes=Range(0.4 * GIB, 0.5 * GIB, 0.9 * GIB),
    slack=Range(0.02, 0.06, 0.2),
)
LITGPT_2023 = replace(
    LITGPT,
    id="lit-gpt-2023",
    title="lit-gpt of October 2023 (torch 2.1, bitsandbytes 0.41)",
    packed_input_bytes=2,
)
TORCHTUNE = Stack(
    id="torchtune",
    title="torchtune 0.4 to 0.6",
    source="torchtune recipes: bf16 everywhere, bf16 adapters, chunked output loss with 8 chunks, fp32 inside a chunk",
    chunks_add_gradients=True,
    logits_before_chunks=True,
    context_bytes=Range(0.4 * GIB, 0.5 * GIB, 0.9 * GIB),
    slack=Range(0.01, 0.05, 0.15),
)
TORCHTUNE_COMPILED = replace(
    TORCHTUNE,
    id="torchtune-compiled",
    title="torchtune 0.4 to 0.6, layers and loss compiled",
    stored_factor=0.8,
    hump_factor=0.7,
    loss_factor=0.67,
    loss_chunk_tokens=512,
)
UNSLOTH = Stack(
    id="unsloth",
    title="Unsloth (own kernels, offloaded checkpoints, cut cross-entropy)",
    source="unsloth README and kernels: in-place SwiGLU and RMSNorm backward, no logits kept",
    hump_factor=0.55,
    slack=Range(0.01, 0.04, 0.1),
)
UNSLOTH_EARLY = replace(
    UNSLOTH,
    id="unsloth-early-2024",
    title="Unsloth of early 2024 (own kernels, checkpoints stay on the card)",
    source="fast_lora.py: gate, up and product in place, 6f per token, and some h-wide tensors",
    hump_factor=0.25,
)
FSDP_QLORA = replace(
    HF_2023,
    id="fsdp-qlora",
    title="answer.ai fsdp_qlora train.py (transformers 4.38, torch 2.2)",
    source="train.py: bf16 parameters and adapters, FSDP FULL_SHARD with reentrant checkpointing; the root's embedding "
    "and head stay gathered; the output is held while going backward",
    kbit_prepared=False,
    autocast=False,
    holds_output=True,
    foreach_copies=1.0,
    buffer_bytes=1.0 * GIB,
    slack=Range(0.04, 0.12, 0.25),
)
STACKS = (
    OURS, HF, HF_2023, QWEN_2023, QWEN_2023_DEEPSPEED, QWEN_2023_ZERO3, MS_SWIFT, LLAMA_FACTORY, PEFT_BENCH,
    LITGPT, LITGPT_2023, TORCHTUNE, TORCHTUNE_COMPILED, UNSLOTH, UNSLOTH_EARLY, FSDP_QLORA,
)  # fmt: skip
