"""An extended folder, opened as anybody would: are its frequencies the plan's, and does a cache survive the old border?

Owns both checks. Must not know how the folder was made. Generation starts a few tokens before the old window's end and
goes across it, with the key-value cache; every step is compared with recomputing the whole text.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.context.certificate import CERTIFICATE_NAME, FolderCheck, read_certificate
from engine.context.plan import ContextPlan
from engine.errors import EngineError
from engine.evaluation.length_memory import room_for
from engine.evaluation.loading import bare_model, loaded
from engine.evaluation.long_pass import Room, can_cache, continued, prefill
from engine.evaluation.model import LoadedModel
from engine.rotary.modules import check_frequencies, rebuild_on_cpu, rotary_modules

BEFORE, AFTER = 8, 8
"""Tokens generated up to the old border, and beyond it."""
EXACT_SHARE, ROUGH_SHARE = 0.005, 0.15
"""Of the logits' spread: what float32, and 16 or 4 bits, may differ by when sums are taken in another order."""


@dataclass(frozen=True, slots=True)
class _Crossing:
    """Cache against recomputation."""

    generated: int = 0
    equal: bool | None = None
    difference: float = 0.0
    reason: str = ""


def check_extended(folder: Path, dtype: str = "auto", quantization: str = "none") -> FolderCheck:
    """Load `folder` with plain transformers and check it against its own certificate.

    Raises EngineError `context.frequencies` where a module does not turn as planned, `extension.no_certificate`, and
    those of loading. A cache that does not survive is no error: it is said in the result.
    """
    began = time.monotonic()
    plan = _planned(folder)
    with loaded(folder, dtype, quantization) as model:
        largest = check_frequencies(model.model, plan)
        crossing = _crossed(model, plan, exact=model.compute_dtype == torch.float32 and quantization == "none")
        return FolderCheck(
            modules=len(rotary_modules(model.model)),
            largest_error=largest,
            boundary=plan.original,
            generated=crossing.generated,
            cache_equal=crossing.equal,
            logit_difference=crossing.difference,
            reason=crossing.reason,
            seconds=time.monotonic() - began,
        )


def check_unloaded(folder: Path) -> FolderCheck:
    """The frequencies of the rotary modules that transformers builds from the config of `folder`; no weight is read.

    Raises as `check_extended`.
    """
    began = time.monotonic()
    plan = _planned(folder)
    model = bare_model(folder)
    rebuild_on_cpu(model)
    return FolderCheck(
        modules=len(rotary_modules(model)),
        largest_error=check_frequencies(model, plan),
        boundary=plan.original,
        reason="Its modules were built without the weights, for want of memory; generation was not tried.",
        seconds=time.monotonic() - began,
    )


def _planned(folder: Path) -> ContextPlan:
    certificate = read_certificate(folder)
    if certificate is None:
        raise EngineError(
            "extension.no_certificate",
            f"{folder} has no {CERTIFICATE_NAME}.",
            cause="Only folders that this program extended say what their frequencies should be.",
            next_step="Measure any other with: scaler-wizard eval",
        )
    return certificate.plan


def _crossed(model: LoadedModel, plan: ContextPlan, *, exact: bool) -> _Crossing:
    start, end = plan.original - BEFORE, min(plan.original + AFTER, plan.target)
    if start < 1:
        return _Crossing(reason=f"The old window of {plan.original} tokens is too short to start within it.")
    try:
        room = room_for(model, end)
        with model.inference():
            ids, cached = _generated(model, _prompt(model, start), end - start)
            whole = _recomputed(model, plan, ids, start, room)
    except (EngineError, torch.OutOfMemoryError, MemoryError) as error:
        return _Crossing(reason=f"Not tried for want of memory: {error}")
    difference = float((cached - whole).abs().max())
    allowed = (EXACT_SHARE if exact else ROUGH_SHARE) * float(whole.std())
    equal = difference <= allowed
    return _Crossing(end - start, equal, difference, "" if equal else _reason(plan))


def _prompt(model: LoadedModel, tokens: int) -> Tensor:
    """Ordinary tokens at random, (1, T): what they say is no matter here."""
    draw = random.Random(tokens)
    special = model.tokenizer.special_ids
    ordinary = [number for number in range(model.vocab_size) if number not in special]
    return torch.tensor([[draw.choice(ordinary) for _ in range(tokens)]], device=model.device)


def _generated(model: LoadedModel, prompt: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greedy continuation with cache: all ids (1, T + N), and the logits that chose each new token (N, V)."""
    with model.autocast():
        output = model.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=model.pad_id,
            temperature=None,
            top_p=None,
            top_k=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return output.sequences, torch.cat(output.logits).float()


def _recomputed(model: LoadedModel, plan: ContextPlan, ids: Tensor, start: int, room: Room) -> Tensor:
    """The same logits without what was kept from earlier steps: (N, V).

    A text within the old window may be turned by other factors than a longer one, so its steps are one pass, the
    later ones another; within each, one pass over the longest text gives every step's logits.
    """
    total = ids.shape[1]
    border = min(plan.original + 1, total)  # the token at this index is chosen after a text of the old window's length
    parts = [(start, border), (border, total)] if plan.scaled.scaling.switches else [(start, total)]
    found = []
    for first, last in parts:
        if first == last:
            continue
        found.append(_last_logits(model, ids[:, : last - 1], last - first, room))
    return torch.cat(found).float()


def _last_logits(model: LoadedModel, ids: Tensor, count: int, room: Room) -> Tensor:
    """Logits (N, V) after the last `count` tokens of `ids` (1, T), as one pass over all of them gives."""
    total = ids.shape[1]
    if not can_cache(model, total):
        grid = torch.arange(total, device=ids.device)[None, :]
        return model.logits_at(ids, grid, grid[0, -count:])
    cache = prefill(model, ids[:, :-count], total, room)
    return continued(model, cache, ids[:, -count:], torch.arange(1, count + 1, device=ids.device), last=True)[0]


def _reason(plan: ContextPlan) -> str:
    if plan.scaled.scaling.switches:
        return (
            f"Keys of the first {plan.original:,} tokens were turned by the short factors and stay in the cache, later "
            "ones are turned by the long factors: start texts that will be longer with the long factors, or without "
            "the cache."
        )
    return "The cache gives other logits than recomputation by more than rounding explains."
