"""Forward passes over long rows in bounded memory: chunks of tokens with a key-value cache, logits only where asked.

Owns the cache, the chunks, and what rotary embeddings that look at the length at hand need. Must not know needles,
texts or reports. B rows, T tokens, K continuations.

Frequencies that depend on length ("dynamic", "longrope") are chosen by the largest position in a call. Chunks of a row
of T tokens would each get their own; so every chunk but the last carries one more token at position T - 1, which
nothing sees and which is cut off the cache again. What is measured is then what one pass over all T tokens gives.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, ExitCode
from engine.evaluation.model import LoadedModel

CPU_TOKENS = 8192
GPU_TOKENS = 16384
LOGIT_BYTES = 256 << 20
CACHE_BYTES = 2 << 30
"""Of one batch; what is free is asked by whoever measures (`engine.evaluation.length_memory`)."""
MASK_CELLS = 1 << 27
"""Of the mask that a chunk behind a cache needs: rows x its tokens x all tokens before and in it."""
BYTES_PER_LOGIT = 10
"""As computed, as float32, and its logarithm."""


@dataclass(slots=True)
class Room:
    """How much goes through the model at one time; halved when a card runs out of memory."""

    tokens: int = CPU_TOKENS
    cache_bytes: int = CACHE_BYTES
    logit_bytes: int = LOGIT_BYTES

    @classmethod
    def on(cls, device: str) -> Room:
        """What is usual on this kind of device."""
        return cls(GPU_TOKENS, CACHE_BYTES * 4, LOGIT_BYTES * 4) if device.startswith("cuda") else cls()

    def rows(self, length: int, cache_bytes_per_row: int) -> int:
        """Rows of `length` tokens in one batch; at least one."""
        return max(1, min(self.tokens // length, self.cache_bytes // max(cache_bytes_per_row, 1)))

    def halve(self) -> None:
        """Raises EngineError `evaluation.memory` when there is nothing left to halve."""
        if self.tokens <= 128:
            raise EngineError(
                "evaluation.memory",
                "The device ran out of memory, also with one short piece of a text at a time.",
                next_step="Measure shorter --lengths, or load the model smaller: --quantization nf4.",
                exit_code=ExitCode.DOES_NOT_FIT,
            )
        self.tokens //= 2
        self.cache_bytes //= 2
        self.logit_bytes //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def cache_bytes(model: LoadedModel, tokens: int) -> int:
    """Keys and values of one row: 2 x layers x key-value heads x head size x bytes, per token."""
    config = model.model.config.get_text_config()
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return 2 * int(config.num_hidden_layers) * heads * size * model.compute_dtype.itemsize * tokens


def depends_on_length(model: LoadedModel) -> bool:
    """Whether any rotary embedding chooses its frequencies by the length at hand."""
    for module in model.model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = kind.values() if isinstance(kind, dict) else (kind,)
        if any("dynamic" in str(name) or name == "longrope" for name in kinds if name):
            return True
    return False


def can_cache(model: LoadedModel, tokens: int) -> bool:
    """Whether a row of `tokens` may be cut into chunks: not where the cache of a sliding window would have to give a
    token back."""
    return not depends_on_length(model) or not any(new_cache(model).is_sliding) or tokens <= _narrowest(model)


def _narrowest(model: LoadedModel) -> int:
    return int(getattr(model.model.config.get_text_config(), "sliding_window", None) or 0) - 1


def new_cache(model: LoadedModel) -> Any:
    """An empty cache with this model's kinds of layers."""
    from transformers import DynamicCache

    return DynamicCache(config=model.model.config.get_text_config())


def forget_length(model: LoadedModel) -> None:
    """Dynamic frequencies stay where the longest call took them until a short one comes: this is that one."""
    if depends_on_length(model):
        token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        model.logits_at(token, token, token[0, :0])


