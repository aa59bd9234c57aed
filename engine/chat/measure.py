"""`python -m engine.chat.measure --sides FILE --out report.json`: a base and adapters measured on one base in memory.

Owns the command line, exit code and order; loading is `engine.chat.sides`, measuring `engine.evaluation.folders`.
An `EngineError` is one {"error": {...}} line on standard output. Unlike the chat it may fetch the data of a benchmark.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.jobs.chat_lines import SideOrder

if TYPE_CHECKING:
    from engine.chat.sides import Sides
    from engine.evaluation.findings import Found, SuiteText
    from engine.evaluation.folders import FoldersRequest, Model
    from engine.evaluation.length_log import CellLog
    from engine.evaluation.progress import Report
    from engine.evaluation.tasks import Asked
    from engine.jobs.retention_report import AdaptersReport


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    options = _parser().parse_args(arguments)
    return helper_process.run(lambda: _run(options), _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError(
        "evaluation.memory",
        "The measurement ran out of memory.",
        cause=cause,
        next_step="Close other programs, or load the model smaller: --quantization nf4, --dtype bfloat16.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def _run(options: argparse.Namespace) -> None:
    from engine.train.environment import choose_threads, prepare_process

    prepare_process(None)
    from engine.chat.sides import Sides
    from engine.evaluation.folders import FoldersRequest, Source
    from engine.evaluation.progress import JsonLines
    from engine.jobs.spec import Dtype
    from engine.train.environment import prepare_torch, quiet_libraries

    orders = msgspec.json.decode(options.sides.read_bytes(), type=tuple[SideOrder, ...])
    device = prepare_torch(choose_threads(options.threads), Dtype.AUTO)
    quiet_libraries()
    request = FoldersRequest(
        _model(orders[0]),
        suites=tuple(Source(*named.split("=", 1)) for named in options.suite),
        tasks=tuple(options.task),
        limit=options.limit,
        dtype=options.dtype,
        quantization=orders[0].quantization,
    )
    report = measure_adapters(Sides(device, options.dtype), orders, request, options.log, JsonLines())
    helper_process.write_json(options.out, report)


def _model(order: SideOrder) -> Model:
    from engine.evaluation.folders import Model

    return Model(Path(order.folder), order.name, Path(order.base) if order.base else None)


def measure_adapters(
    sides: Sides, orders: tuple[SideOrder, ...], request: FoldersRequest, log: Path | None, report: Report
) -> AdaptersReport:
    """The first of `orders` is the base, the others are adapters on it. With `log` a killed measurement goes on where
    it was. Raises EngineError; an adapter of another base is refused before anything is measured."""
    from engine.chat.sides import fit_of
    from engine.evaluation.comparison import compare
    from engine.evaluation.folders import abilities_of, versions_of
    from engine.evaluation.length_log import CellLog
    from engine.evaluation.tasks import load_tasks
    from engine.jobs.retention_report import AdapterAbilities, AdaptersReport

    began, asked = time.monotonic(), load_tasks(request.tasks)
    for order in orders[1:]:
        fit_of(Path(order.folder), Path(order.base))
    cells = CellLog(log, "adapters")
    try:
        walk = _Walk(sides, request, cells, report, asked)
        found = [walk.measure(number, order) for number, order in enumerate(orders)]
    finally:
        cells.close()
    return AdaptersReport(
        base=abilities_of(_model(orders[0]), found[0]),
        adapters=tuple(
            AdapterAbilities(abilities=abilities_of(_model(order), one), retention=compare(found[0], one))
            for order, one in zip(orders[1:], found[1:], strict=True)
        ),
        questions_limit=request.limit,
        seconds=time.monotonic() - began,
        created=time.time(),
        versions=versions_of(bool(asked)),
    )


class _Walk:
    """The same texts and benchmarks for one side after the other."""

    def __init__(
        self, sides: Sides, request: FoldersRequest, cells: CellLog, report: Report, asked: tuple[Asked, ...]
    ) -> None:
        self._sides, self._request, self._cells = sides, request, cells
        self._report, self._asked = report, asked
        self._texts: tuple[SuiteText, ...] | None = None
        """Cut with the base's tokenizer: every side reads the same ones."""

    def measure(self, number: int, order: SideOrder) -> Found:
        """Load what is missing for it, and measure."""
        from engine.evaluation.folders import Measuring, texts_of

        self._report(f"loading {order.name}", 0, 0, None)
        side = self._sides.add(number, order)
        with side.opened() as ready:
            ready = replace(ready, tokenizer=side.tokenizer)
            if self._texts is None:
                self._texts = texts_of(self._request, ready)
            measuring = Measuring(self._request, _model(order), ready, self._cells, self._report)
            found = measuring.run(self._texts, self._asked)
        if number:
            self._sides.drop(number)
        return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.chat.measure", description=__doc__)
    parser.add_argument("--sides", type=Path, required=True, help="JSON: the base, then adapters on it")
    parser.add_argument("--suite", action="append", default=[], metavar="NAME=PATH", help="a text; more than once")
    parser.add_argument("--task", action="append", default=[], help="a benchmark; more than once")
    parser.add_argument("--limit", type=int, default=0, help="questions per benchmark")
    parser.add_argument("--out", type=Path, required=True, help="where the report is written, as JSON")
    parser.add_argument("--log", type=Path, help="finished parts, to go on from after a kill")
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0 is all")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
