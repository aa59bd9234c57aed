"""One job held against one machine: memory, RAM, disk, hours, money and the verdict, from one plan and one load.

Owns the joining. The matrix, the review, `estimate` and the check before a start all read this, so that they cannot
disagree. Must not know how a plan was made nor how any of it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.advise.amounts import Load, cost_with, device_of, disk_with, hours_with
from engine.advise.fit import Plan, estimate_memory_on, missing_library
from engine.advise.verdict import Judgement, judge
from engine.estimate.estimate import Estimate, Verdict
from engine.estimate.memory import limiting_words
from engine.estimate.storage import estimate_host_ram
from engine.hardware.machine import Machine


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What a job needs, and whether the machine has it."""

    plan: Plan
    machine: Machine
    load: Load
    memory: Estimate
    """Bytes on the device that trains; on a machine without a GPU that is RAM."""
    ram: Estimate
    disk: Estimate
    hours: Estimate
    cost_usd: Estimate
    judgement: Judgement
    limiting: str
    """The largest term of the memory in words."""

    @property
    def verdict(self) -> Verdict:
        """fits, tight or no."""
        return self.judgement.verdict


def appraise(plan: Plan, machine: Machine, load: Load, *, memory: Estimate | None = None) -> Appraisal:
    """The appraisal of `plan`; `memory` replaces the formula's figure with a better one (dry run, probe)."""
    device = device_of(plan, machine)
    work = plan.work
    if memory is None:
        memory = estimate_memory_on(work, plan.calibration)
    ram = memory if plan.devices.on_cpu else estimate_host_ram(work, processes=-(-work.cards // work.nodes))
    disk = disk_with(load, work)
    hours = hours_with(load, work, device, plan.calibration)
    judgement = judge(plan.devices, machine, memory, ram, disk, hours)
    if missing := missing_library(plan, machine):
        judgement = Judgement(Verdict.NO, missing, judgement.memory)
    return Appraisal(
        plan=plan,
        machine=machine,
        load=load,
        memory=memory,
        ram=ram,
        disk=disk,
        hours=hours,
        cost_usd=cost_with(load, hours, device),
        judgement=judgement,
        limiting=limiting_words(work),
    )
