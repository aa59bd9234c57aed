"""The rotary embedding of before, put back for a moment: what short sequences of mixed-window training are rotated by,
and what "before" is measured with.

Owns swapping whole rotary modules. Must not know training. A module of the same class is built from the config of
before and stands in the extended one's place; no attribute of either is touched, so coming back changes no bit.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from engine.context.certificate import read_certificate
from engine.context.planner import read_rotaries
from engine.context.scaling import Rotary
from engine.errors import EngineError, ExitCode
from engine.rotary.modules import rotary_modules
from engine.train.window import Window

Rotation = Callable[[], contextlib.AbstractContextManager[Any]]
"""Opens a block in which the model rotates as before."""


def original_rotation(model: nn.Module, window: Window) -> Rotation:
    """The original embeddings of `model`, built now, put in place in every block. Raises EngineError `train.window`
    where nothing says what they were."""
    config = _config_before(model, window)
    pairs: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
    for found in rotary_modules(model):
        parent_name, _, own = found.name.rpartition(".")
        device = next(found.module.buffers()).device
        with torch.device("cpu"):
            before = type(found.module)(_like(found.module.config, config)).to(device)
        pairs.append((model.get_submodule(parent_name), own, found.module, before))

    @contextlib.contextmanager
    def swapped() -> Iterator[None]:
        for parent, own, _, before in pairs:
            setattr(parent, own, before)
        try:
            yield
        finally:
            for parent, own, now, _ in pairs:
                setattr(parent, own, now)

    return swapped


def _like(present: Any, whole: Any) -> Any:
    """The part of a config that rotary modules are built from: the text model's."""
    if type(whole) is type(present):
        return whole
    return whole.get_text_config()


def _config_before(model: Any, window: Window) -> Any:
    from transformers import AutoConfig

    if window.plan is not None:
        return AutoConfig.from_pretrained(window.source, local_files_only=True, trust_remote_code=False)
    config: Any = copy.deepcopy(rotary_modules(model)[0].module.config)
    settings = _settings_before(window)
    config.rope_parameters = settings.get("", settings)
    config.max_position_embeddings = window.original
    return config


def _settings_before(window: Window) -> dict[str, dict[str, Any]]:
    """`rope_parameters` by layer type: from the certificate of the extension, or from a config whose scaling leaves the
    base alone."""
    certificate = read_certificate(window.source)
    if certificate is not None:
        rotaries = [planned.rotary for planned in certificate.plan.rotaries]
        return {one.layer_type: _settings(one, one.present_kind, dict(one.present_settings)) for one in rotaries}
    found = read_rotaries(window.ref.config)
    if any(rotary.present is not None for rotary in found):
        return {one.layer_type: _settings(one, "default", {}) for one in found}
    raise EngineError(
        "train.window",
        "Nothing says which positions this model had before its window was extended.",
        cause="Its folder has no extension.json, and its config names no scaling.",
        next_step='Extend it in this job (context.length), or set context.window = "pose" or "full".',
        exit_code=ExitCode.RUN_FAILED,
    )


def _settings(rotary: Rotary, kind: str, more: dict[str, Any]) -> dict[str, Any]:
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in more.items()}
    return {"rope_type": kind, "rope_theta": rotary.theta, **lists, **dict(rotary.carried)}
