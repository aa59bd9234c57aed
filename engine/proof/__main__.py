"""`python -m engine.proof --source SRC --grown DIR --out proof.json`: measure a grown model in a process of its own.

Owns the command line and the exit code: 0 when the proof is written, whether it passed or
not; an `EngineError`'s own code with one `{"error": {...}}` line on standard output when nothing could be measured.
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
        "proof.memory",
        "The proof ran out of memory.",
        cause=cause,
        next_step="Close other programs, or prove it with fewer --tokens.",
        exit_code=ExitCode.RUN_FAILED,
    )


def _run(options: argparse.Namespace) -> None:
    import torch

    from engine.proof.progress import JsonLines
    from engine.proof.prove import ProofRequest, prove

    if options.threads:
        torch.set_num_threads(options.threads)
    request = ProofRequest(options.source, options.grown, options.text, options.tokens, options.memory_bytes)
    proof = prove(request, JsonLines())
    helper_process.write_json(options.out, proof)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.proof", description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="the model that was grown")
    parser.add_argument("--grown", type=Path, required=True, help="the folder with the result and its expansion.json")
    parser.add_argument("--out", type=Path, required=True, help="where the proof is written, as JSON")
    parser.add_argument("--text", type=Path, help="text to measure on instead of the demo corpus")
    parser.add_argument("--tokens", type=int, help="how many tokens of it")
    parser.add_argument("--memory-bytes", type=int, help="memory to use instead of what is free")
    parser.add_argument("--threads", type=int, help="processor threads")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
