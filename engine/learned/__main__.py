"""`python -m engine.learned --source SRC --plan plan.json --out made.safetensors`: one JSON line per step.

Owns arguments, exit codes and the last line: {"error": {...}} when it could not be done. Must not know the maths.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from engine.errors import EngineError
from engine.expansion.layouts import layout_for
from engine.expansion.plan_io import decode_plan
from engine.learned.make import make
from engine.learned.progress import json_lines
from engine.models.config import read_json_object
from engine.models.headers import read_headers

WORTH_THREADS = 1024
"""Hidden size below which threads wait for each other longer than they work: ten times the time on a busy machine."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.learned", description="Compute layers for an expansion.")
    parser.add_argument("--source", type=Path, required=True, help="folder of the model that is expanded")
    parser.add_argument("--plan", type=Path, required=True, help="the expansion plan (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        config = read_json_object(options.source / "config.json", code="model.config", what="a model's config")
        layout = layout_for(config, options.source.name)
        plan = decode_plan(options.plan.read_bytes())
        if layout.dims.hidden < WORTH_THREADS:
            torch.set_num_threads(1)
        count = make(read_headers(options.source), layout, plan, options.out, json_lines)
    except EngineError as error:
        sys.stdout.write(json.dumps({"error": error.as_dict()}) + "\n")
        return int(error.exit_code)
    json_lines("done", count, count, f"{count} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
