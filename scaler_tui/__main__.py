"""`python -m scaler_tui`: the same as the `scaler-wizard` command."""

import sys

from scaler_tui.cli import main

if __name__ == "__main__":
    sys.exit(main())
