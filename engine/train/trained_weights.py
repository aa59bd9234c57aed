"""What a checkpoint of whole-model training holds beside the Trainer's state: every parameter that learns, as it is.

Owns `trained-00001.safetensors` and its siblings. Must not know tasks or optimizers. Frozen parameters are in the
model's own files already, so a checkpoint of new blocks is as small as the new blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.errors import EngineError, ExitCode

FILE_BYTES = 1 << 30
"""Tensors are gathered into files of about this size: writing one holds it in memory twice."""


def save_trained(folder: Path, named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Write the parameters, a file per GiB."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(_groups(named), 1):
        save_file(group, folder / f"trained-{number:05}.safetensors")


def _groups(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[dict[str, Tensor]]:
    group: dict[str, Tensor] = {}
    size_bytes = 0
    for name, parameter in named:
        group[name] = parameter.detach().cpu().contiguous()
        size_bytes += group[name].nbytes
        if size_bytes >= FILE_BYTES:
            yield group
            group, size_bytes = {}, 0
    if group:
        yield group


@torch.no_grad()
def load_trained(folder: Path, named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Put them back. Raises EngineError `resume.other_parameters` when the checkpoint holds others."""
    wanted = dict(named)
    for path in sorted(folder.glob("trained-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                parameter, value = wanted.pop(name, None), file.get_tensor(name)
                if parameter is None or parameter.shape != value.shape:
                    raise _other(name)
                parameter.copy_(value)
    if wanted:
        raise _other(next(iter(wanted)))


def _other(name: str) -> EngineError:
    return EngineError(
        "resume.other_parameters",
        f"The checkpoint and the model do not agree about {name}.",
        cause="The grown model is not the one the checkpoint was made with.",
        next_step="Start a new run from its spec.",
        exit_code=ExitCode.RUN_FAILED,
    )
