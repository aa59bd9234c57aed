"""The sections of a spec about growth: how a model is expanded, and the stages of a job that trains and grows by turns.

Owns their fields, limits and one-line meanings. Must not know the other sections, nor how a plan is made
(`engine.expansion.planner`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from engine.jobs.spec_section import Schedule, Section, Task

_UNITS = "0 leaves it as it is."
_AS_TRAINING = "As in [training] when left out."
SIZE_PATTERN = r"^(|[0-9]*\.?[0-9]+([eE]\+?[0-9]{1,3}|[KMBTkmbtxX]?))$"
SIZES = ("hidden", "ffn", "layers", "heads", "kv_heads", "experts")
"""Names of the dimensions, in `ExpansionSection` and `StageSection` alike."""


class ExpansionSection(Section, frozen=True, kw_only=True):
    """Growth before anything is trained. Any size keeps the function; the output carries a certificate of it."""

    to: Annotated[
        str,
        Meta(pattern=SIZE_PATTERN, description='Parameters to reach: "7B", "2x"; "" when sizes are named below.'),
    ] = ""
    hidden: Annotated[int, Meta(ge=0, le=1 << 20, description=f"Width of the residual stream. {_UNITS}")] = 0
    ffn: Annotated[int, Meta(ge=0, le=1 << 22, description=f"Width of the feed-forward layers. {_UNITS}")] = 0
    layers: Annotated[int, Meta(ge=0, le=4096, description=f"Number of layers. {_UNITS}")] = 0
    heads: Annotated[int, Meta(ge=0, le=4096, description=f"Query heads. {_UNITS}")] = 0
    kv_heads: Annotated[int, Meta(ge=0, le=4096, description=f"Key/value heads; the KV cache follows. {_UNITS}")] = 0
    experts: Annotated[
        int, Meta(ge=0, le=4096, description=f"Experts; a dense model becomes a mixture of them. {_UNITS}")
    ] = 0
    operators: Annotated[
        tuple[str, ...],
        Meta(description="How to grow, by name (scaler-wizard expand --help lists them); [] chooses exact ones."),
    ] = ()
    seed: Annotated[int, Meta(ge=0, description="Seeds the free values: equal seeds give equal bytes.")] = 17
    dtype: Annotated[
        str,
        Meta(
            pattern="^(|bfloat16|float16|float32)$",
            description='Type of the output: bfloat16, float16, float32; "" keeps each tensor\'s own.',
        ),
    ] = ""
    shard_gb: Annotated[float, Meta(gt=0, le=1000, description="Size of the output's files, in GB.")] = 4.0
    proof: Annotated[
        bool, Meta(description="Measure on text that the function is kept; without it nothing is certified.")
    ] = True
    proof_text: Annotated[
        str, Meta(description='Text of the proof: "demo" (ships with the program) or a file of plain text.')
    ] = "demo"
    out: Annotated[
        str, Meta(description='Folder of the finished model; "" is output/model inside the run directory.')
    ] = ""

    @property
    def grows(self) -> bool:
        """Whether any growth is asked for."""
        return bool(self.to or self.operators or any(getattr(self, name) for name in SIZES))


class StageSection(Section, frozen=True, kw_only=True):
    """One stage: the model so far is grown where sizes are given, and then trained unless the task is "expand".
    Optimizer moments go along: kept for old coordinates, zero for new ones."""

    name: Annotated[str, Meta(max_length=80, description="A name for you.")] = ""
    task: Annotated[
        Task | None,
        Meta(description="full, new_blocks, new_coordinates, qlora_grown or expand; as the job when left out."),
    ] = None
    to: Annotated[
        str, Meta(pattern=SIZE_PATTERN, description='Parameters to reach before this stage; "" for none.')
    ] = ""
    hidden: Annotated[int, Meta(ge=0, le=1 << 20, description=f"Width of the residual stream. {_UNITS}")] = 0
    ffn: Annotated[int, Meta(ge=0, le=1 << 22, description=f"Width of the feed-forward layers. {_UNITS}")] = 0
    layers: Annotated[int, Meta(ge=0, le=4096, description=f"Number of layers. {_UNITS}")] = 0
    heads: Annotated[int, Meta(ge=0, le=4096, description=f"Query heads. {_UNITS}")] = 0
    kv_heads: Annotated[int, Meta(ge=0, le=4096, description=f"Key/value heads. {_UNITS}")] = 0
    experts: Annotated[int, Meta(ge=0, le=4096, description=f"Experts. {_UNITS}")] = 0
    operators: Annotated[tuple[str, ...], Meta(description="How to grow, by name; [] chooses exact ones.")] = ()
    carry_moments: Annotated[
        bool, Meta(description="Take the optimizer's moments of the stage before along; false starts them at zero.")
    ] = True
    max_steps: Annotated[
        Annotated[int, Meta(ge=0, le=100_000_000)] | None,
        Meta(description=f"Optimizer steps of this stage. {_AS_TRAINING}"),
    ] = None
    epochs: Annotated[
        Annotated[float, Meta(gt=0, le=10_000)] | None, Meta(description=f"Passes over the data. {_AS_TRAINING}")
    ] = None
    batch_size: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None, Meta(description=f"Sequences per micro-batch. {_AS_TRAINING}")
    ] = None
    gradient_accumulation: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 20)] | None, Meta(description=f"Micro-batches per step. {_AS_TRAINING}")
    ] = None
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description=f"Peak learning rate. {_AS_TRAINING}")
    ] = None
    warmup_ratio: Annotated[
        Annotated[float, Meta(ge=0.0, lt=1.0)] | None,
        Meta(description=f"Share of the steps spent warming up. {_AS_TRAINING}"),
    ] = None
    new_learning_rate: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description=f"Peak learning rate of new parameters. {_AS_TRAINING}")
    ] = None
    new_warmup_ratio: Annotated[
        Annotated[float, Meta(ge=0.0, lt=1.0)] | None,
        Meta(description=f"Warm-up of new parameters only. {_AS_TRAINING}"),
    ] = None
    unfreeze_after: Annotated[
        Annotated[float, Meta(ge=0.0)] | None,
        Meta(description=f"When old coordinates join (new_coordinates). {_AS_TRAINING}"),
    ] = None

    max_tokens: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description=f"With [[sources]]: about so many tokens in this stage. {_AS_TRAINING}"),
    ] = None
    max_length: Annotated[
        Annotated[int, Meta(ge=8, le=1 << 24)] | None,
        Meta(description="Longest sequence of this stage, in tokens. As in [data] when left out."),
    ] = None
    weights: Annotated[
        dict[str, Annotated[float, Meta(ge=0.0)]] | None,
        Meta(
            description="Weights of [[sources]] in this stage, by name: {web = 0.7, code = 0.3}; a source left out is "
            "not read. As there when left out."
        ),
    ] = None
    schedule: Annotated[Schedule | None, Meta(description=f"cosine, linear, constant or wsd. {_AS_TRAINING}")] = None
    decay_ratio: Annotated[
        Annotated[float, Meta(gt=0.0, le=1.0)] | None, Meta(description=f"Of wsd. {_AS_TRAINING}")
    ] = None
    final_rate_ratio: Annotated[
        Annotated[float, Meta(ge=0.0, le=1.0)] | None,
        Meta(description=f"The last step's rate, as a share of the peak. {_AS_TRAINING}"),
    ] = None
    ramp_from: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description=f"Sequences per step at the start. {_AS_TRAINING}")
    ] = None
    ramp_ratio: Annotated[
        Annotated[float, Meta(ge=0.0, le=1.0)] | None,
        Meta(description=f"Share of the tokens over which the batch grows. {_AS_TRAINING}"),
    ] = None
    trainable: Annotated[
        tuple[str, ...] | None, Meta(description=f"Patterns of the parameters that learn. {_AS_TRAINING}")
    ] = None
    stop_loss: Annotated[
        Annotated[float, Meta(ge=0.0)] | None, Meta(description="Ends the stage, not the job. As in [stop].")
    ] = None
    stop_plateau_evaluations: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Ends the stage, not the job. As in [stop].")
    ] = None
    stop_hours: Annotated[
        Annotated[float, Meta(ge=0.0)] | None, Meta(description="Hours of this stage. As in [stop].")
    ] = None
    stop_usd: Annotated[
        Annotated[float, Meta(ge=0.0)] | None, Meta(description="Ends the stage when it has cost so much.")
    ] = None

    @property
    def grows(self) -> bool:
        """Whether the stage begins with growth."""
        return bool(self.to or self.operators or any(getattr(self, name) for name in SIZES))

    def expansion(self, shared: ExpansionSection) -> ExpansionSection:
        """The growth of this stage: its own sizes, and seed, type, shard size and proof as in [expansion]."""
        own = {name: getattr(self, name) for name in (*SIZES, "to", "operators")}
        return msgspec.structs.replace(shared, **own, out="")


OVERRIDES = (
    "max_steps",
    "epochs",
    "batch_size",
    "gradient_accumulation",
    "learning_rate",
    "warmup_ratio",
    "new_learning_rate",
    "new_warmup_ratio",
    "unfreeze_after",
    "max_tokens",
    "schedule",
    "decay_ratio",
    "final_rate_ratio",
    "ramp_from",
    "ramp_ratio",
    "trainable",
)
"""Fields of `StageSection` that take the place of those of [training]."""
STOP_OVERRIDES = ("loss", "plateau_evaluations", "hours", "usd")
"""Fields of `StageSection` that, as `stop_...`, take the place of those of [stop]."""
LATER_STAGE_FIELDS = (
    "max_tokens",
    "max_length",
    "weights",
    "schedule",
    "decay_ratio",
    "final_rate_ratio",
    "ramp_from",
    "ramp_ratio",
    "trainable",
    *(f"stop_{name}" for name in STOP_OVERRIDES),
)
"""Left out of the hash where a stage leaves them out: specs written before they existed keep their name."""
