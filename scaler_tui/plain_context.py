"""The longer-window part of the plain wizard: length, method (the race as sentences), training, who reads the result.

Owns those prompts. The same choices, figures and words as the full-screen wizard; everything can be spoken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs.heat_grid import depth_words, heat_grid, percent
from engine.jobs.race_lines import Line, RaceDecided, RaceRow, SearchDone, SearchStep
from engine.jobs.spec_context import AUTO
from scaler_tui.prompts import choose, read, say
from scaler_tui.race_process import follow
from scaler_tui.race_state import RaceState
from scaler_tui.race_table import perplexity_text
from scaler_tui.window import TRAININGS, RaceKey, keep_factors, trained
from scaler_tui.window_choices import Option, figures_words, length_options, method_options, training_options
from scaler_tui.window_facts import SEARCHED, WindowFacts, reader_lines, window_facts

if TYPE_CHECKING:
    from scaler_tui.wizard import Wizard

EVERY_EVALUATIONS = 10
"""A sentence about the search each so many."""


def choose_window(wizard: Wizard) -> None:
    """Have length, method and training chosen; the wizard keeps them. Raises Back, Left, EngineError."""
    facts = _facts(wizard)
    _choose_length(wizard, facts)
    while True:
        facts = _facts(wizard)
        if not _choose_method(wizard, facts):
            continue
        break
    _choose_training(wizard)
    say()
    say("Who reads the result.")
    for line in reader_lines(_facts(wizard), wizard.window_choice.method):
        silent = " It says nothing about it." if line.silent else ""
        say(f"  {line.program}, {line.verdict}: {line.words.rstrip('.')}.{silent}")


def _facts(wizard: Wizard) -> WindowFacts:
    factors = RaceKey(wizard.model_source, wizard.window_length, SEARCHED).factors
    return window_facts(wizard.model_source, wizard.window_length, str(factors) if factors.is_file() else "")


def _spoken(option: Option) -> str:
    parts = [option.title, option.brief, option.words]
    if option.why_not:
        parts.append(f"not possible: {option.why_not}")
    elif option.figures:
        parts.append(option.figures)
    said = list(dict.fromkeys(part.rstrip(".") for part in parts if part))
    return ". ".join(said) + "."


def _pick(prompt: str, options: tuple[Option, ...], suggested: str) -> str:
    """The value of an option that can be chosen."""
    values = [option.value for option in options]
    number = values.index(suggested) + 1 if suggested in values else 1
    while True:
        option = options[choose(prompt, [_spoken(option) for option in options], suggested=number) - 1]
        if not option.why_not:
            return option.value
        say(f"  {option.title} is not possible: {option.why_not}")


def _choose_length(wizard: Wizard, facts: WindowFacts) -> None:
    from engine.advise.questions import load_graph, parse_answer

    say()
    say(f"How many tokens must {wizard.model_source} read at once? Its window is {facts.original:,}.")
    options = length_options(facts.original, wizard.window_length)
    for number, option in enumerate(options, 1):
        say(f"  {number}. {_spoken(option)}")
    values = [option.value for option in options]
    suggested = values.index(str(wizard.window_length)) + 1
    while True:
        line = read(f"Number of the list, or tokens [{suggested}]: ") or str(suggested)
        try:
            known = line.isdecimal() and 1 <= int(line) <= len(values)
            text = values[int(line) - 1] if known else line.removeprefix("=")
            length = int(parse_answer(load_graph().question("context"), text))
            window_facts(wizard.model_source, length)
        except EngineError as error:
            say("  " + " ".join(part for part in (error.what, error.cause, error.next_step) if part))
            continue
        wizard.window.choice = replace(wizard.window.choice, length=length)
        return


def _choose_method(wizard: Wizard, facts: WindowFacts) -> bool:
    """False when something was measured meanwhile, so that it is asked again with the figures."""
    key = RaceKey(wizard.model_source, facts.target)
    race = wizard.window.race(key)
    options = list(method_options(facts, race, "choose Search factors now"))
    extra = [
        Option("measure", "Measure them now", "every method that needs no search, untrained; Ctrl+C stops"),
        Option("search", "Search factors now", "for LongRoPE2; Ctrl+C stops, and it goes on from there"),
    ]
    say()
    won = race.decided.method if race.decided is not None else ""
    suggested = won or wizard.window.choice.method
    chosen = _pick("Which method", (*options, *extra), suggested)
    if chosen == "measure":
        _measure(key, race)
        return False
    if chosen == "search":
        _search(replace(key, method=SEARCHED))
        return False
    wizard.window.choice = replace(wizard.window.choice, method=chosen)
    if chosen == AUTO and not won:
        say("  The run measures every method that needs no search first and takes the best.")
    return True


def _measure(key: RaceKey, race: RaceState) -> None:
    told: set[str] = set()

    def show(line: Line) -> None:
        race.take([line])
        if isinstance(line, RaceRow) and line.complete and line.method not in told:
            told.add(line.method)
            say(
                f"  {line.method}: {line.problem or figures_words(race, line.method, key.target)}.{_depths(race, line)}"
            )
        elif isinstance(line, RaceDecided):
            winner = f"{line.method} wins. " if line.method else ""
            say(f"  {winner}{line.reason} Rule: {line.rule}")

    say("  Measuring. One line per method.")
    _tell(follow(key, show))


def _depths(race: RaceState, row: RaceRow) -> str:
    """The heat map's last column in words: where at the longest length answers are lost."""
    grid = heat_grid(row.report.needles)
    if grid is None:
        return ""
    cells = [(depth, cells[-1]) for depth, cells in zip(grid.depths, grid.rows, strict=True)]
    lost = [
        f"{percent(cell.accuracy)} % at depth {depth_words(depth)}" for depth, cell in cells if cell and cell.level < 4
    ]
    return f" At {grid.lengths[-1]:,} tokens: {', '.join(lost)}." if lost else ""


def _search(key: RaceKey) -> None:
    race = RaceState()

    def show(line: Line) -> None:
        race.take([line])
        if isinstance(line, SearchStep) and line.evaluation % EVERY_EVALUATIONS == 0:
            say(f"  Evaluation {line.evaluation}: best score {line.best:.4f}.")
        elif isinstance(line, SearchDone):
            keep_factors(key, line)
            both = ""
            if line.needle_nll is not None and line.perplexity is not None:
                both = f" Needles {line.needle_nll:.3f} nats, perplexity {perplexity_text(line.perplexity)}."
            say(f"  Found: score {line.best:.4f}, the best it began with {line.best_seed:.4f}.{both}")

    say("  Searching.")
    _tell(follow(key, show))


def _tell(error: EngineError | None) -> None:
    if error is not None:
        say("  " + " ".join(text for text in (error.what, error.cause, error.next_step) if text))


def _choose_training(wizard: Wizard) -> None:
    window = wizard.window
    rows = {how: wizard.window_row(trained(window.choice, how)) for how in TRAININGS}
    options = training_options({how: row for how, row in rows.items() if row is not None})
    say()
    window.train(_pick("How is it trained", options, window.training() or wizard.gentlest_window))
