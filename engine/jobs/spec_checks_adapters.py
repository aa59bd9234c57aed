"""What [mix] and [[adapters]] must say together with themselves and the rest of a job.

Owns these checks; each names the key and the way out. Must not know adapters: whether they are there and belong to the
base is looked at before a start (`scaler_tui.preflight`) and by the worker.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.jobs.spec_conflict import conflict
from engine.jobs.spec_mix import MixMethod, MixSection
from engine.jobs.spec_section import Task

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

_PLAIN = MixSection()
_DROPPING = (MixMethod.TIES, MixMethod.DARE, MixMethod.DARE_TIES, MixMethod.MAGNITUDE)
_ELECTING = (MixMethod.TIES, MixMethod.DARE_TIES)
_CANCELS = 1e-9


def check_adapters(spec: JobSpec) -> None:
    """Of the whole job. Raises EngineError `spec.conflict`."""
    if spec.task is not Task.MIX:
        _check_nothing_to_mix(spec)
        return
    if not spec.adapters:
        raise conflict(
            'task = "mix" makes one adapter of several, but there are no [[adapters]].',
            "Add [[adapters]] with path, one for each adapter.",
            key="adapters",
        )
    _check_rest(spec)
    _check_names(spec)
    _check_method(spec)
    _check_weights(spec)
    if spec.mix.sweep and not spec.data.heldout and not spec.data.heldout_fraction:
        raise conflict(
            "mix.sweep measures weights on held-out rows, but there are none.",
            "Name some in data.heldout, or set data.heldout_fraction.",
            key="mix.sweep",
        )


def _check_nothing_to_mix(spec: JobSpec) -> None:
    if not spec.adapters and spec.mix == _PLAIN:
        return
    changed = next(
        (name for name in MixSection.__struct_fields__ if getattr(spec.mix, name) != getattr(_PLAIN, name)), ""
    )
    key = "adapters[1].path" if spec.adapters else f"mix.{changed}"
    named = "[[adapters]] names what is mixed" if spec.adapters else f"{key} says how adapters are mixed"
    raise conflict(
        f'{named}, but task = "{spec.task.value}" mixes none.',
        'Set task = "mix", or leave [mix] and [[adapters]] out.',
        key=key,
    )


def _check_rest(spec: JobSpec) -> None:
    """What a job that mixes cannot do as well."""
    if spec.quantization.kind not in ("auto", "none"):
        raise conflict(
            f'task = "mix" computes on the weights as they are, but quantization.kind is "{spec.quantization.kind}".',
            'Set quantization.kind = "none"; adapters that were trained on a quantised base fit the 16-bit one.',
            key="quantization.kind",
        )
    if spec.stages:
        raise conflict(
            'task = "mix" has no stages.',
            "Leave [[stages]] out; mix first, then train on what comes out.",
            key="stages[1]",
        )
    if spec.expansion.grows:
        raise conflict(
            'task = "mix" leaves the model as it is, but [expansion] asks for growth.',
            'Leave [expansion] out, or grow in a job of its own (task = "expand").',
            key="expansion.to" if spec.expansion.to else "expansion",
        )
    for number, limit in enumerate(spec.retention, 1):
        if limit.action == "stop":
            raise conflict(
                f'retention[{number}].action = "stop" goes back to an earlier checkpoint, and a mix has none.',
                f'Set retention[{number}].action = "hold": the mix is not promoted then.',
                key=f"retention[{number}].action",
            )


def _check_names(spec: JobSpec) -> None:
    seen: dict[str, int] = {}
    for number, adapter in enumerate(spec.adapters, 1):
        for word, field in ((adapter.path.rstrip("/"), "path"), (adapter.name, "name")):
            if not word:
                continue
            first = seen.setdefault(f"{field} {word}", number)
            if first != number:
                raise conflict(
                    f'adapters[{number}].{field} = "{word}" is that of adapters[{first}] as well.',
                    "Name every adapter once; its weight says how much of it there is.",
                    key=f"adapters[{number}].{field}",
                )


def _check_method(spec: JobSpec) -> None:
    mix = spec.mix
    if mix.density != _PLAIN.density and mix.method not in _DROPPING:
        raise conflict(
            f'mix.density is the share that {", ".join(_DROPPING)} keep, but mix.method is "{mix.method.value}".',
            'Set mix.method = "ties", or leave mix.density out.',
            key="mix.density",
        )
    if mix.signs != _PLAIN.signs and mix.method not in _ELECTING:
        raise conflict(
            f'mix.signs is how {" and ".join(_ELECTING)} elect signs, but mix.method is "{mix.method.value}".',
            'Set mix.method = "ties", or leave mix.signs out.',
            key="mix.signs",
        )
    if mix.method is MixMethod.SVD and not mix.rank:
        raise conflict(
            'mix.method = "svd" cuts the sum to a rank, and mix.rank says none.',
            'Set mix.rank, for example 16, or mix.method = "exact".',
            key="mix.rank",
        )


def _check_weights(spec: JobSpec) -> None:
    weights = [adapter.weight for adapter in spec.adapters]
    if spec.mix.sweep:
        return
    if not any(weights):
        raise conflict(
            "Every weight in [[adapters]] is 0: the mix would be the base itself.",
            "Give at least one adapter another weight, or set mix.sweep.",
            key="adapters[1].weight",
        )
    if spec.mix.method is MixMethod.LINEAR and abs(math.fsum(weights)) <= _CANCELS * max(map(abs, weights)):
        raise conflict(
            'mix.method = "linear" divides the weights by their sum, which is 0.',
            'Set mix.method = "exact", which takes weights as they are.',
            key="adapters[1].weight",
        )
