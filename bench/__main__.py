"""`python -m bench [startup|display|training ...]`: all benchmarks, or the named ones."""

from __future__ import annotations

import importlib
import sys

NAMES = ("startup", "display", "training")


def main() -> int:
    """Run them in order; each prints its own lines."""
    wanted = sys.argv[1:] or NAMES
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}; there are: {', '.join(NAMES)}")
        return 2
    for name in wanted:
        print(f"== {name}", flush=True)
        importlib.import_module(f"bench.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
