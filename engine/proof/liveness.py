"""Does new capacity learn: one backward pass as the model is, a small step, and another.

Owns the passes. Must not know how gradients are judged (`engine.proof.census`). The step is plain gradient descent on
all parameters, of length `STEP` in all: what is zero on one side gets its gradient at step 0, the other side at step 1,
and nothing is hidden by an optimizer that scales every gradient up to the same size. Only where something has had no
gradient by then does a third pass tell what is late from what is dead.

    whole      gradients of all parameters in memory
    streamed   exact back-propagation too, a layer at a time; only some layers take the step, because the gradients of
               all do not fit, and only those are judged
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.expansion.certificate import Liveness, TensorEntry
from engine.proof import skeleton
from engine.proof.census import Census
from engine.proof.streamed import RESIDENT, StreamedModel

STEP = 0.1
"""Euclidean length of the step."""
STEPS = 3
TOKENS = 256
STREAMED_TOKENS = 32


def check_whole(model: Any, ids: Tensor, entries: Mapping[str, TensorEntry]) -> Liveness:
    """The passes on a model in memory; its parameters are changed. Needs room for the gradients."""
    census = Census(entries, model.base_model_prefix, skeleton.Places(model).buffers_among(entries))
    model.requires_grad_(True)
    for step in range(STEPS):
        if step == STEPS - 1 and census.all_alive():
            break
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(_loss(model, ids[:, :TOKENS]))
        for part in _parts(model):
            _show(census, model, step, part)
        _descend([parameter for parameter in model.parameters() if parameter.grad is not None])
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return census.verdict()


def _loss(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[0]  # (T, V)
    return nn.functional.cross_entropy(logits[:-1], ids[0, 1:])


def _descend(parameters: list[nn.Parameter]) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    length = float(torch.stack([gradient.double().norm() for gradient in gradients]).norm())
    if length > 0:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient * (STEP / length))


def _parts(model: Any) -> list[dict[str, nn.Parameter]]:
    """The parameters layer by layer, so that fused ones are taken apart a layer at a time."""
    path, layers = skeleton.decoder_layers(model)
    parts: list[dict[str, nn.Parameter]] = [{} for _ in range(len(layers) + 1)]
    for name, parameter in model.named_parameters():
        inside = name.startswith(f"{path}.")
        parts[int(name[len(path) + 1 :].split(".")[0]) if inside else -1][name] = parameter
    return parts


def _show(census: Census, model: Any, step: int, part: Mapping[str, nn.Parameter]) -> None:
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in part.items()
    }
    values = {name: parameter.detach() for name, parameter in part.items()}
    stored = skeleton.as_stored(model, gradients)
    census.see(step, stored, skeleton.as_stored(model, values) if step == 1 else {})


def check_streamed(stream: StreamedModel, ids: Tensor, entries: Mapping[str, TensorEntry], step_bytes: int) -> Liveness:
    """The passes with a layer in memory at a time; at most `step_bytes` of gradients are kept for a step."""
    census = Census(entries, stream.model.base_model_prefix, stream.places.buffers_among(entries))
    chosen = _chosen_layers(stream, entries, step_bytes)
    stepping = chosen | {RESIDENT}
    kept: dict[str, Tensor] = {}
    squares = 0.0

    def seen(step: int, layer: int, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        nonlocal squares
        stream.places.remember_conversions()
        stored = skeleton.as_stored(stream.model, gradients)
        census.see(step, stored, skeleton.as_stored(stream.model, values) if step == 1 else {})
        if layer in stepping and step < STEPS - 1:
            kept.update(gradients)
            squares += sum(float(gradient.double().square().sum()) for gradient in gradients.values())

    names = {name for index in range(len(stream.layers)) if index not in chosen for name in stream.layer_names[index]}
    judged = frozenset(name for name in entries if name not in names)
    for step in range(STEPS):
        if step == STEPS - 1 and census.all_alive(judged):
            break
        with stream.gradients(partial(seen, step)):
            torch.autograd.backward(_loss(stream.model, ids[:, :STREAMED_TOKENS]))
        if squares > 0:
            stream.adjust({name: gradient * (-STEP / squares**0.5) for name, gradient in kept.items()})
        kept.clear()
        squares = 0.0
    if len(chosen) == len(stream.layers):
        return census.verdict()
    listed = ", ".join(map(str, sorted(chosen)))
    return census.verdict(
        judged,
        f"The gradients of all {len(stream.layers)} layers do not fit into memory; only layers {listed} took the steps "
        "and are judged.",
    )


def _chosen_layers(stream: StreamedModel, entries: Mapping[str, TensorEntry], step_bytes: int) -> frozenset[int]:
    """The layers that take the step: the first that is new, the first, the last, and others as far as room allows."""
    count = len(stream.layers)
    largest = max(sum(stream.tensors.headers[name].elements for name in names) for names in stream.layer_names.values())
    room = max(int(step_bytes // max(2 * largest * stream.dtype.itemsize, 1)), 1)
    added = [i for i in range(count) if any(entries[n].new for n in stream.layer_names[i] if n in entries)]
    order = [*added[:1], 0, count - 1, *added[-1:], count // 2, *added, *range(count)]
    return frozenset(list(dict.fromkeys(order))[:room])
