"""What was found on this machine, from which source, and planning for another card instead.

Owns the list of cards and the what-if input. Must not probe anything: it shows the Machine it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from engine.hardware.label import card_details
from engine.hardware.machine import Machine
from engine.units import format_bytes, format_range, format_usd
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import FramedScreen

QUIET = "$foreground 75%"


def describe(machine: Machine, *, notes: bool = True) -> Content:
    """The machine as lines, every figure with its source. Without `notes` problems are counted only."""
    lines: list[list[str | tuple[str, str]]] = []

    def line(label: str, text: str, quiet: str = "") -> None:
        lines.append([(f"{label:<7}", "bold"), text, (f"  {quiet}" if quiet else "", QUIET)])

    for gpu in machine.gpus:
        free = f"{format_bytes(gpu.free_vram_bytes)} free of {format_bytes(gpu.vram_bytes)}"
        line(f"GPU {gpu.index}", f"{gpu.name}: {free}", f"[{gpu.source}]")
        if details := card_details(gpu):
            line("", details)
    if not machine.gpus:
        line("GPU", "none found; fine: small models train on the CPU, or plan for a card")
    if len(machine.gpus) > 1:
        line("", "Each card is counted by itself; memory is not added up.")
    line("CPU", f"{machine.cpu.name}, {machine.cpu.cores} cores")
    ram = machine.ram
    line("RAM", f"{format_bytes(ram.available_bytes)} available of {format_bytes(ram.total_bytes)}", f"[{ram.source}]")
    for disk in machine.disks:
        line("Disk", f"{format_bytes(disk.free_bytes)} free for {disk.purpose}", disk.path)
    if notes:
        if machine.libraries:
            line("Libs", ", ".join(f"{name} {version or 'missing'}" for name, version in machine.libraries.items()))
        for problem in machine.problems:
            line("Note", f"{problem.where}: {problem.what} {problem.next_step}")
    elif machine.problems:
        count = len(machine.problems)
        line("Notes", f"{count} {'thing' if count == 1 else 'things'} to know: see This machine")
    return Content("\n").join(Content.assemble(*parts) for parts in lines)


class HardwareScreen(FramedScreen):
    """Found above, what-if below."""

    place = "this machine"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "plan", "Plan for this card"),
        Binding("b,escape,left,backspace", "back", "Back", key_display="b"),
        Binding("w,t", "what_if", "Type a card", priority=True),
        Binding("x", "real", "The real machine", tooltip="Give up the what-if: plan for the real machine"),
    ]

    def body(self) -> Iterable[Widget]:
        """Description, input, list of cards."""
        with VerticalScroll(id="machine-scroll", can_focus=False):
            yield Static("Looking at the machine ...", id="machine", markup=False)
        yield Static("Plan for another card (SIM): choose one, or type it (w).", id="what-if-label")
        yield Input(placeholder="RTX 4090, 2x24G, 2x RTX 3090 ...", id="what-if", compact=True)
        yield OptionList(id="cards", compact=True)

    def on_mount(self) -> None:
        """Fill the list of known cards."""
        from engine.hardware.gpu_profiles import load_gpu_profiles

        cards = self.query_one("#cards", OptionList)
        options = []
        for profile in load_gpu_profiles():
            low, high = profile.rent_low_usd_per_hour, profile.rent_high_usd_per_hour
            rent = ""
            if low is not None and high is not None:
                rent = f"  rent {format_range(format_usd(low), format_usd(high))} an hour"
            memory = f"{format_bytes(profile.vram_bytes):>9}"
            line = Content.assemble(f"{profile.name:<24}{memory}", (rent, QUIET))
            options.append(Option(line, id=profile.name))
        cards.add_options(options)
        cards.highlighted = 0
        self.set_focus(cards)
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
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The real machine is offered while another one is planned for."""
        machine = self.scaler.wizard.machine
        if action == "what_if":
            return self.is_mounted and not self.query_one("#what-if", Input).has_focus
        return machine is not None and machine.simulated if action == "real" else True

    def action_plan(self) -> None:
        """Enter on the list."""
        self.query_one("#cards", OptionList).action_select()

    def action_what_if(self) -> None:
        """Into the input."""
        self.set_focus(self.query_one("#what-if", Input))  # at once: the next letter belongs into it

    def action_real(self) -> None:
        """Forget the what-if."""
        self.scaler.wizard.plan_for_this()
        self.show_machine()

    def action_back(self) -> None:
        """Out of the input first, then out of the screen."""
        if self.query_one("#what-if", Input).has_focus:
            self.set_focus(self.query_one("#cards"))
        else:
            self.app.pop_screen()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Simulate what was typed."""
        event.stop()
        if event.value.strip() and self.scaler.plan_for_card(event.value.strip()):
            self.set_focus(self.query_one("#cards"))
            self.show_machine()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Simulate the chosen card."""
        event.stop()
        if event.option.id and self.scaler.plan_for_card(event.option.id):
            self.show_machine()
