"""What a measurement on the real device is asked for, and what it answers.

Owns the messages between `engine.rehearsal.measure` and whoever starts it. Must not know torch. Sizes are bytes.
"""

from __future__ import annotations

import msgspec

from engine.estimate.rehearsal import Rehearsal


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """A question: which sequence still runs when the allocator may hold no more than this?"""

    cap_gib: float
    guess: int
    """Where the search begins, in tokens."""


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One configuration to be run with random weights."""

    rehearsal: Rehearsal
    device: str = "auto"
    """ "auto", "cuda" or "cpu"."""
    steps: int = 10
    """Timed steps at most."""
    seconds: float = 1.5
    """No further timed step is begun after so long, but three are always made; no further edge is looked for either."""
    cap_gib: float = 0.0
    """The most the allocator may hold; 0 for all there is."""
    paged: bool = False
    """8-bit optimizer states in unified memory."""
    expandable: bool = True
    """Expandable segments, as the worker has them."""
    alone: bool = True
    """Nothing else uses the card, so its total says what this process holds where NVML does not list processes."""
    lock: str = ""
    """A file; whoever holds it has the device to itself. Libraries are imported before it is asked for."""
    edges: tuple[Edge, ...] = ()


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence tried under a cap."""

    sequence: int
    ran: bool
    allocated: int
    reserved: int


class EdgeFound(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an Edge."""

    cap_gib: float
    longest: int
    """The longest sequence that ran; 0 for none."""
    shortest_failed: int
    """The shortest that did not; 0 when none failed."""
    attempts: tuple[Attempt, ...] = ()


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What was read; 0 where there is nothing to read on this device."""

    device: str
    """ "cuda" or "cpu"."""
    card: str
    capability: str = ""
    driver: str = ""
    versions: dict[str, str] = {}
    total: int = 0
    """Memory of the card, or of the machine."""
    parameters: int = 0
    trained: int = 0
    allocated: int = 0
    """Peak of a whole step after the warm-up."""
    requested: int = 0
    """The same before rounding to 512 bytes."""
    reserved: int = 0
    inactive_split: int = 0
    """Peak of free pieces inside segments that are in use."""
    resting: int = 0
    """Allocated between two steps: weights, adapter, optimizer states, workspaces."""
    workspace: int = 0
    """What cuBLAS keeps after products in both directions."""
    process: int = 0
    """This process on the card; on a CPU its peak resident memory."""
    process_source: str = ""
    """ "nvml process", "card total", "resident", or "" when it could not be read."""
    context: int = 0
    """Process beyond reserved; on a CPU resident memory before the model."""
    retries: int = 0
    """How often the allocator had to give memory back before it found some."""
    step_seconds: float = 0.0
    """Median of the timed steps."""
    fastest_seconds: float = 0.0
    slowest_seconds: float = 0.0
    timed_steps: int = 0
    tokens_per_second: float = 0.0
    build_seconds: float = 0.0
    loss: float = 0.0
    out_of_memory: str = ""
    """Where it ended for want of memory: "load" or "step"."""
    asked: int = 0
    """The request that could not be met."""
    edges: tuple[EdgeFound, ...] = ()