def prefill(model: LoadedModel, ids: Tensor, total: int, room: Room) -> Any:
    """The cache after `ids` (B, T) on `model.device`, as the beginning of rows of `total` tokens. Call inside
    `model.inference()`."""
    cache = new_cache(model)
    nowhere = torch.zeros(0, dtype=torch.long, device=model.device)
    forget_length(model)
    step = _step(len(ids), total, room)
    for begin in range(0, ids.shape[1], step):
        _extend(model, cache, ids[:, begin : begin + step], begin, total, nowhere)
    return cache


def _extend(model: LoadedModel, cache: Any, chunk: Tensor, begin: int, total: int, positions: Tensor) -> Tensor:
    """Logits at row-wise `positions` of `chunk` (B, C), which begins at token `begin`; the cache grows by it."""
    rows, size = chunk.shape
    places = torch.arange(begin, begin + size, device=chunk.device)
    pinned = begin + size < total and depends_on_length(model)
    if pinned:
        chunk = torch.cat((chunk, chunk[:, -1:]), dim=1)  # (B, C + 1)
        places = torch.cat((places, places.new_tensor([total - 1])))
    wanted = positions[None, :] + torch.arange(rows, device=chunk.device)[:, None] * chunk.shape[1]  # (B, N)
    logits = model.logits_at(chunk, places.expand(rows, -1), wanted.reshape(-1), cache)
    if pinned:
        cache.crop(-1)
    return logits  # (B * N, V)


def continued(model: LoadedModel, cache: Any, ids: Tensor, scored: Tensor, *, last: bool) -> Tensor:
    """Logits (R, S, V) that choose the tokens `scored` (S,) of `ids` (R, T); R is a multiple of the cache's rows.

    Every row of the cache is continued by R / B rows in turn. With `last` the cache itself is used up.
    """
    begin = cache.get_seq_length()
    times = len(ids) // _rows(cache)
    if not last:
        cache = copy.deepcopy(cache)
    if times > 1:
        cache.batch_repeat_interleave(times)
    logits = _extend(model, cache, ids, begin, begin + ids.shape[1], scored - 1)
    return logits.reshape(len(ids), len(scored), -1)


def _rows(cache: Any) -> int:
    return int(next(layer for layer in cache.layers if getattr(layer, "is_initialized", True)).keys.shape[0])


def token_losses(model: LoadedModel, ids: Tensor, first: int, room: Room) -> Tensor:
    """Cross-entropy in nats of the tokens `first`..T-1 of `ids` (B, T): float32 (B, T - first), in main memory.

    `first` is at least 1: nothing predicts token 0. Call inside `model.inference()`.
    """
    rows, total = ids.shape
    ids = ids.to(model.device)
    forget_length(model)
    step = _chunk(model, ids, room) if can_cache(model, total) else total
    cache = new_cache(model) if step < total else None
    losses = []
    for begin in range(0, total, step):
        end = min(begin + step, total)
        # Token i + 1 is predicted at i; the last position predicts nothing.
        last = min(end, total - 1)
        places = torch.arange(min(max(begin, first - 1), last), last, device=ids.device)
        if cache is None:
            grid = torch.arange(total, device=ids.device).expand(rows, -1)
            flat = (places[None, :] + torch.arange(rows, device=ids.device)[:, None] * total).reshape(-1)
            logits = model.logits_at(ids, grid, flat)
        else:
            logits = _extend(model, cache, ids[:, begin:end], begin, total, places - begin)
        if len(places):
            losses.append(_cross_entropy(logits, ids[:, places + 1].reshape(-1)).reshape(rows, -1).cpu())
    return torch.cat(losses, dim=1)


def _chunk(model: LoadedModel, ids: Tensor, room: Room) -> int:
    """Tokens of each row per call."""
    rows = len(ids)
    by_logits = room.logit_bytes // (BYTES_PER_LOGIT * model.vocab_size * rows)
    return int(max(16, min(_step(rows, ids.shape[1], room), by_logits)))


def _step(rows: int, total: int, room: Room) -> int:
    """Tokens of each of `rows` rows per call: all of a row, which needs no mask, or as many as the mask allows."""
    at_once = room.tokens // rows
    return total if at_once >= total else max(16, min(at_once, MASK_CELLS // (rows * total)))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V), (N,) -> (N,) in float32."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
