"""First paint of the wizard against a nine-widget Textual shell, in the same tmux, in turn.

`python -m bench.startup` prints both medians and the ratio. Absolute times mean little on a shared machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from pathlib import Path

RUNS = 7
SHELL = textwrap.dedent(
    """
    from textual.app import App
    from textual.widgets import DataTable, Footer, Header, Input, Label, OptionList, ProgressBar, RichLog, Static
    class Shell(App):
        BINDINGS = [("q", "quit", "Quit")]
        def compose(self):
            yield Header(); yield Label("nine widgets"); yield Static("static"); yield Input()
            yield OptionList("one", "two", "three"); yield DataTable(); yield RichLog(); yield ProgressBar(total=10)
            yield Footer()
        def on_mount(self):
            table = self.query_one(DataTable); table.add_columns("a", "b"); table.add_row("1", "2")
    Shell().run()
    """
)


def first_paint_seconds(command: str, marker: str, home: Path) -> float:
    """Seconds from starting `command` in a new 120x40 tmux session until `marker` is on the screen."""
    socket = f"bench-{uuid.uuid4().hex[:8]}"
    tmux = ["tmux", "-L", socket, "-f", "/dev/null"]
    started = time.perf_counter()
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "120", "-y", "40", f"SCALER_WIZARD_HOME={home} exec {command}"], check=True
    )
    try:
        while time.perf_counter() - started < 30:
            screen = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=False).stdout
            if marker in screen:
                return time.perf_counter() - started
            time.sleep(0.005)
        raise SystemExit(f"'{marker}' never appeared for: {command}")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)


def main() -> dict[str, float]:
    """Measure in turn, print, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shell = home / "shell.py"
        shell.write_text(SHELL)
        commands = {
            "shell": (f"{sys.executable} {shell}", "nine widgets"),
            "wizard": (f"{sys.executable} -m scaler_tui --demo", "Plan something new"),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for round_number in range(RUNS + 1):
            for name, (command, marker) in commands.items():
                seconds = first_paint_seconds(command, marker, home)
                if round_number:
                    times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["wizard"] / medians["shell"]
    print(
        f"first paint, 120x40, median of {RUNS}: wizard {medians['wizard']:.3f} s, "
        f"nine-widget shell {medians['shell']:.3f} s, ratio {ratio:.2f} (budget 1.40)"
    )
    return {**medians, "ratio": ratio}


if __name__ == "__main__":
    main()
