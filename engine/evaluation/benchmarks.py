"""lm-eval on the model that is already in memory, adapter, 4 bits and all, with an answer per question.

Owns the wrapping and the reading of lm-eval's results. Must not know which tasks there are (`tasks`) nor what is done
with the figures. Figures are lm-eval's own: the same functions with the same seeds as `lm_eval` on the command line.
Training goes on as if nothing had been asked: random states and the model's mode are put back.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.evaluation.findings import Metric, TaskResult
from engine.evaluation.model import LoadedModel
from engine.evaluation.tasks import FEWSHOT_SEED, Asked
from engine.jobs.benchmark_metrics import by_preference

LOGIT_BYTES = 256 * 1024**2
LARGEST_BATCH = 32
NUMPY_SEED = TORCH_SEED = 1234
PYTHON_SEED = 0
"""lm-eval's own."""
_PLAIN = "none"
"""lm-eval's name for no filter."""


def run_tasks(model: LoadedModel, folder: Path, asked: Asked, limit: int | None) -> tuple[TaskResult, ...]:
    """Ask `model` the first `limit` questions of every task, None for all. `folder` has the model's tokenizer."""
    from lm_eval.evaluator import evaluate

    wrapped = _wrapped(model, folder)
    with model.inference(), model.autocast(), _own_random_states():
        for task in asked.loaded["tasks"].values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        found = evaluate(lm=wrapped, task_dict=asked.loaded, limit=limit, log_samples=True)
    assert found is not None
    return _results(asked, found)


# ── the model as lm-eval calls it ────────────────────────────────────────────────────────────────────────────────
class _Callable:
    """What lm-eval asks of a model. Not the module itself: that would be put into evaluation mode for good, and its
    embeddings tied again."""

    def __init__(self, model: LoadedModel) -> None:
        self.config = model.model.config
        self.device = torch.device(model.device)
        self._model = model.model

    def __call__(self, input_ids: torch.Tensor) -> Any:
        return self._model(input_ids=input_ids, use_cache=False)

    def generate(self, **arguments: Any) -> Any:
        return self._model.generate(**arguments)


def _wrapped(model: LoadedModel, folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return HFLM(pretrained=_Callable(model), tokenizer=tokenizer, batch_size=batch_size(model))


def batch_size(model: LoadedModel) -> int:
    """Rows at once, so that the logits of a full window stay bounded (lm-eval keeps them in float32, and a copy)."""
    row = 8 * max(model.context_length, 1) * model.vocab_size
    return int(min(max(LOGIT_BYTES // row, 1), LARGEST_BATCH))


@contextlib.contextmanager
def _own_random_states() -> Iterator[None]:
    """lm-eval's seeds inside; the states of before are put back."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(PYTHON_SEED)
            np.random.seed(NUMPY_SEED)
            torch.manual_seed(TORCH_SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


# ── reading the results ──────────────────────────────────────────────────────────────────────────────────────────
def _results(asked: Asked, found: Mapping[str, Any]) -> tuple[TaskResult, ...]:
    """Single tasks first, then groups, each in lm-eval's order."""
    higher = found["higher_is_better"]
    single = [_single(name, found["results"][name], found["samples"][name], higher[name]) for name in asked.tasks]
    groups = [
        _group(name, found["results"][name], _members(asked, name), single, higher.get(name) or {})
        for name in asked.groups
        if _metrics(found["results"].get(name, {}), {})
    ]
    return (*single, *groups)


def _single(
    name: str, result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], higher: Mapping[str, bool]
) -> TaskResult:
    metrics = _metrics(result, higher)
    main, answers = _main(metrics, samples, higher)
    return TaskResult(task=name, questions=int(result["sample_len"]), metrics=metrics, main=main, answers=answers)


def _group(
    name: str,
    result: Mapping[str, Any],
    members: tuple[str, ...],
    single: Sequence[TaskResult],
    higher: Mapping[str, bool | None],
) -> TaskResult:
    mains = {task.main for task in single if task.task in members}
    return TaskResult(
        task=name,
        questions=int(result["sample_len"]),
        metrics=_metrics(result, higher),
        members=members,
        main=mains.pop() if len(mains) == 1 else "",
    )


def _members(asked: Asked, group: str) -> tuple[str, ...]:
    return tuple(task.task_name for task in asked.loaded["groups"][group].get_all_tasks())


def _metrics(result: Mapping[str, Any], higher: Mapping[str, bool | None]) -> tuple[Metric, ...]:
    """lm-eval's keys are "metric,filter", and "metric_stderr,filter" for the error."""
    found = []
    for key, value in result.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = result.get(f"{name}_stderr,{filtered}")
        named = name if filtered == _PLAIN else key
        known = float(error) if isinstance(error, (int, float)) and not math.isnan(error) else None
        found.append(Metric(name=named, value=float(value), standard_error=known, higher_is_better=higher.get(name)))
    return tuple(found)


def _main(
    metrics: Sequence[Metric], samples: Sequence[Mapping[str, Any]], higher: Mapping[str, bool]
) -> tuple[str, dict[int, float]]:
    """The metric that is a mean of right answers, and each answer."""
    names = by_preference([metric.name for metric in metrics])
    values = {metric.name: metric.value for metric in metrics}
    for name in names:
        plain, _, filtered = name.partition(",")
        if not higher.get(plain, False):
            continue
        answers = {
            int(sample["doc_id"]): float(sample[plain])
            for sample in samples
            if sample["filter"] == (filtered or _PLAIN) and isinstance(sample.get(plain), (int, float))
        }
        shares = answers and all(0.0 <= value <= 1.0 for value in answers.values())
        if shares and abs(sum(answers.values()) / len(answers) - values[name]) < 1e-6:
            return name, answers
    return "", {}
