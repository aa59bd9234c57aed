"""The section of a spec about ending early and about what a run does when its loss leaps.

Owns its fields, limits and one-line meanings. Must not know the loop (`engine.train.loop`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from engine.jobs.spec_section import Section


class StopSection(Section, frozen=True, kw_only=True):
    """When to end before the last step; 0 switches a rule off."""

    loss: Annotated[
        float, Meta(ge=0.0, description="End when the held-out loss is at or below this, in nats per token.")
    ] = 0.0
    plateau_evaluations: Annotated[
        int, Meta(ge=0, description="End when so many evaluations brought less than plateau_gain together.")
    ] = 0
    plateau_gain: Annotated[
        float, Meta(ge=0.0, lt=1.0, description="The least relative fall of the held-out loss that counts.")
    ] = 0.002
    hours: Annotated[
        float, Meta(ge=0.0, description="End after so many hours with a worker alive, over all attempts.")
    ] = 0.0
    usd: Annotated[
        float, Meta(ge=0.0, description="End when so much is spent; of a stage, in it. [cost] budget_usd is the job's.")
    ] = 0.0
    spike_factor: Annotated[
        float,
        Meta(
            ge=0.0,
            description="A loss above this many times the median of the last spike_window steps is a spike: back to "
            "the last good checkpoint, past the data that caused it, at half the learning rate. 0 looks only for "
            "losses that are no numbers.",
        ),
    ] = 0.0
    spike_window: Annotated[int, Meta(ge=4, le=10_000, description="Steps that the median is taken over.")] = 32
    spike_retries: Annotated[int, Meta(ge=0, le=100, description="So many times; the next spike ends the run.")] = 3
