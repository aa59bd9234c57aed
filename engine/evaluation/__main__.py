"""`python -m engine.evaluation --model DIR --out report.json`: measure a model by length in a process of its own.

Owns the command line and the exit code: 0 when the report is written; an `EngineError`'s
own code with one `{"error": {...}}` line on standard output when nothing could be measured. With --log a killed
measurement goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.helper_process import tokens, words

NO_TASKS = "none"


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    return helper_process.run(lambda: _run(options), _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError(
        "evaluation.memory",
        "The measurement ran out of memory.",
        cause=cause,
        next_step="Measure shorter --lengths, close other programs, or load the model smaller: "
        "--quantization nf4, --dtype bfloat16.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def _run(options: argparse.Namespace) -> None:
    import torch

    from engine.evaluation.length_measure import LengthRequest
    from engine.evaluation.progress import JsonLines
    from engine.evaluation.served import measure_folder

    if options.threads:
        torch.set_num_threads(options.threads)
    request = LengthRequest(
        lengths=tuple(options.lengths),
        original=options.original,
        depths=options.depths,
        prompts=options.prompts,
        tasks=tuple(task for task in options.tasks if task != NO_TASKS),
        style=options.style,
        text=options.text,
        documents=options.documents,
        perplexity=not options.no_perplexity,
        sliding=not options.no_sliding,
        seed=options.seed,
        method=options.method,
        model=options.name or options.model.name,
    )
    report = measure_folder(
        options.model,
        request,
        base=options.base,
        log=options.log,
        report=JsonLines(),
        dtype=options.dtype,
        quantization=options.quantization,
    )
    helper_process.write_json(options.out, report)


def _numbers(text: str) -> list[int]:
    return [tokens(word) for word in words(text)]


def parser() -> argparse.ArgumentParser:
    """Every option of the process."""
    found = argparse.ArgumentParser(prog="python -m engine.evaluation", description=__doc__)
    found.add_argument("--model", type=Path, required=True, help="a model folder")
    found.add_argument("--out", type=Path, required=True, help="where the report is written, as JSON")
    found.add_argument("--base", type=Path, help="the model before it was extended: short text is compared with it")
    found.add_argument("--lengths", type=_numbers, default=[], help="tokens, as 1024,4k,16k; left out: from the window")
    found.add_argument("--original", type=int, default=0, help="the window before it was extended, tokens")
    found.add_argument("--depths", type=int, default=5, help="places of a needle per length")
    found.add_argument("--prompts", type=int, default=4, help="needles per length and depth")
    found.add_argument("--tasks", type=words, default=["needle"], help="needle,multi-needle,key-value,variables; none")
    found.add_argument("--style", default="", help="notes or passkey; left out: what the model understands better")
    found.add_argument("--text", default="", help="demo, general, a file or a folder")
    found.add_argument("--documents", type=int, default=8, help="texts to measure perplexity on, at most")
    found.add_argument("--no-perplexity", action="store_true", help="needles and short text only")
    found.add_argument("--no-sliding", action="store_true", help="without the sliding window")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--log", type=Path, help="finished cells, to go on from after a kill")
    found.add_argument("--name", default="", help="what the report calls the model")
    found.add_argument("--method", default="", help="how it was extended, for the report")
    found.add_argument("--threads", type=int, help="processor threads")
    found.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    found.add_argument("--quantization", choices=("none", "nf4", "fp4"), default="none")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
