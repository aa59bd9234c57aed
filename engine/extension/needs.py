"""What measuring a model at a length takes of this machine: memory, and time per token.

Owns the workload of one forward pass and the refusal where it cannot fit. Must not know methods. Figures are the
estimator's for a pass without gradients, in chunks with a key-value cache, whose logits are needed at few positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.advise.devices import Devices, compute_bytes, free_words, single_device, workspace_bytes
from engine.errors import EngineError, ExitCode
from engine.estimate.cards import cpu_speed, gpu_speed
from engine.estimate.estimate import Range
from engine.estimate.memory import memory_bounds
from engine.estimate.roofline import step_seconds
from engine.estimate.state import key_value_cache_bytes
from engine.estimate.workload import DeviceKind, Loss, Packing4Bit, Purpose, Workload
from engine.hardware.machine import Machine
from engine.models.architecture import Architecture
from engine.units import format_bytes

_CHUNK_TOKENS = 8192
"""Of one call; `engine.evaluation` halves it where a card runs out of memory."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHARE_OF_LOGITS = 0.02
"""Of the positions: the closing tokens and the answers."""


@dataclass(frozen=True, slots=True)
class Needs:
    """One forward pass of one sequence."""

    length: int
    memory_bytes: Range
    seconds: Range
    devices: Devices

    @property
    def fits(self) -> bool:
        """Whether it can run at all here."""
        return self.devices.least(self.memory_bytes.low, self.memory_bytes.likely) <= self.devices.free_bytes


def needs_of(
    architecture: Architecture, machine: Machine, length: int, *, dtype: str = "auto", quantization: str = "none"
) -> Needs:
    """Memory and time of one pass over `length` tokens on `machine`, loaded as `dtype` and `quantization` say."""
    devices = single_device(machine)
    whole = Workload(
        architecture,
        sequence=length,
        loss=Loss.CHUNKED,
        trained_share=_SHARE_OF_LOGITS,
        packing=Packing4Bit.NONE if quantization == "none" else Packing4Bit.NF4_DOUBLE,
        compute_bytes=_BYTES.get(dtype) or compute_bytes(devices),
        purpose=Purpose.EVALUATE,
        device=DeviceKind.CPU if devices.on_cpu else DeviceKind.GPU,
        workspace_bytes=workspace_bytes(devices),
    )
    speed = cpu_speed(machine) if devices.on_cpu else gpu_speed(devices.gpus[0])
    chunk = replace(whole, sequence=min(length, _CHUNK_TOKENS))
    cache = key_value_cache_bytes(whole)
    low, likely, high = (bound + cache for bound in memory_bounds(chunk))
    slow, usual, fast = (step_seconds(whole, speed, case).total for case in ("low", "likely", "high"))
    return Needs(length, Range(low, likely, high), Range(fast, usual, slow), devices)


def require_room(needs: Needs, name: str, longest: int) -> None:
    """Raises EngineError `context.no_room` (exit code 4) when the target's length cannot even be read once here;
    `longest` is the longest that can, 0 when none."""
    if needs.fits:
        return
    shorter = f"Take --context {longest}, or " if longest else ""
    raise EngineError(
        "context.no_room",
        f"{needs.length:,} tokens of {name} do not fit this machine.",
        cause=f"Reading them once takes about {format_bytes(needs.memory_bytes.likely)}; {free_words(needs.devices)}.",
        next_step=f"{shorter}load it smaller with --quantization nf4 or --dtype bfloat16, or name a --method and add "
        "--no-report: the folder is then written unmeasured, which needs no memory.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def longest_that_fits(architecture: Architecture, machine: Machine, original: int, target: int) -> int:
    """The largest multiple of the window below `target` that fits; 0 when not even twice the window does."""
    fitting, beyond = 1, -(-target // original)
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if needs_of(architecture, machine, original * middle).fits:
            fitting = middle
        else:
            beyond = middle
    return original * fitting if fitting > 1 else 0
