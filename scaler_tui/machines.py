"""The machine a command plans for: this one, a what-if, a rented one. Asks the engine; computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.advise.answers import Answers
    from engine.hardware.machine import Machine


def machine_for(gpu: str, answers: Answers | None = None) -> Machine:
    """This machine; or the card `gpu` names; or the one the answers about hardware name, with its rent when rented.

    Raises EngineError for a card that nobody knows, also where the answers name one and another machine is meant.
    """
    from engine.hardware.detect import detect

    machine = detect()
    if answers is not None:
        simulated(answers.text("card"), machine, rented=False)  # an answer that is not used is checked all the same
    if gpu:
        return simulated(gpu, machine, rented=answers is not None and answers.rented)
    return machine if answers is None else planned(answers, machine)


def free_bytes_for(approach: str, machine: Machine) -> int:
    """Free memory of the device (each of equal ones, where the approach is sharded) that an approach trains on."""
    from engine.advise.approaches import find_approach
    from engine.advise.devices import equal_devices, single_device

    return (equal_devices if find_approach(approach).shards else single_device)(machine).free_bytes


def planned(answers: Answers, detected: Machine) -> Machine:
    """The machine that the answers mean. Raises EngineError for a card that nobody knows."""
    from engine.advise.planned_machine import planned_machine

    return planned_machine(answers, detected)


def simulated(card: str, detected: Machine, *, rented: bool) -> Machine:
    """Another card in this machine. Raises EngineError for one that nobody knows."""
    from engine.advise.planned_machine import simulated_machine

    return simulated_machine(card, detected, rented=rented)
