"""`python -m engine.evaluation.mix_score --base DIR --adapter NAME=DIR ... --data FILE`: scores mixes of adapters.

Owns the process. The base and all adapters are loaded once. Without `--sweep` it answers wishes on standard input, one
`engine.jobs.mix_lines.AskedMix` a line, until that ends; a newer wish makes the one at work stale. With `--sweep N` it
searches weights and writes a report. Ends with an `EngineError`'s own code and one `{"error": {...}}` line when nothing
can be scored.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.jobs.mix_lines import AskedMix, Dropped, Refused, Scored, Scorer, SweepReport, Tried
from engine.jobs.spec_mix import MixMethod, MixSection, Signs

if TYPE_CHECKING:
    from engine.evaluation.mix_rows import ScoredRows
    from engine.evaluation.mixed_model import MixedModel


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    # numpy's threads spin while they wait; beside torch's own they cost more than they bring. Read at its import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    options = _parser().parse_args(arguments)
    return helper_process.run(lambda: _run(options), _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError(
        "evaluation.memory",
        "Scoring ran out of memory.",
        cause=cause,
        next_step="Close other programs, or load the base smaller: --dtype bfloat16.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """Base, adapters and rows in memory."""

    mixed: MixedModel
    names: tuple[str, ...]
    rows: ScoredRows
    identity: str
    seconds: float

    def score(self, asked: AskedMix, *, check: bool = False, stale: Callable[[], bool] = lambda: False) -> float | None:
        """Mean loss, nats per trained token; None where it became stale on the way."""
        from engine.evaluation.rows import score_rows

        def look(_done: int, _total: int) -> None:
            if stale():
                raise _Stale

        self.mixed.take(asked.weights, asked.mix, asked.seed)
        try:
            return score_rows(self.mixed.model, self.rows.check if check else self.rows.search, look).loss
        except _Stale:
            return None


class _Stale(Exception):
    """Nobody waits for it any more."""


@contextmanager
def opened(base: Path, adapters: list[tuple[str, Path]], data: str, dtype: str = "auto") -> Iterator[Ready]:
    """Raises EngineError `adapter.*`, `data.*`, `model.*`, `evaluation.*`."""
    from engine.adapters.base import check_base, read_base
    from engine.adapters.folder import read_adapter
    from engine.adapters.mix import packed_base
    from engine.adapters.origin import packed_as
    from engine.evaluation.loading import loaded
    from engine.evaluation.mix_rows import chosen_rows, read_rows, token_budget
    from engine.evaluation.mixed_model import MixedModel

    began = time.monotonic()
    folders = [read_adapter(folder) for _, folder in adapters]
    if method := packed_as(base):
        raise packed_base(base, method, needed=True)
    for folder in folders:
        check_base(folder, base)
    with loaded(base, dtype) as model:
        parameters = sum(parameter.numel() for parameter in model.model.parameters())
        rows = chosen_rows(
            read_rows(data, base, model.context_length), data, token_budget(parameters, model.device)
        )  # fmt: skip
        mixed = MixedModel(model, folders, read_base(base))
        names = tuple(name for name, _ in adapters)
        identity = _identity(base, [folder for _, folder in adapters], str(model.compute_dtype))
        yield Ready(mixed, names, rows, identity, time.monotonic() - began)


def _identity(base: Path, adapters: list[Path], dtype: str) -> str:
    """Paths, sizes and times of all weights and of what says how they are used: scale and kind stand in a config."""
    told = [dtype]
    for folder in (base, *adapters):
        told.append(str(folder.resolve()))
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
        told += [f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files]
    return hashlib.sha256("|".join(told).encode()).hexdigest()[:16]


# ── wishes ────────────────────────────────────────────────────────────────────────────────────────────────────────
class Inbox:
    """Wishes as they come; `newer` says whether the one in hand is stale."""

    def __init__(self) -> None:
        self._wishes: queue.Queue[AskedMix | None] = queue.Queue()
        threading.Thread(target=self._read, name="wishes", daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            try:
                self._wishes.put(msgspec.json.decode(line, type=AskedMix))
            except msgspec.MsgspecError:
                continue
        self._wishes.put(None)

    @property
    def newer(self) -> bool:
        """Whether something waits."""
        return not self._wishes.empty()

    def next(self) -> AskedMix | None:
        """The next one; None when there will be no more."""
        return self._wishes.get()


def serve(ready: Ready, inbox: Inbox, say: Callable[[Any], None]) -> None:
    """Answer wishes until there are no more; every wish gets one line. Stale ones are dropped."""
    while (wish := inbox.next()) is not None:
        if inbox.newer:
            say(Dropped(id=wish.id))
            continue
        began = time.monotonic()
        try:
            loss = ready.score(wish, stale=lambda: inbox.newer)
        except EngineError as error:
            say(Refused(id=wish.id, what=error.what, next_step=error.next_step))
            continue
        if loss is None:
            say(Dropped(id=wish.id))
        else:
            say(Scored(id=wish.id, weights=wish.weights, loss=loss, seconds=time.monotonic() - began))


def sweep(
    ready: Ready, mix: MixSection, tries: int, seed: int, log: Path | None, say: Callable[[Tried], None]
) -> SweepReport:
    """Search weights. Raises EngineError."""
    from engine.evaluation.mix_sweep import Sweep, run_sweep

    def score(weights: tuple[float, ...], check: bool) -> float:
        loss = ready.score(AskedMix(id=0, weights=weights, mix=mix, seed=seed), check=check)
        assert loss is not None
        return loss

    method = f"{mix.method.value} {mix.density:g} {mix.signs.value} {mix.rank}"
    return run_sweep(
        Sweep(ready.names, mix.method.value, ready.rows, score, tries, seed, f"{ready.identity} {method}", log, say)
    )


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────────
def _run(options: argparse.Namespace) -> None:
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    out = helper_process.LineOut()

    def say(line: Any) -> None:
        out.write(msgspec.json.encode(line) + b"\n")

    adapters = [_named(text) for text in options.adapter]
    with opened(options.base, adapters, options.data, options.dtype) as ready:
        if not options.sweep:
            say(_scorer(ready))
            serve(ready, Inbox(), say)
            return
        mix = MixSection(
            method=MixMethod(options.method), density=options.density, signs=Signs(options.signs), rank=options.rank
        )
        report = sweep(ready, mix, options.sweep, options.seed, options.log, say)
        helper_process.write_json(options.out, report)


def _scorer(ready: Ready) -> Scorer:
    rows = ready.rows.search
    return Scorer(
        adapters=ready.names,
        rows=len(rows),
        tokens=sum(row.trained_tokens for row in rows),
        data=ready.rows.data,
        device=ready.mixed.model.device,
        seconds=ready.seconds,
    )


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals else (Path(text).name, Path(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.evaluation.mix_score", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="a model folder")
    parser.add_argument("--adapter", action="append", default=[], required=True, metavar="NAME=DIR")
    parser.add_argument("--data", default="demo", help="rows to score on")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--sweep", type=int, default=0, metavar="N", help="measure N sets of weights instead")
    parser.add_argument("--method", choices=[method.value for method in MixMethod], default="exact")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--signs", choices=[signs.value for signs in Signs], default="total")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--log", type=Path, help="finished figures, to go on from after a kill")
    parser.add_argument("--out", type=Path, help="where a sweep's report is written, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
