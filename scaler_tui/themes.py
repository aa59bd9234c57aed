"""The palettes. The only place with colour values; style sheets use the names Textual derives from them.

Good, warning and bad are never told apart by colour alone: a word and a glyph are always there. The colour-blind
palette maps good to blue and bad to orange, which both deuteranopia and tritanopia keep apart.
"""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="scaler-dark",
    dark=True,
    primary="#7aa2f7",
    secondary="#bb9af7",
    accent="#7dcfff",
    foreground="#d5d9e8",
    background="#14161f",
    surface="#1b1e2b",
    panel="#25293a",
    success="#9ece6a",
    warning="#e0af68",
    error="#f7768e",
    boost="#2d3248",
)
LIGHT = Theme(
    name="scaler-light",
    dark=False,
    primary="#2f54b8",
    secondary="#7a3fb0",
    accent="#0f6b8f",
    foreground="#1d2130",
    background="#fafafc",
    surface="#f0f1f6",
    panel="#e2e4ee",
    success="#2f6f1f",
    warning="#8a5300",
    error="#b3213b",
    boost="#d5d9e8",
)
HIGH_CONTRAST = Theme(
    name="scaler-high-contrast",
    dark=True,
    primary="#ffffff",
    secondary="#ffff66",
    accent="#66ffff",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#1a1a1a",
    success="#66ff66",
    warning="#ffff66",
    error="#ff8080",
    boost="#333333",
)
COLOR_BLIND = Theme(
    name="scaler-color-blind",
    dark=True,
    primary="#79a8ff",
    secondary="#c6a0f6",
    accent="#6ae4b9",
    foreground="#e4e6ee",
    background="#14161f",
    surface="#1b1e2b",
    panel="#25293a",
    success="#4fa3ff",
    warning="#f2d16b",
    error="#ff9d3b",
    boost="#2d3248",
)
THEMES = (DARK, LIGHT, HIGH_CONTRAST, COLOR_BLIND)
NO_COLOR_THEME = "ansi-dark"
"""Textual's own 16-colour theme: with its no-colour filter it sends no colour code at all."""
