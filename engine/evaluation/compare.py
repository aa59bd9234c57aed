"""`python -m engine.evaluation.compare --model DIR --against DIR --out report.json`: abilities of model folders.

Owns the command line and the exit code: 0 when the report is written; an `EngineError`'s own code with one
`{"error": {...}}` line on standard output when nothing could be measured. `--check` loads the tasks and their data and
measures nothing. Unlike other helper processes it may fetch: the data of a benchmark, unless HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from engine import helper_process
from engine.errors import EngineError, ExitCode


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    options = _parser().parse_args(arguments)
    return helper_process.run(lambda: _check(options) if options.check else _run(options), _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError(
        "evaluation.memory",
        "The measurement ran out of memory.",
        cause=cause,
        next_step="Close other programs, or load the model smaller: --quantization nf4, --dtype bfloat16.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def _check(options: argparse.Namespace) -> None:
    from engine.evaluation.comparison import not_comparable, require_names
    from engine.evaluation.tasks import load_tasks

    asked = load_tasks(options.task)
    require_names(options.on, [name for one in asked for name in (*one.groups, *one.tasks)])
    for name, task in (pair for one in asked for pair in one.loaded["tasks"].items()):
        better = task.higher_is_better()
        if name in options.on and not any(better.values()):  # perplexities; what else is none shows when it is measured
            raise not_comparable(name, list(better))


def _run(options: argparse.Namespace) -> None:
    import torch

    from engine.evaluation.folders import FoldersRequest, Model, Source, measure_folders
    from engine.evaluation.progress import JsonLines

    if options.threads:
        torch.set_num_threads(options.threads)
    parent = Model(options.against, options.against_name, options.against_base) if options.against else None
    request = FoldersRequest(
        Model(options.model, options.name or options.model.name, options.base),
        parent,
        tuple(Source(*named.split("=", 1)) for named in options.suite),
        tuple(options.task),
        options.limit,
        options.dtype,
        options.quantization,
    )
    helper_process.write_json(options.out, measure_folders(request, options.log, JsonLines()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.evaluation.compare", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only see that every task and its data is here")
    parser.add_argument("--on", action="append", default=[], help="with --check: a task that must be among them")
    parser.add_argument("--model", type=Path, help="a model folder or an adapter's")
    parser.add_argument("--name", default="", help="what the report calls it")
    parser.add_argument("--base", type=Path, help="of an adapter")
    parser.add_argument("--against", type=Path, help="the parent's folder")
    parser.add_argument("--against-name", default="the parent", help="what the report calls the parent")
    parser.add_argument("--against-base", type=Path, help="of a parent that is an adapter")
    parser.add_argument("--suite", action="append", default=[], metavar="NAME=PATH", help="a text; more than once")
    parser.add_argument("--task", action="append", default=[], help="a benchmark; more than once")
    parser.add_argument("--limit", type=int, default=0, help="questions per benchmark")
    parser.add_argument("--out", type=Path, help="where the report is written, as JSON")
    parser.add_argument("--log", type=Path, help="finished parts, to go on from after a kill")
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--quantization", choices=("none", "nf4", "fp4"), default="none")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
