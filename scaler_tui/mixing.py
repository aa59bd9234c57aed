"""Choosing a mix of adapters: which, with which weights, how; and what each was measured at. No widgets here.

Owns the choice and the measurements that belong to it. Must not know how updates are mixed or measured: the process of
`scaler_tui.mix_process` scores, the `adapters` command writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import EngineError
from engine.jobs.spec_mix import MixedAdapter, MixMethod, MixSection, Signs
from scaler_tui.spec_results_text import ELECTS, TRIMS

if TYPE_CHECKING:
    from engine.jobs.mix_lines import AskedMix, Scored, Scorer
    from engine.jobs.spec import JobSpec

STEP, LARGE_STEP = 0.05, 0.25
LOWEST, HIGHEST = -1.0, 2.0
"""Ends of a slider; what is typed may lie beyond, up to WIDEST."""
WIDEST = 100.0
DENSITY_STEP = 0.05
MOST_LOADED = 16
"""Adapters that are scored together: as many as a sweep searches."""
LONGEST_NAME = 60
"""Of what is written."""
SETTINGS = ("method", "density", "signs", "rank")
PLAIN = MixSection()
"""How an adapter is measured alone: as it is."""

Choice = TypeVar("Choice")
Key = tuple[tuple[float, ...], MixSection]


@dataclass(frozen=True, slots=True)
class Listed:
    """An adapter that can be chosen, or why it cannot."""

    name: str
    folder: Path
    base: str = ""
    """As it names it, in short."""
    base_folder: str = ""
    """Where that is on this machine; "" where it is not."""
    words: str = ""
    """ "LoRA, rank 16"."""
    size_bytes: int = 0
    run: str = ""
    why_not: str = ""

    def why_not_with(self, base: str) -> str:
        """Why it cannot join a mix on `base`; "" where it can."""
        if self.why_not or not base or self.base_folder == base:
            return self.why_not
        return f"It belongs to another base: {self.base}."


@dataclass(slots=True)
class Mixing:
    """The choice. `weights` has an entry for every adapter that is in."""

    listed: list[Listed] = field(default_factory=list)
    weights: dict[Path, float] = field(default_factory=dict)
    mix: MixSection = PLAIN
    seed: int = 17
    data: str = ""
    known: dict[Key, float] = field(default_factory=dict)
    """Losses, by weights in the order of `loaded`."""
    loaded: tuple[Path, ...] = ()
    """What the scoring process holds."""
    scorer: Scorer | None = None
    asked: AskedMix | None = None
    """Not answered yet."""
    fitted: bool = False
    """The weights were searched on the rows that they are scored on."""
    refused: str = ""
    """Why the present mix cannot be measured."""
    _next_id: int = 1

    # ── who is in ────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def chosen(self) -> list[Listed]:
        """In the order of the list."""
        return [one for one in self.listed if one.folder in self.weights]

    @property
    def base(self) -> str:
        """The folder under those that are in; "" before any is."""
        return next((one.base_folder for one in self.chosen), "")

    def of(self, folder: Path) -> Listed:
        """By its folder."""
        return next(one for one in self.listed if one.folder == folder)

    def toggle(self, one: Listed) -> str:
        """In or out; returns why not."""
        if one.folder in self.weights:
            del self.weights[one.folder]
            return ""
        why = one.why_not_with(self.base)
        if not why:
            self.weights[one.folder] = 1.0
        return why

    def add(self, one: Listed, *, inside: bool = True) -> None:
        """From a typed folder; in at once where it can be, unless that has to wait."""
        if all(other.folder != one.folder for other in self.listed):
            self.listed.append(one)
        if inside and one.folder not in self.weights:
            self.toggle(one)

    def wanted(self) -> tuple[Path, ...]:
        """What the scoring process should hold: what is in, and as many more of the same base as it takes, so that
        putting one in costs no loading."""
        base = self.base
        if not base:
            return ()
        inside = [one.folder for one in self.chosen]
        more = [one.folder for one in self.listed if one.folder not in inside and not one.why_not_with(base)]
        return tuple(sorted((*inside, *more)[:MOST_LOADED], key=[one.folder for one in self.listed].index))

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────
    def shift(self, folder: Path, by: float) -> None:
        """A slider, to a multiple of its step; one that lies beyond an end only comes back."""
        if folder in self.weights:
            now = self.weights[folder]
            moved = round((now + by) / STEP) * STEP
            moved = min(moved, max(HIGHEST, now)) if by > 0 else max(moved, min(LOWEST, now))
            self.weights[folder] = round(moved, 4) + 0.0

    def put(self, folder: Path, text: str) -> None:
        """A typed weight of one that is in. Raises EngineError `adapter.weights`."""
        if folder not in self.weights:
            raise EngineError(
                "adapter.weights", "That adapter is not in the mix.", next_step="Space puts the pointed one in."
            )
        self.weights[folder] = typed_number(text, -WIDEST, WIDEST)

    def change(self, setting: str, by: int) -> None:
        """One of SETTINGS, a step on."""
        mix = self.mix
        if setting == "method":
            self.mix = replace_mix(mix, method=_next(tuple(MixMethod), mix.method, by))
            if self.mix.method is MixMethod.SVD and not self.mix.rank:
                self.mix = replace_mix(self.mix, rank=16)
        elif setting == "signs":
            self.mix = replace_mix(mix, signs=_next(tuple(Signs), mix.signs, by))
        elif setting == "density":
            density = round(min(max(mix.density + by * DENSITY_STEP, DENSITY_STEP), 1.0), 2)
            self.mix = replace_mix(mix, density=density)
        else:
            self.mix = replace_mix(mix, rank=_next_rank(mix.rank, by))

    def type_setting(self, setting: str, text: str) -> None:
        """A typed density or rank. Raises EngineError `adapter.weights`."""
        if setting == "density":
            self.mix = replace_mix(self.mix, density=typed_number(text, 0.01, 1.0))
        elif setting == "rank":
            rank = typed_number(text, 0, 65536)
            if rank != int(rank):
                raise EngineError(
                    "adapter.weights", f"A rank is a whole number; {rank:g} is none.", next_step="Type one such as 16."
                )
            self.mix = replace_mix(self.mix, rank=int(rank))

    def why_idle(self, setting: str) -> str:
        """Why a setting changes nothing now; "" where it does."""
        if setting == "density" and self.mix.method not in TRIMS:
            return "only of ties, dare and magnitude"
        if setting == "signs" and self.mix.method not in ELECTS:
            return "only of ties"
        return ""

    # ── measurements ─────────────────────────────────────────────────────────────────────────────────────────────
    def began(self, loaded: tuple[Path, ...]) -> None:
        """A process with these adapters was started; earlier figures are of other vectors."""
        self.loaded, self.scorer, self.asked, self.refused = loaded, None, None, ""
        self.known.clear()

    @property
    def vector(self) -> tuple[float, ...]:
        """Weights of all that are loaded, 0 for those that are out."""
        return tuple(self.weights.get(folder, 0.0) for folder in self.loaded)

    def alone(self, folder: Path) -> tuple[float, ...]:
        """One of them at weight 1."""
        return tuple(float(one == folder) for one in self.loaded)

    def score(self) -> float | None:
        """Of the present mix; None while it is measured."""
        return self.known.get((self.vector, self.mix))

    def base_score(self) -> float | None:
        """Of the base alone."""
        return self.known.get(((0.0,) * len(self.loaded), PLAIN))

    def score_alone(self, folder: Path) -> float | None:
        """Of one adapter as it is."""
        return self.known.get((self.alone(folder), PLAIN))

    def best_alone(self) -> tuple[str, float] | None:
        """(name, loss) of the best of those that are in; None until each of them is measured."""
        chosen = self.chosen
        found = [(one.name, loss) for one in chosen if (loss := self.score_alone(one.folder)) is not None]
        return min(found, key=lambda pair: pair[1]) if found and len(found) == len(chosen) else None

    def next_wish(self) -> AskedMix | None:
        """What is to be measured now: the mix as it is, then the base and each adapter that is in. None where nothing
        is left, or what is at work is what is wanted."""
        from engine.jobs.mix_lines import AskedMix

        if self.scorer is None or not self.weights:
            return None
        wishes: list[Key] = [] if self.refused else [(self.vector, self.mix)]
        wishes.append(((0.0,) * len(self.loaded), PLAIN))
        wishes += [(self.alone(one.folder), PLAIN) for one in self.chosen]
        missing = [wish for wish in wishes if wish not in self.known]
        if not missing:
            return None
        if self.asked is not None and (self.asked.weights, self.asked.mix) in (missing[0], *_behind(missing, wishes)):
            return None
        self.asked = AskedMix(id=self._next_id, weights=missing[0][0], mix=missing[0][1], seed=self.seed)
        self._next_id += 1
        return self.asked

    def heard(self, answer: Scored) -> None:
        """A figure came."""
        if self.asked is not None and self.asked.id == answer.id:
            self.known[(self.asked.weights, self.asked.mix)] = answer.loss
            self.asked = None

    def gave_up(self, wish_id: int, why: str = "") -> None:
        """It was dropped, or refused for a reason."""
        if self.asked is not None and self.asked.id == wish_id:
            self.refused = why or self.refused
            self.asked = None

    def changed(self) -> None:
        """Weights or settings are others now."""
        self.refused = ""

    # ── what it becomes ──────────────────────────────────────────────────────────────────────────────────────────
    def mixed(self) -> list[tuple[Listed, float]]:
        """What has a part in it. Raises EngineError `adapter.mix`."""
        found = [(one, self.weights[one.folder]) for one in self.chosen if self.weights[one.folder]]
        if not found:
            raise EngineError(
                "adapter.mix",
                "No adapter is in the mix.",
                next_step="Space puts the pointed one in; its weight must not be 0.",
            )
        return found

    def words(self) -> list[str]:
        """Adapters, weights and method as the `adapters mix` command takes them. Raises EngineError `adapter.mix`."""
        found = [f"{one.folder}={weight:g}" for one, weight in self.mixed()]
        mix = self.mix
        found += ["--method", mix.method.value, "--seed", str(self.seed)]
        found += ["--density", f"{mix.density:g}"] if mix.method in TRIMS else []
        found += ["--signs", mix.signs.value] if mix.method in ELECTS else []
        found += ["--rank", str(mix.rank)] if mix.rank else []
        return [*found, "--base", self.base]

    def spec(self) -> JobSpec:
        """The same as a job. Raises EngineError `adapter.mix`."""
        from engine.jobs.spec import DataSection, JobSpec, ModelSection, Task, TrainingSection

        adapters = tuple(
            MixedAdapter(path=str(one.folder), weight=weight, name=one.name[:80]) for one, weight in self.mixed()
        )
        heldout = self.data or (self.scorer.data if self.scorer is not None else "")
        data = DataSection(heldout=heldout) if heldout else DataSection()
        return JobSpec(
            name="mix",
            task=Task.MIX,
            model=ModelSection(source=self.base),
            adapters=adapters,
            mix=self.mix,
            data=data,
            training=TrainingSection(seed=self.seed),
        )

    def name(self) -> str:
        """For what is written, as a file's name: "mix-of-facts-and-tone"; with many or long names their number."""
        from engine.export.order import file_name

        names = [file_name(one.name) for one in self.chosen]
        whole = "mix-of-" + "-and-".join(names)
        return whole if len(whole) <= LONGEST_NAME else f"mix-of-{len(names)}-adapters"


