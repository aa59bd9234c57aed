"""The job that a probe tries: the worker's own model and data, or the nearest that can be had without them.

Owns building both. With the model's weights everything is loaded by the worker's code; without, layers of the real kind
are filled with random values. Rows are the job's own where its file and tokenizer are here. Must not know steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch

from engine.data.load import resolve_file
from engine.data.rows import EncodedRow, RowKind
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.answers import Question
from engine.evaluation.model import LoadedModel
from engine.jobs.probes import ProbeRequest
from engine.train.environment import Device, seed_everything

RANDOM_ROWS = 64
RANDOM_QUESTIONS = 4
PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained on, measured on and asked."""

    train: tuple[EncodedRow, ...]
    heldout: tuple[EncodedRow, ...]
    base_text: tuple[EncodedRow, ...]
    questions: tuple[Question, ...]
    tokenizer: ChatTokenizer
    real: bool

    def cut(self, length: int) -> tuple[EncodedRow, ...]:
        """The training rows cut to `length` tokens; those without a trained token left are dropped."""
        rows = (
            row
            if len(row.input_ids) <= length
            else replace(row, input_ids=row.input_ids[:length], trained=row.trained[:length])
            for row in self.train
        )
        kept = tuple(row for row in rows if any(row.trained[1:]))
        return kept or (random_row(length, 256, random.Random(0)),)


class _NoTokenizer:
    """Stands in where a model has none: random tokens need no text."""

    pad_id = 0
    eos_id: int | None = None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The numbers."""
        return " ".join(map(str, ids))


def prepare_rows(request: ProbeRequest) -> Rows:
    """The job's own rows, or random ones of full length. Raises EngineError for data that a run would refuse."""
    folder = Path(request.folder) if request.folder else None
    section = request.spec.data
    if folder is not None and (folder / "tokenizer.json").is_file() and resolve_file(section.train, "train").is_file():
        from engine.data.load import prepare
        from engine.train.questions import card_questions

        data = prepare(section, folder)
        questions = card_questions(request.spec, data)
        return Rows(data.train, data.heldout, data.base_text, questions, data.tokenizer, real=True)
    return _random_rows(request)


def _random_rows(request: ProbeRequest) -> Rows:
    draw = random.Random(request.spec.training.seed)
    vocabulary = int(request.rehearsal.config.get("vocab_size") or 256)
    length = request.spec.data.max_length
    rows = tuple(random_row(length, vocabulary, draw) for _ in range(RANDOM_ROWS))
    prompt = min(PROMPT_TOKENS, length)
    questions = tuple(Question("", row.input_ids[:prompt]) for row in rows[:RANDOM_QUESTIONS])
    return Rows(rows, rows[:8], (), questions, cast(ChatTokenizer, _NoTokenizer()), real=False)


def random_row(length: int, vocabulary: int, draw: random.Random) -> EncodedRow:
    """A row in which every token but the first carries loss."""
    ids = tuple(draw.randrange(vocabulary) for _ in range(length))
    return EncodedRow(ids, (False,) + (True,) * (length - 1), 0, RowKind.TEXT)


# ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────────
def load_whole(request: ProbeRequest, rows: Rows, device: Device) -> LoadedModel:
    """As the worker loads it. Raises EngineError `train.*`."""
    from engine.train import model as models

    spec = request.spec
    models.check_hardware(spec, device)
    base = models.load_base(models.base_request(spec, Path(request.folder), device))
    seed_everything(spec.training.seed)
    model = models.add_adapter(base, spec.adapter, extras=models.extras_of(spec))
    return models.ready(model, base, rows.tokenizer, device)


def build_cut(request: ProbeRequest, rows: Rows, device: Device, depth: int) -> LoadedModel:
    """`depth` layers with random weights, really packed where the job packs them. Raises EngineError `rehearsal.*`."""
    from engine.rehearsal.real_model import real_model
    from engine.train import model as models

    models.check_hardware(request.spec, device)
    width = 2 if device.compute_dtype == torch.bfloat16 else 4
    rehearsal = msgspec.structs.replace(
        request.rehearsal, config=shallow(request.rehearsal.config, depth), compute_bytes=width
    )
    seed_everything(request.spec.training.seed)
    model, base = real_model(rehearsal, torch.device(device.torch_device))
    return models.ready(model, base, rows.tokenizer, device)


def shallow(config: dict[str, Any], depth: int) -> dict[str, Any]:
    """The config with `depth` layers, per-layer lists cut with it."""
    tree = dict(config)
    whole = 0
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if name in tree:
            whole = int(tree[name])
            tree[name] = depth
    if not whole:
        raise EngineError(
            "probe.layers",
            "The model's config does not say how many layers it has, so it cannot be tried in part.",
            next_step="Download the weights first, or use --dry-run.",
        )
    return {
        name: value[:depth] if isinstance(value, list) and len(value) == whole else value
        for name, value in tree.items()
    }


def state_bytes(model: torch.nn.Module) -> int:
    """Exact bytes of weights, adapter and gradients as they are now, scales of packed layers included."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        if parameter.grad is not None:
            total += parameter.grad.numel() * parameter.grad.element_size()
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            for name in ("absmax", "code"):
                tensor = getattr(state, name, None)
                total += tensor.numel() * tensor.element_size() if tensor is not None else 0
            state = getattr(state, "state2", None)
    for buffer in model.buffers():
        total += buffer.numel() * buffer.element_size()
    return total
