"""A teacher in memory and what the trainer asks it: loaded in a form, made to know things, given an objective.

Owns what a job and a probe of it share. Must not know attempts, journals or caches (`engine.train.teaching`), nor how a
loss is computed (`engine.distill`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.data.tokenizer import ChatTokenizer
from engine.distill.hidden import LayerEar, compared_layers, decoder_layers, width_of
from engine.distill.knowledge import Knowledge
from engine.distill.losses import Divergence
from engine.distill.objective import Objective, Weights
from engine.distill.onpolicy import Writing
from engine.distill.streaming import LayerStream
from engine.distill.teacher import ModelTeacher, Says, own_teacher
from engine.distill.uld import UldKnowledge, uld_loss
from engine.errors import EngineError, ExitCode
from engine.evaluation.model import LoadedModel
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import DistillationSection, Held, Tokenizers
from engine.train import model as models
from engine.train.environment import Device
from engine.train.found_teacher import FoundTeacher
from engine.train.taught_steps import Batching, TaughtSteps, Written


def load_teacher(
    found: FoundTeacher, held: Held, device: Device, section: DistillationSection, tokenizer: ChatTokenizer
) -> LoadedModel:
    """Frozen and in evaluation mode; `tokenizer`: the student's, which the teacher shares unless the section says
    otherwise. On a CPU offloaded is the same as resident. Raises EngineError `train.model_not_loaded`."""
    streams = held is Held.OFFLOADED and device.is_cuda
    request = models.BaseRequest(
        found.folder,
        "nf4" if held is Held.NF4 else "none",
        True,
        device.compute_dtype,
        "cpu" if streams else device.torch_device,
    )
    base = models.load_base(request)
    model = base if found.adapter is None else _with_adapter(base, found)
    model.eval()
    if streams:
        LayerStream(model, decoder_layers(model), device.torch_device)
    own_words = ChatTokenizer.load(found.folder) if section.tokenizers is Tokenizers.ULD else tokenizer
    return models.ready(model, base, own_words, device)


def knowledge_of_own(
    section: DistillationSection, found: FoundTeacher, student: LoadedModel
) -> tuple[Knowledge, LayerEar | None]:
    """What the student's own base knows, and what hears the student's layers where hidden states are compared."""
    depth = len(decoder_layers(student.model))
    ear = _ear(section, student, compared_layers(section.hidden_layers, depth, depth)[0])
    return own_teacher(student, says_of(section, found, section.top_k), ear), ear


def knowledge_of(
    section: DistillationSection, found: FoundTeacher, student: LoadedModel, teacher: LoadedModel
) -> tuple[Knowledge, LayerEar | None]:
    """What `teacher` knows, and what hears the student's layers. Raises EngineError `distill.other_width`."""
    if section.tokenizers is Tokenizers.ULD:
        return UldKnowledge(ModelTeacher(teacher, Says()), student.tokenizer), None
    own, theirs = _compared(section, student, teacher)
    says = says_of(section, found, section.top_k)
    return ModelTeacher(teacher, says, ear=_ear(section, teacher, theirs)), _ear(section, student, own)


def says_of(section: DistillationSection, found: FoundTeacher, top_k: int) -> Says:
    """Which of its logits a teacher tells."""
    return Says(found.vocabulary, top_k, section.temperature)


def taught_steps(
    spec: JobSpec,
    found: FoundTeacher,
    student: LoadedModel,
    knows: tuple[Knowledge, LayerEar | None],
    *,
    tell: Callable[[Written], None],
    warn: Callable[[str], None],
    look: Callable[[], None],
) -> TaughtSteps:
    """What a trainer asks; `spec` is the stage's. The callbacks are TaughtSteps'."""
    section, training, (knowledge, ear) = spec.distillation, spec.training, knows
    objective = Objective(
        student=student,
        knowledge=knowledge,
        divergence=Divergence.of(section, found.vocabulary, uld_loss if section.tokenizers is Tokenizers.ULD else None),
        weights=Weights(section.ce_weight, section.hidden_weight),
        ear=ear,
        chunk_tokens=training.loss_chunk_tokens,
    )
    windows = [one for one in (student.context_length, found.window) if one]
    writing = Writing(
        share=section.on_policy,
        new_tokens=section.rollout_tokens,
        temperature=section.rollout_temperature,
        longest=min([spec.data.max_length, *windows]),
        seed=training.seed,
        vocabulary=found.vocabulary,
    )
    batching = Batching(student.pad_id, spec.data.max_length, training.batch_size, spec.data.packing)
    return TaughtSteps(student, objective, writing, batching, tell, warn, look)


def _compared(
    section: DistillationSection, student: LoadedModel, teacher: LoadedModel
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not section.hidden_weight:
        return (), ()
    own, theirs = width_of(student.model), width_of(teacher.model)
    if own != theirs:
        raise EngineError(
            "distill.other_width",
            f"Hidden states cannot be compared: the student's are {own:,} wide, the teacher's {theirs:,}.",
            next_step="Set distillation.hidden_weight = 0.",
            exit_code=ExitCode.RUN_FAILED,
        )
    depths = (len(decoder_layers(one.model)) for one in (student, teacher))
    return compared_layers(section.hidden_layers, *depths)


def _ear(section: DistillationSection, loaded: LoadedModel, layers: tuple[int, ...]) -> LayerEar | None:
    return LayerEar(loaded.model, layers) if section.hidden_weight else None


def _with_adapter(base: Any, found: FoundTeacher) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(found.adapter))
