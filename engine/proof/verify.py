"""`python -m engine.proof.verify --first A --second B --out report.json`: compare two folders in a process of its own.

Owns the command line and the exit code: 0 when the report is written, whatever its verdict; an `EngineError`'s own code
with one `{"error": {...}}` line on standard output when nothing could be compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine import helper_process
from engine.errors import EngineError, ExitCode


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    return helper_process.run(lambda: _run(options), _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError(
        "verify.memory",
        "The comparison ran out of memory.",
        cause=cause,
        next_step="Close other programs, or compare on fewer --tokens.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def _run(options: argparse.Namespace) -> None:
    import torch

    from engine.proof.progress import JsonLines
    from engine.proof.same_function import FunctionRequest, same_function

    if options.threads:
        torch.set_num_threads(options.threads)
    request = FunctionRequest(
        options.first,
        options.second,
        base=options.base,
        text=options.text,
        tokens=options.tokens,
        quantization=options.quantization,
        tolerance=options.tolerance,
        memory_bytes=options.memory_bytes,
    )
    helper_process.write_json(options.out, same_function(request, JsonLines()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.proof.verify", description=__doc__)
    parser.add_argument("--first", type=Path, required=True, help="a model folder or an adapter's")
    parser.add_argument("--second", type=Path, required=True, help="the one to compare with it")
    parser.add_argument("--out", type=Path, required=True, help="where the report is written, as JSON")
    parser.add_argument("--base", type=Path, help="the base of adapters")
    parser.add_argument("--text", type=Path, help="text to compare on instead of the demo corpus")
    parser.add_argument("--tokens", type=int, help="how many tokens of it")
    parser.add_argument("--quantization", choices=("none", "nf4", "fp4"), default="none", help="of the second model")
    parser.add_argument("--tolerance", type=float, help="of logits, relative; excuses no rounding")
    parser.add_argument("--memory-bytes", type=int, help="memory to use instead of what is free")
    parser.add_argument("--threads", type=int, help="processor threads")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
