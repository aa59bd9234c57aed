"""Every palette is readable (WCAG), every mode says the same without colour, ASCII mode sends ASCII only."""

from __future__ import annotations

from itertools import product

import pytest
from textual.color import Color

from scaler_tui.app import Start
from scaler_tui.line_filters import AsciiFilter, to_ascii
from scaler_tui.terminal import RenderPolicy
from scaler_tui.themes import HIGH_CONTRAST, THEMES
from scaler_tui.widgets.heat_map import LEVEL_STYLES
from tests.support.screen_host import until, visible
from tests.support.wizard_app import known_machine, opened, press, to_questions

TEXT, MARK = 4.5, 3.0
QUIETEST = 0.70
"""The least share of the foreground that any quiet text is drawn with."""


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


def luminance(color: Color) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    """Contrast ratio, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def over(base: str, top: str, share: float) -> Color:
    """`share` of `top` on `base`."""
    return Color.parse(base).blend(Color.parse(top), share)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_has_4_5_to_1_and_marks_3_to_1(theme: object) -> None:
    t = theme
    grounds = {
        "background": Color.parse(t.background),  # type: ignore[attr-defined]
        "surface": Color.parse(t.surface),  # type: ignore[attr-defined]
        "panel": Color.parse(t.panel),  # type: ignore[attr-defined]
        "pointer": over(t.background, t.primary, 0.25),  # type: ignore[attr-defined]
        "boost": Color.parse(t.boost),  # type: ignore[attr-defined]
    }
    for name, ground in grounds.items():
        assert contrast(Color.parse(t.foreground), ground) >= TEXT, f"text on {name}"  # type: ignore[attr-defined]
        quiet = ground.blend(Color.parse(t.foreground), QUIETEST)  # type: ignore[attr-defined]
        assert contrast(quiet, ground) >= TEXT, f"quiet text on {name}"
    for token, ground in product(("success", "warning", "error", "accent"), ("background", "panel")):
        assert contrast(Color.parse(getattr(t, token)), grounds[ground]) >= TEXT, f"{token} words on {ground}"
    for token in ("primary", "secondary"):
        assert contrast(Color.parse(getattr(t, token)), grounds["background"]) >= MARK, f"{token} marks"
    assert contrast(Color.parse(t.background), Color.parse(t.warning)) >= TEXT, "SIM"  # type: ignore[attr-defined]


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_figures_on_every_colour_of_the_heat_map_have_4_5_to_1(theme: object) -> None:
    for style in LEVEL_STYLES:
        name, share = style.removeprefix("$").removesuffix("%").split()
        ground = over(theme.background, getattr(theme, name), int(share) / 100)  # type: ignore[attr-defined]
        assert contrast(Color.parse(theme.foreground), ground) >= TEXT, style  # type: ignore[attr-defined]


def test_high_contrast_has_7_to_1() -> None:
    for token in ("foreground", "success", "warning", "error", "accent"):
        assert contrast(Color.parse(getattr(HIGH_CONTRAST, token)), Color.parse("#000000")) >= 7, token


def test_the_quietest_text_of_the_style_sheets_is_the_one_that_is_tested() -> None:
    import re
    from pathlib import Path

    root = Path(__file__).resolve().parents[2] / "scaler_tui"
    own = ["wizard.tcss", "base.tcss"]
    texts = [(root / "styles" / name).read_text() for name in own]
    texts += [path.read_text() for path in (root / "screens").glob("*.py") if path.stem not in ("run", "runs", "card")]
    texts += [(root / "widgets" / f"{name}.py").read_text() for name in ("frame", "choice_list", "fit_bar")]
    shares = [int(share) for text in texts for share in re.findall(r"\$foreground (\d+)%", text)]
    assert shares
    assert [share for share in shares if share < QUIETEST * 100] in ([], [50]), "50 % is a key that is off"


@pytest.mark.parametrize("theme", [theme.name for theme in THEMES])
async def test_a_theme_is_chosen_by_flag_or_key_and_remembered(theme: str) -> None:
    async with opened(start=Start(theme=theme)) as (app, pilot):
        assert app.theme == theme
        await press(pilot, "ctrl+t")
        chosen = app.theme
        assert chosen != theme
    async with opened() as (app, _):
        assert app.theme == chosen


async def test_ascii_mode_draws_ascii_only_and_the_same_words() -> None:
    async with opened(policy=RenderPolicy(unicode=False)) as (app, pilot):
        await to_questions(app, pilot)
        for keys in (("m",), ("e",), ("b", "w"), ("b", "question_mark")):
            await press(pilot, *keys)
            text = visible(app)
            assert text.isascii(), [c for c in text if not c.isascii()]
        await press(pilot, "escape")
        assert "+ fits" in visible(app)
        assert "* recommended" in visible(app)


async def test_without_colour_no_cell_has_one_and_the_pointer_is_still_seen() -> None:
    async with opened(policy=RenderPolicy(color=False)) as (app, pilot):
        await to_questions(app, pilot)
        await until(pilot, lambda: "Fits?" in visible(app))
        pointed = []
        for strip in app.screen._compositor.render_strips():
            for segment in strip:
                assert segment.style is None or (segment.style.color is None and segment.style.bgcolor is None)
                if segment.style is not None and segment.style.reverse:
                    pointed.append(segment.text)
        assert any("The embedded demo model" in text for text in pointed)


@pytest.mark.parametrize("text", ["✓ fits", "3.62M→4.40M", "26 s–12 min", "██▓▒░", "né 漢字", "┌─┐"])
def test_ascii_is_as_wide_as_what_it_replaces(text: str) -> None:
    from rich.cells import cell_len

    assert to_ascii(text).isascii()
    assert cell_len(to_ascii(text)) == cell_len(text)
    assert AsciiFilter().enabled
