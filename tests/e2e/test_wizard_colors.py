"""Without colour not one colour code is sent; what a terminal gets is counted in a pty."""

from __future__ import annotations

import re
import sys

import pytest

from tests.support.pty_terminal import PtyTerminal

pytestmark = pytest.mark.slow

SGR = re.compile(rb"\x1b\[([0-9;:]*)m")


def color_codes(sent: bytes) -> set[int]:
    """Every colour parameter in the style codes of `sent`, the terminal's default colours included."""
    found = set()
    for match in SGR.finditer(sent):
        for parameter in re.split(rb"[;:]", match.group(1)):
            number = int(parameter or b"0")
            if 30 <= number <= 49 or 90 <= number <= 107:
                found.add(number)
    return found


@pytest.mark.parametrize(
    ("flags", "env", "colored"),
    [([], {"NO_COLOR": "1"}, False), (["--no-color"], {}, False), ([], {}, True)],
    ids=["NO_COLOR", "--no-color", "colour"],
)
def test_no_color_sends_no_colour_code(flags: list[str], env: dict[str, str], colored: bool) -> None:
    terminal = PtyTerminal([sys.executable, "-m", "scaler_tui", "--demo", *flags], env=env)
    try:
        terminal.read_until(lambda sent: b"Plan something new" in sent)
        terminal.read_until_quiet(1.0)
        for keys in (b"2", b"1", b"m", b"e", b"b", b"w", b"?", b"\x03"):
            terminal.send(keys)
            terminal.read_until_quiet(0.5)
        assert bool(color_codes(bytes(terminal.received))) is colored
    finally:
        terminal.close()
