"""Checkpoints that all ranks write together, each its shards, and that any number of ranks can read.

Owns `sharded/` inside a checkpoint (torch.distributed.checkpoint): what learns, under the model's names, and the state
of an AdamW for it. Must not know folders beyond that, nor the loop. Written into the staging folder of a checkpoint;
the manifest's SHA-256 vouches for every file, the `.metadata` among them, which torch pickles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.optim import Optimizer

from engine.distributed.company import Company

FOLDER = "sharded"
METADATA = f"{FOLDER}/.metadata"
_PARAMETERS, _STATE = "parameters", "state"


def save(company: Company, folder: Path, named: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Every rank calls this. Raises torch's CheckpointException where any of them could not write."""
    state = {name: dict(optimizer.state[parameter]) for name, parameter in named.items()}
    save_shards(
        {_PARAMETERS: {name: parameter.detach() for name, parameter in named.items()}, _STATE: state},
        checkpoint_id=folder / FOLDER,
        process_group=company.control,
    )


@torch.no_grad()
def load(company: Company, folder: Path, named: Mapping[str, nn.Parameter], optimizer: Optimizer | None) -> None:
    """Every rank calls this; with `optimizer` its state too."""
    wanted: dict[str, Any] = {_PARAMETERS: {name: parameter.detach() for name, parameter in named.items()}}
    if optimizer is not None:
        wanted[_STATE] = {name: _fresh(parameter) for name, parameter in named.items()}
    load_shards(wanted, checkpoint_id=folder / FOLDER, process_group=company.control)
    for name, parameter in named.items():
        if optimizer is not None:
            optimizer.state[parameter] = wanted[_STATE][name]


def _fresh(parameter: nn.Parameter) -> dict[str, Tensor]:
    """AdamW's state before the first step: what is read from the disk takes its place, shard by shard."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def restore_rates(optimizer: Optimizer, rates: Iterable[float]) -> None:
    """The groups' rates as the schedule left them."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
