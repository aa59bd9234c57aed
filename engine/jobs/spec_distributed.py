"""The section of a spec about several processes: cards of one machine, or several machines.

Owns its fields, limits and one-line meanings. Must not know torch or launchers (`engine.distributed`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from engine.jobs.spec_section import Section


class DistributedSection(Section, frozen=True, kw_only=True):
    """Training on several cards; the steps and their losses are those of one process."""

    processes: Annotated[
        int, Meta(ge=1, le=1024, description="Processes on each machine, one per card; 1 is a job as ever.")
    ] = 1
    nodes: Annotated[int, Meta(ge=1, le=1024, description="Machines.")] = 1
    strategy: Annotated[
        str,
        Meta(
            pattern="^(auto|ddp|fsdp2)$",
            description="ddp keeps the model on every card, fsdp2 a share of it; auto takes ddp where it fits.",
        ),
    ] = "auto"
    cpu_offload: Annotated[
        bool, Meta(description="fsdp2: shards wait in host RAM; slow, for models beyond all cards.")
    ] = False
    restarts: Annotated[int, Meta(ge=0, le=1000, description="How often a lost or hung process restarts all.")] = 3
    hang_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="A process counts as hung that is silent for so long, or 10 times while it loads or saves; or "
            "does not get on in a step for so long and 4 times its slowest part, or 120 times in any other phase.",
        ),
    ] = 30.0

    @property
    def world(self) -> int:
        """Processes of the whole job."""
        return self.processes * self.nodes
