"""Recipes: ready settings per use case and card class, each value with its reason and source.

Owns the shape of `profiles/recipes/*.toml` and the choice among them. Must not know whether a setting fits: `fit` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import msgspec

from engine.advise.answers import Answers
from engine.errors import EngineError
from engine.hardware.machine import Machine
from engine.models.architecture import Architecture
from engine.profiles import load_toml
from engine.resources import profiles_dir
from engine.units import GIB

SettingValue = bool | int | float | str | list[str]


class CardClass(StrEnum):
    """Cards by memory; keys of the `[card.*]` tables."""

    CPU = "cpu"
    GB8 = "8gb"
    GB16 = "16gb"
    """12 to 16 GB."""
    GB24 = "24gb"
    """24 to 32 GB."""
    GB80 = "80gb"
    """40 GB and more."""


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One value with why and from where."""

    value: SettingValue
    reason: str
    source: str


class _RecipeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    title: str
    goals: tuple[str, ...]
    base: dict[str, Setting]
    card: dict[CardClass, dict[str, Setting]] = {}
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of one use case on one card class."""

    id: str
    title: str
    card_class: CardClass
    settings: dict[str, Setting]

    def number(self, key: str) -> float:
        """A numeric setting."""
        value = self._of(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise EngineError("recipe.value", f"Recipe '{self.id}': '{key}' is no number.")
        return float(value)

    def number_or(self, key: str, otherwise: float) -> float:
        """A numeric setting that only some recipes have."""
        return self.number(key) if key in self.settings else otherwise

    def whole(self, key: str) -> int:
        """A whole-number setting."""
        return round(self.number(key))

    def flag(self, key: str) -> bool:
        """A yes/no setting."""
        return bool(self._of(key))

    def text(self, key: str) -> str:
        """A word setting."""
        return str(self._of(key))

    def names(self, key: str) -> tuple[str, ...]:
        """A list setting."""
        value = self._of(key)
        return tuple(value) if isinstance(value, list) else (str(value),)

    def _of(self, key: str) -> SettingValue:
        if key not in self.settings:
            raise EngineError("recipe.missing", f"Recipe '{self.id}' has no '{key}'.")
        return self.settings[key].value


def card_class_of(memory_bytes: int | None) -> CardClass:
    """The class of a card with that much memory; None is a machine without a GPU."""
    if memory_bytes is None:
        return CardClass.CPU
    size = memory_bytes / GIB
    for limit, card_class in ((11.2, CardClass.GB8), (17, CardClass.GB16), (34, CardClass.GB24)):
        if size < limit:
            return card_class
    return CardClass.GB80


@lru_cache(maxsize=1)
def load_recipes() -> tuple[_RecipeFile, ...]:
    """Every recipe file, by name. Raises EngineError when one is wrong."""
    paths = sorted((profiles_dir() / "recipes").glob("*.toml"))
    if not paths:
        raise EngineError("recipe.none", f"No recipes in {profiles_dir() / 'recipes'}.", next_step="Reinstall.")
    return tuple(load_toml(path, _RecipeFile, what="recipe") for path in paths)


def choose_recipe(
    answers: Answers, machine: Machine, architecture: Architecture, *, longer: bool = False, taught: bool = False
) -> Recipe:
    """The recipe for the goal on the machine's card class; the demo and very small models have their own.

    `longer`: a longer window is trained, whatever the goal is; `taught`: from a teacher.
    """
    card_class = card_class_of(max((gpu.vram_bytes for gpu in machine.gpus), default=None))
    tiny = architecture.parameters < 20_000_000
    if answers.trains_on_text and not longer:
        return _recipe(answers.goal, TINY_TEXT if tiny else LARGE_TEXT, card_class)
    if longer:
        return _recipe(LONG_GOAL, TINY_LONG if tiny else answers.model, card_class)
    if taught:
        return _recipe(TAUGHT_GOAL, TINY_TAUGHT if tiny else answers.model, card_class)
    return _recipe(answers.goal, "demo" if tiny else answers.model, card_class)


LONG_GOAL = "long-documents"
TINY_LONG = "demo-long"
TAUGHT_GOAL, TINY_TAUGHT = "from-teacher", "distillation-demo"
LARGE_TEXT, TINY_TEXT = "large-text", "large-text-demo"
"""As `models` of a recipe name it."""


@lru_cache(maxsize=64)
def _recipe(goal: str, model: str, card_class: CardClass) -> Recipe:
    files = load_recipes()
    chosen = next((file for file in files if model in file.models), None)
    chosen = chosen or next((file for file in files if goal in file.goals), files[0])
    return Recipe(chosen.id, chosen.title, card_class, {**chosen.base, **chosen.card.get(card_class, {})})
