"""The spec: a frozen, versioned description of one job, the only thing a run is made from.

Owns the fields, their limits and their one-line meanings (the descriptions become the comments of `spec.toml`,
see `engine.jobs.spec_toml`). Must not know torch, nor how a value was chosen.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from engine.errors import EngineError
from engine.jobs.spec_checks import check_together
from engine.jobs.spec_checks_training import inherited
from engine.jobs.spec_context import ContextSection
from engine.jobs.spec_distillation import DistillationSection
from engine.jobs.spec_distributed import DistributedSection
from engine.jobs.spec_export import ExportSection
from engine.jobs.spec_growth import OVERRIDES, STOP_OVERRIDES, ExpansionSection, StageSection
from engine.jobs.spec_mix import MixedAdapter, MixSection
from engine.jobs.spec_section import Schedule, Task
from engine.jobs.spec_section import Section as _Section
from engine.jobs.spec_stop import StopSection
from engine.jobs.spec_stream import SourceSection, StreamSection
from engine.jobs.spec_suites import RetentionSection, SuiteSection

__all__ = [
    "ContextSection",
    "DistillationSection",
    "DistributedSection",
    "ExpansionSection",
    "ExportSection",
    "JobSpec",
    "MixSection",
    "MixedAdapter",
    "RetentionSection",
    "Schedule",
    "SourceSection",
    "StageSection",
    "StopSection",
    "StreamSection",
    "SuiteSection",
    "Task",
]

FALLBACK_WATTS, SPEC_VERSION = 350.0, 1  # of a 250 W card and its machine


class TrainOn(StrEnum):
    COMPLETIONS = "completions"
    LAST = "last"
    ALL = "all"


class Dtype(StrEnum):
    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Optimizer(StrEnum):
    ADAMW = "adamw"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"


class ModelSection(_Section, frozen=True, kw_only=True):
    source: Annotated[str, Meta(description='"demo", a local folder, or a hub id such as "Qwen/Qwen3-0.6B".')] = "demo"
    revision: Annotated[str, Meta(description='Hub revision (commit or tag); "" means the newest.')] = ""


class DataSection(_Section, frozen=True, kw_only=True):
    train: Annotated[str, Meta(description='"demo", "demo-long" or a file: .jsonl, .json, .csv, .parquet, .txt.')] = (
        "demo"
    )
    heldout: Annotated[
        str,
        Meta(
            description='"demo", "demo-long", a file of held-out rows, or "" to set aside `heldout_fraction` of the rows.'
        ),
    ] = "demo"
    heldout_fraction: Annotated[float, Meta(ge=0.0, lt=1.0, description="Used only when `heldout` is empty.")] = 0.1
    base_text: Annotated[
        str,
        Meta(
            description='Text to measure forgetting on: "general" (plain English that ships with the program), "demo", "demo-long", a file; "" skips.'
        ),
    ] = "demo"
    max_length: Annotated[
        int, Meta(ge=8, le=1 << 24, description="Longest sequence in tokens; longer rows are cut and counted.")
    ] = 256
    packing: Annotated[bool, Meta(description="Join short rows into full sequences; they cannot see each other.")] = (
        True
    )
    train_on: Annotated[TrainOn, Meta(description="Which tokens carry loss: completions, last (turn), or all.")] = (
        TrainOn.COMPLETIONS
    )


class AdapterSection(_Section, frozen=True, kw_only=True):
    rank: Annotated[int, Meta(ge=1, le=1024, description="Width of the adapter; capacity and memory grow with it.")] = (
        16
    )
    alpha: Annotated[
        float, Meta(gt=0, description="The update is scaled by alpha / rank (by alpha / sqrt(rank) with rslora).")
    ] = 32
    dropout: Annotated[float, Meta(ge=0.0, lt=1.0, description="Dropout on the adapter's input.")] = 0.0
    targets: Annotated[
        tuple[str, ...],
        Meta(description='Module names that get an adapter; ["all-linear"] means every linear but the head.'),
    ] = ("all-linear",)
    rslora: Annotated[bool, Meta(description="Rank-stabilised scaling; steadier at rank 64 and above.")] = False
    dora: Annotated[bool, Meta(description="Weight-decomposed adapter; a little better at low rank, slower.")] = False


class QuantizationSection(_Section, frozen=True, kw_only=True):
    kind: Annotated[
        str,
        Meta(
            pattern="^(auto|nf4|fp4|none)$", description='"auto" is nf4 for qlora and none for lora; or nf4, fp4, none.'
        ),
    ] = "auto"
    double: Annotated[bool, Meta(description="Quantise the scales too: saves 0.37 bit per parameter.")] = True


class TrainingSection(_Section, frozen=True, kw_only=True):
    epochs: Annotated[
        float, Meta(gt=0, le=10_000, description="Passes over the data; ignored when max_steps is above 0.")
    ] = 3.0
    max_steps: Annotated[
        int, Meta(ge=0, le=100_000_000, description="Stop after this many optimizer steps; 0 means by epochs.")
    ] = 0
    max_tokens: Annotated[
        int,
        Meta(ge=0, description="With [[sources]]: stop after about so many tokens; 0 goes by max_steps or epochs."),
    ] = 0
    ramp_from: Annotated[
        int,
        Meta(
            ge=0, description="With [[sources]]: sequences per step at the start, growing to the full batch; 0: none."
        ),
    ] = 0
    ramp_ratio: Annotated[
        float, Meta(ge=0.0, le=1.0, description="Share of the tokens over which the batch grows.")
    ] = 0.1
    trainable: Annotated[
        tuple[str, ...],
        Meta(
            description='full only: patterns of the parameters that learn, such as ["*.mlp.*", "lm_head*"]; [] is all.'
        ),
    ] = ()
    batch_size: Annotated[
        int, Meta(ge=1, le=4096, description="Sequences per micro-batch; fill memory with this before accumulating.")
    ] = 4
    gradient_accumulation: Annotated[int, Meta(ge=1, le=1 << 20, description="Micro-batches per optimizer step.")] = 1
    learning_rate: Annotated[float, Meta(gt=0, description="Peak learning rate.")] = 2e-4
    warmup_ratio: Annotated[float, Meta(ge=0.0, lt=1.0, description="Share of the steps spent warming up.")] = 0.03
    schedule: Annotated[
        Schedule, Meta(description="cosine, linear, constant, or wsd (warm up, stay, decay in the last decay_ratio).")
    ] = Schedule.COSINE
    decay_ratio: Annotated[
        float, Meta(gt=0.0, le=1.0, description="wsd only: share of the steps at the end in which the rate decays.")
    ] = 0.2
    final_rate_ratio: Annotated[
        float, Meta(ge=0.0, le=1.0, description="cosine, linear, wsd: the last step's rate, as a share of the peak.")
    ] = 0.0
    weight_decay: Annotated[float, Meta(ge=0.0)] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0, description="Gradients are clipped to this norm.")] = 1.0
    optimizer: Annotated[Optimizer, Meta(description="adamw; adamw_8bit and paged_adamw_8bit need CUDA.")] = (
        Optimizer.ADAMW
    )
    dtype: Annotated[Dtype, Meta(description="Compute type; auto is bfloat16 on cards that have it, else float32.")] = (
        Dtype.AUTO
    )
    gradient_checkpointing: Annotated[bool, Meta(description="About 40 % less memory for about 20 % more time.")] = (
        False
    )
    offload_activations: Annotated[
        bool, Meta(description="With gradient_checkpointing: what layers keep waits in host RAM; for long sequences.")
    ] = False
    loss_chunk_tokens: Annotated[
        int, Meta(ge=0, description="Head and loss in pieces of so many tokens; 0 computes all logits at once.")
    ] = 0
    tokens_per_step: Annotated[
        int,
        Meta(ge=0, description="Accumulate until a step holds this many tokens; 0 counts micro-batches instead."),
    ] = 0
    seed: Annotated[int, Meta(ge=0, description="Seeds data order, adapter initialisation and dropout.")] = 17
    threads: Annotated[
        int, Meta(ge=0, description="CPU threads; 0 means every usable core. Exact resume needs the same number.")
    ] = 0
    new_learning_rate: Annotated[
        float, Meta(ge=0, description="Peak learning rate of what growth added; 0 means the same as learning_rate.")
    ] = 0.0
    new_warmup_ratio: Annotated[
        float,
        Meta(
            ge=0.0, lt=1.0, description="Warm-up of what growth added, its own and only its own; 0 means warmup_ratio."
        ),
    ] = 0.0
    unfreeze_after: Annotated[
        float,
        Meta(
            ge=0.0,
            description="new_coordinates only: when old coordinates join. Below 1 a share of the steps, from 1 on a "
            "number of steps; 0 means never.",
        ),
    ] = 0.5


class EvaluationSection(_Section, frozen=True, kw_only=True):
    every_steps: Annotated[
        int, Meta(ge=0, description="Held-out loss every so many steps; 0 means only before and after.")
    ] = 0
    early_stop_patience: Annotated[
        int, Meta(ge=0, description="Stop after so many evaluations without improvement; 0 means never.")
    ] = 0
    exact_match_rows: Annotated[int, Meta(ge=0, description="Held-out rows answered in full before and after.")] = 64
    sample_prompts: Annotated[
        tuple[str, ...], Meta(description='Prompts answered while training; ["demo"] means the demo\'s own.')
    ] = ()
    max_new_tokens: Annotated[int, Meta(ge=1, le=4096)] = 48
    lengths: Annotated[
        tuple[int, ...],
        Meta(
            description="Lengths in tokens at which perplexity and needles are measured; [] means none, or, for jobs "
            "with [context], chosen from its length."
        ),
    ] = ()
    needle_prompts: Annotated[
        int, Meta(ge=0, le=1000, description="Needle prompts per length and depth; 0 leaves needles out.")
    ] = 4
    tasks: Annotated[
        tuple[str, ...],
        Meta(
            description='Benchmarks of lm-eval by name, or their .yaml files; "demo" is the demo model\'s own skills.'
        ),
    ] = ()
    tasks_every_steps: Annotated[
        int, Meta(ge=0, description="Benchmarks on a part every so many steps; 0 means only before and after.")
    ] = 0
    tasks_limit: Annotated[int, Meta(ge=0, description="Questions per benchmark before and after; 0 means all.")] = 0
    tasks_part: Annotated[int, Meta(ge=1, description="Questions per benchmark while training.")] = 100


class CheckpointSection(_Section, frozen=True, kw_only=True):
    every_steps: Annotated[int, Meta(ge=1, description="A checkpoint every so many steps.")] = 50
    keep: Annotated[int, Meta(ge=1, description="How many to keep; at least 2 lets a damaged one be survived.")] = 2


class OutputSection(_Section, frozen=True, kw_only=True):
    merge: Annotated[bool, Meta(description="Also write a merged model that plain transformers loads.")] = False


class CostSection(_Section, frozen=True, kw_only=True):
    usd_per_hour: Annotated[float, Meta(ge=0.0, description="Price of one rented machine; 0 for your own.")] = 0.0
    budget_usd: Annotated[
        float, Meta(ge=0.0, description="Checkpoint and stop when this much is spent; 0 means no limit.")
    ] = 0.0
    usd_per_kwh: Annotated[
        float, Meta(ge=0.0, le=10.0, description="What electricity costs you; 0 means unknown, and it is not counted.")
    ] = 0.0


class PredictionSection(_Section, frozen=True, kw_only=True):
    """What the wizard promised when the spec was frozen; the run screen shows measured figures beside it."""

    memory_bytes_low: int = 0
    memory_bytes_likely: int = 0
    memory_bytes_high: int = 0
    seconds_low: float = 0.0
    seconds_likely: float = 0.0
    seconds_high: float = 0.0
    tokens_per_second: float = 0.0
    tokens_per_second_low: float = 0.0
    tokens_per_second_high: float = 0.0
    origin: str = ""
    machine: str = ""
    watts: float = 0.0


class JobSpec(_Section, frozen=True, kw_only=True):
    """One job. Equal specs have equal hashes (`engine.jobs.spec_toml.spec_hash`)."""

    version: Annotated[int, Meta(description="Format of this file.")] = SPEC_VERSION
    task: Annotated[
        Task,
        Meta(
            description="qlora or lora (an adapter); mix (several adapters become one); expand (grow and prove); extend "
            "(a longer window, measured); full, "
            "new_blocks, new_coordinates or qlora_grown (train whole weights, grown before where [expansion] or [[stages]] say so)."
        ),
    ] = Task.QLORA
    name: Annotated[str, Meta(max_length=80, description="A name for you; shown in the list of runs.")] = ""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    adapter: AdapterSection = AdapterSection()
    quantization: QuantizationSection = QuantizationSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    output: OutputSection = OutputSection()
    cost: CostSection = CostSection()
    prediction: PredictionSection = PredictionSection()
    expansion: ExpansionSection = ExpansionSection()
    context: ContextSection = ContextSection()
    stream: StreamSection = StreamSection()
    stop: StopSection = StopSection()
    distributed: DistributedSection = DistributedSection()
    distillation: DistillationSection = DistillationSection()
    mix: MixSection = MixSection()
    export: ExportSection = ExportSection()
    adapters: tuple[MixedAdapter, ...] = ()
    sources: tuple[SourceSection, ...] = ()
    suites: tuple[SuiteSection, ...] = ()
    retention: tuple[RetentionSection, ...] = ()
    stages: tuple[StageSection, ...] = ()

    def __post_init__(self) -> None:
        if self.version != SPEC_VERSION:
            raise EngineError(
                "spec.version",
                f"This spec has version {self.version}; this program reads version {SPEC_VERSION}.",
                next_step="Upgrade scaler-wizard, or make the spec again with the wizard.",
            )
        check_together(self)

    @property
    def usd_per_hour(self) -> float:
        """What an hour of this run costs on all its machines: rent, and electricity where the spec has a tariff.

        The power is the predicted one; a spec without a prediction counts as one middling card per machine.
        """
        nodes = self.distributed.nodes
        watts = self.prediction.watts or FALLBACK_WATTS * nodes
        return self.cost.usd_per_hour * nodes + self.cost.usd_per_kwh * watts / 1000

    @property
    def quantization_kind(self) -> str:
        """ "nf4", "fp4" or "none", with "auto" decided by the task."""
        if self.quantization.kind != "auto":
            return self.quantization.kind
        return "nf4" if self.task in (Task.QLORA, Task.QLORA_GROWN) else "none"

    @property
    def streams(self) -> bool:
        """Whether the training text comes from [[sources]]."""
        return bool(self.sources)

    @property
    def needs_data(self) -> bool:
        """Whether any part of the job trains."""
        return any(self.task_of(stage).trains for stage in self.stages) if self.stages else self.task.trains

    @property
    def grows(self) -> bool:
        """Whether any part of the job grows the model."""
        return self.expansion.grows or any(stage.grows for stage in self.stages)

    def task_of(self, stage: StageSection) -> Task:
        """The task of a stage: its own, or the job's."""
        return stage.task or self.task

    def staged(self) -> tuple[JobSpec, ...]:
        """The job as a row of jobs without stages: each grows the model where its [expansion] asks for it and then
        trains by its own task. An adapter job, or one without [[stages]], is itself."""
        return tuple(self.of_stage(stage) for stage in self.stages) or (self,)

    def of_stage(self, stage: StageSection) -> JobSpec:
        """One stage as a job. What [training] says and means nothing to it is left out; a stage that only grows has
        neither text nor processes. Raises EngineError where a job like that is refused."""
        task = self.task_of(stage)
        own = {name: value for name in OVERRIDES if (value := getattr(stage, name)) is not None}
        if own.keys() & {"max_steps", "max_tokens", "epochs"}:  # its own end takes the place of every end of [training]
            own = {"max_steps": 0, "max_tokens": 0, **own}
        training = msgspec.structs.replace(self.training, **own)
        stop = {name: value for name in STOP_OVERRIDES if (value := getattr(stage, f"stop_{name}")) is not None}
        length = {} if stage.max_length is None else {"max_length": stage.max_length}
        sources, weights = self.sources, stage.weights
        if weights is not None:
            sources = tuple(msgspec.structs.replace(one, weight=weights.get(one.name, 0.0)) for one in sources)
        trained = {"stop": StopSection(), "distributed": DistributedSection(), "distillation": DistillationSection()}
        without = {} if task.trains else {"retention": (), **trained}
        return msgspec.structs.replace(
            self,
            **{
                "task": task,
                "data": msgspec.structs.replace(self.data, **length),
                "training": msgspec.structs.replace(training, **inherited(training, task, set(own))),
                "stop": msgspec.structs.replace(self.stop, **stop),
                "sources": sources if task.trains else (),
                "stream": self.stream if task.trains else StreamSection(),
                "expansion": stage.expansion(self.expansion),
                "stages": (),
                **without,
            },
        )
