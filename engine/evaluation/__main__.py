"""`python -m engine.evaluation --model DIR --out report.json`: measure a model by length in a process of its own.

Owns the command line, the process's environment, and the exit code: 0 when the report is written; an `EngineError`'s
own code with one `{"error": {...}}` line on standard output when nothing could be measured. With --log a killed
measurement goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from engine.errors import EngineError, ExitCode

# Before torch: waiting threads sleep, nothing is fetched, no bars are drawn.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
}
NO_TASKS = "none"


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        _run(options)
    except EngineError as error:
        return _told(error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _told(
            EngineError(
                "evaluation.memory",
                "The measurement ran out of memory.",
                cause=" ".join(str(error).split())[:300],
                next_step="Measure shorter --lengths, close other programs, or load the model smaller: "
                "--quantization nf4, --dtype bfloat16.",
                exit_code=ExitCode.DOES_NOT_FIT,
            )
        )
    return int(ExitCode.DONE)


def _told(error: EngineError) -> int:
    sys.stdout.write(json.dumps({"error": error.as_dict()}) + "\n")
    return int(error.exit_code)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _run(options: argparse.Namespace) -> None:
    import msgspec
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
    staged = options.out.with_name(options.out.name + ".part")
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    staged.replace(options.out)


def _words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def _numbers(text: str) -> list[int]:
    """ "512,1k,32k" as tokens; k is 1,024."""
    return [int(word[:-1]) * 1024 if word[-1] in "kK" else int(word) for word in _words(text)]


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
    found.add_argument("--tasks", type=_words, default=["needle"], help="needle,multi-needle,key-value,variables; none")
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
