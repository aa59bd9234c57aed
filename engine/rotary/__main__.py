"""`python -m engine.rotary race|search|check ...`: what scaling needs torch for, in a process of its own.

Owns the command lines and the exit code: 0 when it is done; an `EngineError`'s own code
with one `{"error": {...}}` line on standard output when not. Standard output carries the lines of
`engine.jobs.race_lines`. SIGINT and SIGTERM end it after the piece at hand, exit code 130; --log goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.helper_process import tokens, words

if TYPE_CHECKING:
    from engine.rotary.telling import StopFlag


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)

    def out_of_memory(cause: str) -> EngineError:
        return EngineError(
            "context.memory",
            f"The {options.task} ran out of memory.",
            cause=cause,
            next_step="Take a shorter --context, close other programs, or load the model smaller: "
            "--quantization nf4, --dtype bfloat16.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )

    return helper_process.run(lambda: _run(options), out_of_memory)


def _run(options: argparse.Namespace) -> None:
    import torch

    from engine.rotary.telling import StopFlag

    if options.threads:
        torch.set_num_threads(options.threads)
    with StopFlag().listening() as stopped:
        {"race": _race, "search": _search, "check": _check}[options.task](options, stopped)


def _race(options: argparse.Namespace, stopped: StopFlag) -> None:
    from engine.context.factors import read_factors
    from engine.context.method import Options
    from engine.rotary.race import RaceRequest, race
    from engine.rotary.telling import Lines

    request = RaceRequest(
        folder=options.model,
        target=options.context,
        methods=tuple(options.methods),
        lengths=tuple(options.lengths),
        depths=options.depths,
        prompts=options.prompts,
        documents=options.documents,
        options=read_factors(options.factors).applied(Options()) if options.factors else Options(),
        text=options.text,
        seed=options.seed,
        name=options.name,
        log=options.log,
        dtype=options.dtype,
        quantization=options.quantization,
    )
    _write(options.out, race(request, Lines(), stopped))


def _search(options: argparse.Namespace, stopped: StopFlag) -> None:
    from engine.rotary.search import SearchRequest, search
    from engine.rotary.telling import Lines

    request = SearchRequest(
        folder=options.model,
        target=options.context,
        log=options.log,
        method=options.method,
        evaluations=options.evaluations,
        minutes=options.minutes,
        documents=options.documents,
        weight=options.weight,
        text=options.text,
        seed=options.seed,
        name=options.name,
        dtype=options.dtype,
        quantization=options.quantization,
    )
    _write(options.out, search(request, Lines(), stopped))


def _check(options: argparse.Namespace, _stopped: StopFlag) -> None:
    from engine.rotary.check import check_extended, check_unloaded

    if options.unloaded:
        _write(options.out, check_unloaded(options.model))
    else:
        _write(options.out, check_extended(options.model, options.dtype, options.quantization))


def _write(path: Path | None, result: object) -> None:
    if path is not None:
        helper_process.write_json(path, result)


def _numbers(text: str) -> list[int]:
    return [tokens(word) for word in words(text)]


def parser() -> argparse.ArgumentParser:
    """Every option of the process."""
    found = argparse.ArgumentParser(prog="python -m engine.rotary", description=__doc__)
    tasks = found.add_subparsers(dest="task", required=True)
    race = _measuring(tasks.add_parser("race", help="measure methods zero-shot and choose"), documents=6)
    race.add_argument("--methods", type=words, default=[], help="linear,ntk,yarn,...; left out: all that apply")
    race.add_argument("--lengths", type=_numbers, default=[], help="of the perplexity, as 1024,4k")
    race.add_argument("--depths", type=int, default=5, help="places of a needle per length")
    race.add_argument("--prompts", type=int, default=2, help="needles per length and depth")
    race.add_argument("--factors", type=Path, help="searched factors, so that longrope2 takes part")
    race.add_argument("--log", type=Path, help="what was measured, to go on from after a kill")
    search = _measuring(tasks.add_parser("search", help="search divisors"), documents=3)
    search.add_argument("--method", default="longrope2", help="longrope2 or longrope")
    search.add_argument("--evaluations", type=int, default=0, help="sets of divisors to evaluate")
    search.add_argument("--minutes", type=float, default=0.0, help="as many as so many minutes allow")
    search.add_argument("--weight", type=float, default=0.25, help="of ln(perplexity) beside the needles' loss")
    search.add_argument("--log", type=Path, required=True, help="every evaluation, to go on from after a kill")
    check = _loading(tasks.add_parser("check", help="frequencies and cache of an extended folder"))
    check.add_argument("--unloaded", action="store_true", help="frequencies only, without reading the weights")
    return found


def _loading(found: argparse.ArgumentParser) -> argparse.ArgumentParser:
    found.add_argument("--model", type=Path, required=True, help="a model folder")
    found.add_argument("--out", type=Path, help="where the result is written, as JSON")
    found.add_argument("--threads", type=int, help="processor threads")
    found.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    found.add_argument("--quantization", choices=("none", "nf4", "fp4"), default="none")
    return found


def _measuring(found: argparse.ArgumentParser, documents: int) -> argparse.ArgumentParser:
    _loading(found)
    found.add_argument("--context", type=tokens, required=True, help="tokens of the new window, as 4096 or 32k")
    found.add_argument("--documents", type=int, default=documents, help="texts to measure on, at most")
    found.add_argument("--text", default="", help="demo, general, a file or a folder")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--name", default="", help="what reports call the model")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
