"""A needle grid as it is measured here against one prompt at a time through `generate`, on the same prompts.

`python -m bench.needles` prints both rates and their ratio per length (budget: at least 2x over the whole grid), and
whether both give the same verdicts; exit code 1 where not. The naive loop is what evaluation scripts usually do: prompt
in, greedy answer out, with transformers' own key-value cache.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

# Before torch: idle threads must not steal the other cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch

from engine.evaluation.haystack import Haystack, HaystackOrder, build, even_depths
from engine.evaluation.haystack_frame import NOTES, Writer
from engine.evaluation.haystack_tasks import NEEDLE
from engine.evaluation.loading import loaded
from engine.evaluation.long_pass import Room
from engine.evaluation.model import LoadedModel
from engine.evaluation.needles import answer
from engine.resources import demo_model_dir

BUDGET = 2.0
LENGTHS = (128, 256, 512, 1024)
DEPTHS = 5
PROMPTS = 4
RUNS = 3


def ours(model: LoadedModel, stacks: list[Haystack]) -> list[bool]:
    """Shared parts once, questions in batches, nothing generated."""
    return [entry.correct for row in answer(model, stacks, Room.on(model.device)) for entry in row]


def naive(model: LoadedModel, stacks: list[Haystack]) -> list[bool]:
    """One prompt after another."""
    verdicts = []
    for stack in stacks:
        for number, question in enumerate(stack.questions):
            ids = stack.prompt(number)
            start = len(stack.shared) + question.scored[0]
            with torch.no_grad():
                said = model.model.generate(
                    torch.tensor([ids[:start]], device=model.device),
                    max_new_tokens=len(ids) - start,
                    do_sample=False,
                    use_cache=True,
                )
            verdicts.append(tuple(said[0].tolist()) == ids)
    return verdicts


def timed(
    measure: Callable[[LoadedModel, list[Haystack]], list[bool]], model: LoadedModel, stacks: list[Haystack]
) -> tuple[float, list[bool]]:
    """Seconds and verdicts."""
    began = time.perf_counter()
    found = measure(model, stacks)
    return time.perf_counter() - began, found


def main() -> int:
    """The demo model on this machine, both ways in turn; 1 below the budget, or when verdicts differ."""
    agreed = True
    with loaded(demo_model_dir()) as model:
        writer = Writer(model.tokenizer, NOTES)
        totals = [0.0, 0.0]
        for length in LENGTHS:
            orders = [HaystackOrder(NEEDLE, length, even_depths(DEPTHS), 0, number) for number in range(PROMPTS)]
            stacks = [stack for order in orders for stack in build(writer, order)]
            prompts = sum(len(stack.questions) for stack in stacks)
            for way in (ours, naive):  # once unmeasured
                way(model, stacks[:1])
            times: tuple[list[float], list[float]] = ([], [])
            verdicts: list[list[bool]] = []
            for _ in range(RUNS):
                for number, way in enumerate((ours, naive)):
                    seconds, found = timed(way, model, stacks)
                    times[number].append(seconds)
                    verdicts.append(found)
            fast, slow = (statistics.median(column) for column in times)
            totals[0] += fast
            totals[1] += slow
            equal = all(found == verdicts[0] for found in verdicts)
            agreed = agreed and equal
            same = "same verdicts" if equal else "VERDICTS DIFFER"
            print(
                f"{length:>5} tokens, {prompts} prompts: {prompts / fast:6.1f} prompts/s, naive {prompts / slow:5.1f}, "
                f"ratio {slow / fast:.1f}x, {same}",
                flush=True,
            )
        ratio = totals[1] / totals[0]
        print(f"needle grid / naive loop: {ratio:.1f}x (budget {BUDGET:g}x), medians of {RUNS}")
    return 0 if agreed and ratio >= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
