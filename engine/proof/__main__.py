"""`python -m engine.proof --source SRC --grown DIR --out proof.json`: measure a grown model in a process of its own.

Owns the command line, the process's environment, and the exit code: 0 when the proof is written, whether it passed or
not; an `EngineError`'s own code with one `{"error": {...}}` line on standard output when nothing could be measured.
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


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        _run(options)
    except EngineError as error:
        sys.stdout.write(json.dumps({"error": error.as_dict()}) + "\n")
        return int(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        told = EngineError(
            "proof.memory",
            "The proof ran out of memory.",
            cause=" ".join(str(error).split())[:300],
            next_step="Close other programs, or prove it with fewer --tokens.",
            exit_code=ExitCode.RUN_FAILED,
        )
        sys.stdout.write(json.dumps({"error": told.as_dict()}) + "\n")
        return int(told.exit_code)
    return int(ExitCode.DONE)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _run(options: argparse.Namespace) -> None:
    import msgspec
    import torch

    from engine.proof.progress import JsonLines
    from engine.proof.prove import ProofRequest, prove

    if options.threads:
        torch.set_num_threads(options.threads)
    request = ProofRequest(options.source, options.grown, options.text, options.tokens, options.memory_bytes)
    proof = prove(request, JsonLines())
    staged = options.out.with_name(options.out.name + ".part")
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(proof), indent=1) + b"\n")
    staged.replace(options.out)


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
