"""`python -m tests.score_estimates CSV [--json] [--rows]`: the formula against published measurements.

The file has the columns of `measured_memory.csv`. Every row is scored, or listed with the reason why not. Exits 2 when
the file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from engine.errors import EngineError
from tests.score.report import as_json, as_text
from tests.score.results import score
from tests.score.rows import read_rows


def main(arguments: list[str] | None = None) -> int:
    """Print the score of one file."""
    parser = argparse.ArgumentParser(prog="python -m tests.score_estimates", description=__doc__)
    parser.add_argument("csv", type=Path, help="measurements, in the format of measured_memory.csv")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rows", action="store_true", help="print every row's figures as well")
    options = parser.parse_args(arguments)
    try:
        scored, skipped = score(read_rows(options.csv))
    except EngineError as error:
        print(f"{error.what} {error.cause} {error.next_step}".strip(), file=sys.stderr)
        return 2
    print(
        json.dumps(as_json(scored, skipped), indent=2) if options.json else as_text(scored, skipped, rows=options.rows)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
