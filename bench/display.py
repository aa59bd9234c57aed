"""What the terminal feels: key to repaint while both cores are busy, bytes against the stock display, re-attaching.

`python -m bench.display` prints a table; nothing here is asserted, budgets are printed beside the figures. Needs Linux.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec

from engine.jobs.launch import start
from engine.jobs.liveness import cpu_seconds
from engine.jobs.store import Follower
from scaler_tui.demo import demo_spec
from tests.support.fake_worker import recorded_run
from tests.support.pty_terminal import PtyTerminal

STOCK_OR_LEAN = [sys.executable, "-m", "tests.support.display_app"]
"""The run screen alone, in either display, for the bytes."""
PRODUCT = [sys.executable, "-m", "scaler_tui", "attach"]
KEYS = 24
STEPS_OF_A_LONG_RUN = 100_000


@contextmanager
def training_run() -> Iterator[None]:
    """A real QLoRA of the demo model that keeps every core busy; killed at the end."""
    spec = demo_spec()
    endless = msgspec.structs.replace(
        spec,
        training=msgspec.structs.replace(spec.training, max_steps=100_000),
        evaluation=msgspec.structs.replace(spec.evaluation, every_steps=0),
    )
    follower = Follower(start(endless))
    while (state := follower.poll()).step < 3:
        if not state.state.is_live:
            raise SystemExit(f"the training run ended: {state.what} {state.cause}")
        time.sleep(0.1)
    try:
        yield
    finally:
        os.kill(follower.poll().worker_pid, signal.SIGKILL)


def shown(seen: bytes) -> bool:
    """The overview of a finished run is complete."""
    return b"tokens/s" in seen and b"measured" in seen


def opened(run_dir: Path, size: tuple[int, int], *flags: str) -> PtyTerminal:
    """The run screen, painted and quiet."""
    terminal = PtyTerminal([*STOCK_OR_LEAN, *flags, str(run_dir)], size=size)
    terminal.read_until(shown, seconds=60)
    terminal.read_until_quiet(1.0)
    return terminal


def attached(run_dir: Path) -> PtyTerminal:
    """The product itself, re-attached to a run, painted and quiet."""
    terminal = PtyTerminal([*PRODUCT, run_dir.name], size=(80, 24))
    terminal.read_until(shown, seconds=60)
    terminal.read_until_quiet(1.0)
    return terminal


def key_milliseconds(terminal: PtyTerminal, keys: list[bytes]) -> list[tuple[float, float]]:
    """(first byte, last byte) after each key."""
    times = []
    for key in keys:
        terminal.read_until_quiet(0.25)
        pressed = time.monotonic()
        terminal.send(key)
        while not terminal.read(0.5):
            pass
        first = terminal.last_byte_at
        terminal.read_until_quiet(0.25)
        # read_until_quiet starts its clock anew; without a later byte the first chunk was the last.
        last = max(first, terminal.last_data_at)
        times.append(((first - pressed) * 1000, (last - pressed) * 1000))
    return times


def report_keys(run_dir: Path) -> None:
    """Pane switches (the largest repaint there is) and scrolling a log, both cores busy."""
    for name, keys in (
        ("pane switch", [b"4", b"1"] * (KEYS // 2)),
        ("log arrow", [b"2"] + [b"\x1b[A", b"\x1b[B"] * (KEYS // 2)),
    ):
        for label, load in (("idle", nullcontext()), ("training run", training_run())):
            with load:
                terminal = attached(run_dir)
                times = key_milliseconds(terminal, keys)[1:]
                terminal.close()
            first, last = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"key to repaint, {name:<12} {label:<13} first byte {first:5.1f} ms, last {last:5.1f} ms   (< 60 ms)")


def report_bytes(run_dir: Path) -> None:
    """First paint and a change of pane and back."""
    for size in ((80, 24), (120, 40)):
        sent = []
        for flags in (["--stock"], []):
            terminal = opened(run_dir, size, *flags)
            first = terminal.total_bytes
            for key in (b"4", b"1"):
                terminal.send(key)
                terminal.read_until_quiet()
            sent.append((first, terminal.total_bytes - first))
            terminal.close()
        (stock_first, stock_panes), (lean_first, lean_panes) = sent
        print(
            f"bytes {size[0]}x{size[1]:<3} first paint {stock_first:,} stock, {lean_first:,} lean "
            f"({stock_first / lean_first:.1f}x)   panes {stock_panes:,} stock, {lean_panes:,} lean "
            f"({stock_panes / lean_panes:.1f}x)"
        )


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def report_reattach() -> None:
    """From starting the program to the drawn curve of a long run; the same for a short run is the floor."""
    times = {}
    for steps in (100, STEPS_OF_A_LONG_RUN):
        run_dir = recorded_run(steps)
        wanted = f"{steps:,}".encode()
        samples, processor, memory = [], [], 0.0
        for _ in range(3):
            began = time.monotonic()
            terminal = PtyTerminal([*PRODUCT, run_dir.name], size=(80, 24))
            terminal.read_until(lambda seen, wanted=wanted: shown(seen) and wanted in seen, seconds=60)
            samples.append(time.monotonic() - began)
            processor.append(cpu_seconds(terminal.process.pid))
            terminal.read_until_quiet(0.5)
            memory = max(memory, resident_mib(terminal.process.pid))
            terminal.close()
        times[steps] = statistics.median(samples)
        used = statistics.median(processor)
        print(f"open a run of {steps:>7,} steps: {times[steps]:.2f} s to curve ({used:.2f} s of CPU), {memory:.0f} MiB")
    extra = times[STEPS_OF_A_LONG_RUN] - times[100]
    print(f"re-attach to {STEPS_OF_A_LONG_RUN:,} steps costs {extra:.2f} s more than to 100   (< 1 s; memory < 60 MB)")


def main() -> None:
    """Everything, in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["SCALER_WIZARD_HOME"] = home
        run_dir = recorded_run(300)
        report_bytes(run_dir)
        report_keys(run_dir)
        report_reattach()


if __name__ == "__main__":
    main()
