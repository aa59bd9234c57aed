"""`python -m bench [NAME ...]`: all benchmarks, or the named ones.

`brief` prints a table and is not among "all". `growth` takes about 20 minutes, `lab` half an hour and
`context` two to three hours.
"""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "startup", "display", "training", "surgery", "growth", "context", "needles", "corpus", "lab", "adapters",
    "distillation",
)  # fmt: skip
TABLES = ("brief",)
"""Not measured, so not among "all"."""


def main() -> int:
    """Run them in order; each prints its own lines. Returns 1 when one of them missed a figure that should hold."""
    wanted = [word for word in sys.argv[1:] if not word.startswith("--")] or NAMES
    unknown = [name for name in wanted if name not in NAMES + TABLES]
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}; there are: {', '.join(NAMES + TABLES)}")
        return 2
    missed = False
    for name in wanted:
        if name in NAMES:
            print(f"== {name}", flush=True)
        missed |= bool(importlib.import_module(f"bench.{name}").main())
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
