"""The ranks of a job together: how they meet, and the few words that pass between leader and followers.

Owns the process groups and the words. Must not know training. Words go through a group of their own on gloo, so that
waiting for one costs no card anything, and there is no time limit on them: who hangs is found out by signs of life.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from engine.distributed.life import Life
from engine.distributed.place import Place
from engine.errors import EngineError, ExitCode
from engine.jobs import layout, ranks

NO_LIMIT = timedelta(days=30)
MEETING = "meeting"
_SEEN_SECONDS = 20.0
"""How long a file may take to be seen on another machine: network file systems remember what was not there."""
_PEER_TEXTS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "TCPStore")

T = TypeVar("T")


Answers = dict["Word", Callable[[], object]]
"""What a follower does for the leader."""


class Word(IntEnum):
    """What the leader asks of the followers while it works alone."""

    GO = 0
    """On with what all do."""
    FORWARD = 1
    """A forward pass, so that layers can be gathered."""
    GATHER = 2
    """All that learns, whole."""


@dataclass(slots=True)
class Company:
    """This rank among the others. Mutable: `leading` says who works."""

    place: Place
    life: Life
    backend: str
    control: Any
    """The group for words."""
    strategy: str
    """ "ddp" or "fsdp2"."""
    hosts: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    leading: bool = field(default=True)
    """The leader works alone, and followers wait for its words."""

    @property
    def leads(self) -> bool:
        return self.place.leads

    @property
    def world(self) -> int:
        return self.place.world

    @property
    def shards(self) -> bool:
        """Whether each rank holds only a part of the model."""
        return self.strategy == "fsdp2"

    def tell(self, value: T) -> T:
        """The leader's value, on every rank; a collective."""
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        told: T = values[0]
        return told

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks, in place; a collective."""
        dist.all_reduce(value)
        return value

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader goes through the body alone, the others after it: what it made is there then."""
        if not self.leads:
            self._agree()
        yield
        if self.leads:
            self._agree()

    def _agree(self) -> None:
        dist.barrier(group=self.control)

    # ── the leader alone ──────────────────────────────────────────────────────────────────────────────────────────
    def ask(self, word: Word) -> None:
        """Leader: have the followers do something, while it works alone."""
        if self.leads and self.leading:
            dist.broadcast(torch.tensor([int(word)]), src=0, group=self.control)

    def go(self) -> None:
        """Leader: what comes next is done by all."""
        self.ask(Word.GO)
        self.leading = False

    def alone(self) -> None:
        """Leader: what comes next is done by it alone."""
        self.leading = True

    def follow(self, answers: Answers) -> None:
        """Follower: do what the leader asks until it goes on together with all."""
        self.life.doing("waiting for rank 0", waits=True)
        while True:
            word = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(word, src=0, group=self.control)
            if Word(int(word)) is Word.GO:
                self.life.doing("going on with all")
                return
            answers[Word(int(word))]()


def meet(place: Place, life: Life, run_dir: Path, *, device: str, device_name: str, strategy: str) -> Company:
    """Wait for all ranks. Raises EngineError `ranks.other_folder` when they do not see the same run directory."""
    life.doing("waiting for the others", slow=True)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, rank=place.rank, world_size=place.world, timeout=NO_LIMIT)
    control = dist.new_group(backend="gloo", timeout=NO_LIMIT)
    company = Company(place, life, backend, control, strategy)
    seen = _gathered(company, (_sees_folder(company, run_dir), ranks.own_sign(0, 1).host, device_name))
    company.hosts = tuple(host for _, host, _ in seen)
    company.devices = tuple(name for _, _, name in seen)
    blind = sorted({host for sees, host, _ in seen if not sees})
    if blind:
        raise EngineError(
            "ranks.other_folder",
            f"{run_dir} is not the same folder on {', '.join(blind)} as on {company.hosts[0]}.",
            cause="Checkpoints and signs of life of all machines are files in the run directory.",
            next_step="Set SCALER_WIZARD_HOME to a folder on a file system that all machines share.",
            exit_code=ExitCode.RUN_FAILED,
        )
    return company


def _gathered(company: Company, value: Any) -> Sequence[Any]:
    values: list[Any] = [None] * company.world
    dist.all_gather_object(values, value, group=company.control)
    return values


def _sees_folder(company: Company, run_dir: Path) -> bool:
    """Whether this rank reads what the leader has written."""
    path = run_dir / ranks.FOLDER / MEETING
    word = secrets.token_hex(8)
    if company.leads:
        layout.write_atomic(path, word.encode())
    word = company.tell(word)
    deadline = time.monotonic() + _SEEN_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == word:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def is_peer_lost(error: BaseException) -> bool:
    """Does this say that another rank, or the way to it, is gone?"""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _PEER_TEXTS)