def replace_mix(mix: MixSection, **changes: Any) -> MixSection:
    """[mix] with other values."""
    import msgspec

    return msgspec.structs.replace(mix, **changes)


def typed_number(text: str, lowest: float, highest: float) -> float:
    """Raises EngineError `adapter.weights`."""
    try:
        number = float(text.strip().replace(",", "."))
    except ValueError:
        number = float("nan")
    if not lowest <= number <= highest:
        raise EngineError(
            "adapter.weights",
            f"'{text.strip()[:20]}' is no number from {lowest:g} to {highest:g}.",
            next_step="Type one such as 0.5 or -1.",
        )
    return round(number, 4) + 0.0


def _next(values: Sequence[Choice], value: Choice, by: int) -> Choice:
    return values[(values.index(value) + by) % len(values)]


def _next_rank(rank: int, by: int) -> int:
    """0, 1, 2, 4 ... 4096."""
    ranks = (0, *(1 << place for place in range(13)))
    if rank in ranks:
        return ranks[min(max(ranks.index(rank) + by, 0), len(ranks) - 1)]
    above = [one for one in ranks if one > rank] or [ranks[-1]]
    return above[0] if by > 0 else max(one for one in ranks if one < rank)


def _behind(missing: list[Key], wishes: list[Key]) -> list[Key]:
    """Wishes that may go on although another is next: where the mix itself is known, any of the rest."""
    return missing if wishes[0] not in missing else []
