"""What screens that plan for a machine and a model have in common: they plan anew when one of the two is another.

Owns when that happens. Must not know what is planned.
"""

from __future__ import annotations

from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import FramedScreen


class PlanningScreen(FramedScreen):
    """A screen whose figures follow machine and model; `replan` makes and draws them."""

    def replan(self) -> None:
        """Work out and draw what depends on machine and model."""
        raise NotImplementedError

    def on_screen_resume(self) -> None:
        """Machine, model or answers may have changed while another screen was in front."""
        self.refresh_title()
        self.replan()

    def on_startup_news(self, news: StartupNews) -> None:
        """Machine or model arrived."""
        if news.machine is not None or news.model:
            self.refresh_title()
            self.replan()
