"""What was found on this machine, from which source, and planning for another card instead.

Owns the list of cards and the what-if input. Must not probe anything: it shows the Machine it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from engine.hardware.machine import Machine
from engine.units import format_bytes, format_range, format_usd
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import FramedScreen


def describe(machine: Machine) -> Text:
    """The machine as lines, every figure with its source."""
    text = Text()
    for gpu in machine.gpus:
        text.append(f"GPU {gpu.index}  ", "bold")
        text.append(f"{gpu.name}: {format_bytes(gpu.free_vram_bytes)} free of {format_bytes(gpu.vram_bytes)}")
        text.append(f"  [{gpu.source}]", "dim")
        if gpu.display_active:
            text.append("  drives a display")
        if gpu.mig:
            text.append(f"  MIG {gpu.mig}")
        text.append("\n")
    if not machine.gpus:
        text.append("GPU    ", "bold")
        text.append("none found; that is fine: small models train on the CPU, or plan for a card below\n")
    if len(machine.gpus) > 1:
        text.append("       Each card is counted by itself; memory is not added up.\n", "dim")
    text.append("CPU    ", "bold")
    text.append(f"{machine.cpu.name}, {machine.cpu.cores} cores\n")
    text.append("RAM    ", "bold")
    text.append(f"{format_bytes(machine.ram.available_bytes)} available of {format_bytes(machine.ram.total_bytes)}")
    text.append(f"  [{machine.ram.source}]\n", "dim")
    for disk in machine.disks:
        text.append("Disk   ", "bold")
        text.append(f"{format_bytes(disk.free_bytes)} free for {disk.purpose}  ")
        text.append(f"{disk.path}\n", "dim")
    for problem in machine.problems:
        text.append("Note   ", "bold")
        text.append(f"{problem.where}: {problem.what} {problem.next_step}\n")
    return text


class HardwareScreen(FramedScreen):
    """Found above, what-if below."""

    place = "this machine"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("w", "what_if", "Type a card"),
        Binding("x", "real", "Back to the real machine"),
        Binding("b,escape,left", "back", "Back", key_display="b"),
    ]

    def body(self) -> Iterable[Widget]:
        """Description, input, list of cards."""
        with VerticalScroll(id="machine-scroll", can_focus=False):
            yield Static("Looking at the machine ...", id="machine")
        yield Static("Plan for another card (SIM): type it, or choose from the list.", id="what-if-label")
        yield Input(placeholder="RTX 4090, 2x24G, 2x RTX 3090 ...", id="what-if", compact=True)
        yield OptionList(id="cards", compact=True)

    def on_mount(self) -> None:
        """Fill the list of known cards."""
        from engine.hardware.gpu_profiles import load_gpu_profiles

        cards = self.query_one("#cards", OptionList)
        for profile in load_gpu_profiles():
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(profile.name.ljust(24))
            line.append(f"{format_bytes(profile.vram_bytes):>9}")
            low, high = profile.rent_low_usd_per_hour, profile.rent_high_usd_per_hour
            if low is not None and high is not None:
                line.append(f"  rent {format_range(format_usd(low), format_usd(high))} an hour", "dim")
            cards.add_option(Option(line, id=profile.name))
        cards.focus()
        self.show_machine()

    def on_startup_news(self, news: StartupNews) -> None:
        """Detection is complete."""
        if news.machine is not None:
            self.show_machine()

    def show_machine(self) -> None:
        """The machine that is planned for."""
        machine = self.scaler.wizard.machine
        if machine is not None:
            self.query_one("#machine", Static).update(describe(machine))
        self.refresh_title()

    def action_what_if(self) -> None:
        """Into the input."""
        self.query_one("#what-if", Input).focus()

    def action_real(self) -> None:
        """Forget the what-if."""
        self.scaler.wizard.plan_for_this()
        self.show_machine()

    def action_back(self) -> None:
        """Out of the input first, then out of the screen."""
        if self.query_one("#what-if", Input).has_focus:
            self.query_one("#cards").focus()
        else:
            self.app.pop_screen()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Simulate what was typed."""
        event.stop()
        if event.value.strip() and self.scaler.plan_for_card(event.value.strip()):
            self.query_one("#cards").focus()
            self.show_machine()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Simulate the chosen card."""
        event.stop()
        if event.option.id and self.scaler.plan_for_card(event.option.id):
            self.show_machine()
