"""Whether a length fits the machine, said before anything runs.

Owns the estimate and the refusal. Must not know what is measured. Bytes.
"""

from __future__ import annotations

import torch

from engine.errors import EngineError, ExitCode
from engine.evaluation.long_pass import BYTES_PER_LOGIT, Room, cache_bytes
from engine.evaluation.model import LoadedModel
from engine.hardware.memory import read_ram

WORKING_BYTES = 300 << 20
_COPIES = 2
"""The cache of a haystack, and the copy that a question goes on from."""
_TOKENS_AT_LEAST = 128


def free_bytes(device: str) -> int:
    """Memory that new tensors can have."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return read_ram().available_bytes


def needed_bytes(model: LoadedModel, length: int) -> int:
    """The least that a row of `length` tokens takes: its cache twice, and one small chunk's activations, logits and
    attention scores where a family computes those one by one."""
    config = model.model.config.get_text_config()
    chunk = min(_TOKENS_AT_LEAST, length)
    activations = _activation_bytes(model) * chunk + model.vocab_size * BYTES_PER_LOGIT * 16
    heads = int(config.num_attention_heads)
    scores = (
        heads * chunk * length * 8 if getattr(config, "_attn_implementation", "") == "eager" else chunk * length * 5
    )
    return _COPIES * cache_bytes(model, length) + activations + scores + WORKING_BYTES


def _activation_bytes(model: LoadedModel) -> int:
    """Per token: some copies of the stream and three of the feed-forward's width, in float32."""
    config = model.model.config.get_text_config()
    wide = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    return 4 * (8 * int(config.hidden_size) + 3 * wide)


def room_for(model: LoadedModel, longest: int, free: int | None = None) -> Room:
    """What may go through the model at one time; `free` bytes are asked for where they are not given.

    Raises EngineError `evaluation.memory` when one row of `longest` tokens does not fit.
    """
    free = free_bytes(model.device) if free is None else free
    if needed_bytes(model, longest) > free:
        fits = longest
        while fits > _TOKENS_AT_LEAST and needed_bytes(model, fits) > free:
            fits //= 2
        shorter = f"Measure --lengths up to about {fits:,}"
        raise EngineError(
            "evaluation.memory",
            f"{longest:,} tokens do not fit into the memory that is free.",
            cause=f"Keys and values of one text take {cache_bytes(model, longest) / 1e9:.1f} GB, all in all "
            f"{needed_bytes(model, longest) / 1e9:.1f} GB are needed; {free / 1e9:.1f} GB are free.",
            next_step=f"{shorter}, or make room: --quantization nf4, --dtype bfloat16.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )
    room = Room.on(model.device)
    # In powers of two, so that batches are the same in the next process.
    while room.cache_bytes > max(free // 3, cache_bytes(model, longest)):
        room.cache_bytes //= 2
    while room.tokens > _TOKENS_AT_LEAST and room.tokens * _activation_bytes(model) > free // 4:
        room.tokens //= 2
    while room.logit_bytes > max(free // 8, 1 << 20):
        room.logit_bytes //= 2
    return room
