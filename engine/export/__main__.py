"""`python -m engine.export MODEL OUT.gguf [--type f32|f16|bf16|q8_0] [--force]`: a model folder as a GGUF file.

Owns the command line; prints one JSON line about what was written.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.export.gguf import write_gguf
from engine.export.gguf_weights import TYPES


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.export", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder with safetensors, config and tokenizer")
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--type", choices=sorted(TYPES), default="", help="of the matrices; else as they are stored")
    parser.add_argument("--force", action="store_true", help="replace a file of that name")
    options = parser.parse_args(arguments)
    try:
        written = write_gguf(options.model, options.out, options.type, force=options.force)
    except EngineError as error:
        sys.stdout.write(json.dumps({"error": error.as_dict()}) + "\n")
        return int(error.exit_code)
    sys.stdout.write(json.dumps(asdict(written) | {"path": str(written.path)}) + "\n")
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
