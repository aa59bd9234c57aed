"""The optimizer's moments between two stages: written under the names of the model's files, grown with them, read back.

Owns the folder `moments/`: `exp_avg/` and `exp_avg_sq/` are laid out like a model's weights, in float32, and
`steps.json` holds the number of steps behind each tensor. Must not know the loop.

A parameter whose entries have stepped a different number of times (old ones waited for a while) is carried with the
smaller count, which errs on the side of short steps; one whose old entries never stepped begins anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor

from engine.expansion.certificate import Certificate
from engine.expansion.layouts.registry import layout_for
from engine.expansion.plan_io import plan_from_tree
from engine.expansion.recipes import build_recipes
from engine.jobs.staged import staged
from engine.models.folder import check_folder
from engine.models.headers import read_headers
from engine.proof.skeleton import Places, empty_model, release
from engine.surgery.moments import POWERS, grow_moment_files
from engine.train.grown_model import GrownModel
from engine.train.grown_optimizer import NEW_STEP, STEP, GrownAdamW
from engine.train.model_output import StoredValues, write_weights
from engine.train.parts import Kind

KINDS = ("exp_avg", "exp_avg_sq")
STEPS = "steps.json"
_SHARD_BYTES = 4_000_000_000


def write_moments(target: Path, source: Path, grown: GrownModel, optimizer: GrownAdamW) -> None:
    """Write the moments of every parameter that has stepped. `source` is the folder the stage trained from."""
    states = {
        name: optimizer.state[parameter]
        for name, parameter in grown.ever_learning()
        if steps_of(optimizer.state.get(parameter, {})) > 0
    }
    tensors = read_headers(source).tensors
    with staged(target) as staging:
        steps: dict[str, int] = {}
        for kind in KINDS:
            values = StoredValues(grown.model, {name: state[kind] for name, state in states.items()}, tensors)
            held = [tensor for tensor in tensors if tensor.name in values]
            values.dtypes = dict.fromkeys(values, "F32")
            steps = {tensor.name: steps_of(states[values.parameter_of(tensor.name)]) for tensor in held}
            (staging / kind).mkdir()
            if held:
                write_weights(staging / kind, held, values, _SHARD_BYTES)
        (staging / STEPS).write_bytes(msgspec.json.encode(steps))


def steps_of(state: Any) -> int:
    """Steps behind a state, of old and new entries the fewer."""
    if not state:
        return 0
    counts = [int(state[key]) for key in (STEP, NEW_STEP) if key in state]
    return min(counts)


def grow_moments(before: Path, target: Path, source: Path, certificate: Certificate) -> None:
    """The moments in `before`, of the model in `source`, for the model that the certificate's plan made of it."""
    plan = plan_from_tree(certificate.plan)
    headers = read_headers(source)
    recipes = build_recipes(headers, layout_for(check_folder(source), source.name), plan)
    steps = msgspec.json.decode((before / STEPS).read_bytes(), type=dict[str, int])
    with staged(target) as staging:
        written: set[str] = set()
        for kind in KINDS:
            (staging / kind).mkdir()
            if any((before / kind).iterdir()):
                written = set(grow_moment_files(before / kind, staging / kind, recipes, POWERS[kind]))
        grown = {one.name: steps[one.sources[0].name] for one in recipes if one.name in written}
        (staging / STEPS).write_bytes(msgspec.json.encode(grown))


def read_moments(folder: Path, grown: GrownModel, model_folder: Path) -> dict[str, dict[str, Tensor]]:
    """Optimizer states by parameter, for parameters of which every stored part has stepped. Old and new entries start
    with the same count where all of a parameter is old; new entries start at 0."""
    steps = msgspec.json.decode((folder / STEPS).read_bytes(), type=dict[str, int])
    skeleton = empty_model(model_folder, torch.float32)
    places = Places(skeleton)
    stored: dict[str, list[str]] = defaultdict(list)
    for tensor in read_headers(model_folder).tensors:
        stored[places.parameter_of(tensor.name) or ""].append(tensor.name)
    if not steps:
        return {}
    files = {kind: {one.name: one.file for one in read_headers(folder / kind).tensors} for kind in KINDS}
    states: dict[str, dict[str, Tensor]] = {}
    for name, _ in grown.ever_learning():
        names = [one for one in stored.get(name, []) if one in files[KINDS[0]]]
        if not names or len(names) != len(stored[name]):
            continue
        count = torch.tensor(float(min(steps.get(one, 0) for one in names)))
        state = {kind: _in_memory(skeleton, places, name, names, files[kind]) for kind in KINDS}
        mixed = grown.parts[name].kind is Kind.MIXED
        states[name] = {**state, STEP: count, **({NEW_STEP: torch.zeros(())} if mixed else {})}
    return states


def _in_memory(skeleton: Any, places: Places, name: str, stored: list[str], files: Mapping[str, Path]) -> Tensor:
    """The stored parts of one parameter, put together as loading a model does."""
    tensors: dict[str, Tensor] = {}
    for one in stored:
        with safe_open(files[one], framework="pt") as file:
            tensors[one] = file.get_tensor(one)
    if stored == [name] and tensors[name].shape == skeleton.get_parameter(name).shape:
        return tensors[name]
    places.load(tensors, torch.float32)
    value: Tensor = skeleton.get_parameter(name).detach().clone()
    release(skeleton.get_submodule(name.rpartition(".")[0]))
    return value
