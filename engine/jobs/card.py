"""The before/after card as data: what a run changed, measured, with the prediction beside it.

Owns the shape of `card.json`. The worker fills and writes it; screens, `card ID` and the HTML page read it.
Must not know torch.
"""

from __future__ import annotations

import msgspec

from engine.jobs.events import ProofReport, Ranks, Recovery, RetentionReport
from engine.jobs.export_report import ExportReport
from engine.jobs.length_report import LengthReport
from engine.jobs.mix_report import MixReport
from engine.jobs.stage_figures import StageFigures


class SuiteResult(msgspec.Struct, frozen=True, kw_only=True):
    """One text, measured; `engine.evaluation.suites` defines both figures."""

    name: str
    nats_per_token: float
    bits_per_byte: float
    """Of UTF-8: comparable between tokenizers."""
    tokens: int
    text_bytes: int
    documents: int


class BenchmarkResult(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one lm-eval task."""

    task: str
    metric: str
    value: float
    standard_error: float | None = None
    questions: int = 0
    group: bool = False
    """The mean over the tasks of a group, which are there as well."""


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a model, before or after."""

    task_loss: float
    """Mean cross-entropy per trained token on held-out rows, nats."""
    task_tokens: int
    exact_match: float | None = None
    """Share of held-out rows whose greedy answer equals the reference exactly, 0 to 1."""
    exact_match_rows: int = 0
    base_perplexity: float | None = None
    """exp(mean cross-entropy per token) on base text: rises when the model forgets."""
    base_tokens: int = 0
    seconds: float = 0.0
    suites: tuple[SuiteResult, ...] = ()
    benchmarks: tuple[BenchmarkResult, ...] = ()

    @property
    def has_task_loss(self) -> bool:
        """Whether there were held-out rows at all."""
        return self.task_tokens > 0


class SampleComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One fixed prompt, answered greedily by both."""

    prompt: str
    before: str
    after: str
    expected: str = ""


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """What came out: an adapter, or a whole model."""

    path: str
    """Relative to the run directory; absolute where the spec names a folder outside."""
    size_bytes: int
    parameters: int
    """That learned; of all the model's where nothing was trained."""
    kind: str = "adapter"
    """ "adapter" or "model"."""


class GrowthResult(msgspec.Struct, frozen=True, kw_only=True):
    """One growth of the job, and what was proven of it."""

    stage: int
    """From 1."""
    operators: dict[str, str]
    parameters_before: int
    parameters_after: int
    exact: bool
    proof: ProofReport | None = None
    """None where the spec asked for none."""
    seconds: float = 0.0
    bytes_written: int = 0
    peak_rss_bytes: int = 0


class MergeCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Adapter on its base against the merged model, on the same held-out tokens."""

    path: str
    size_bytes: int
    max_logit_difference: float
    mean_logit_difference: float
    same_top_token: float
    """Share of positions where both name the same next token, 0 to 1."""
    merged_task_loss: float
    adapter_task_loss: float
    base_dtype: str
    """What the adapter was measured on: "nf4" or a float type."""
    relative_difference: float = 0.0
    """The largest difference, as a part of the range of the adapter's logits: what `verify` judges by."""
    mean_kl: float = 0.0
    """Nats per token."""
    stored_base_difference: float | None = None
    """Of an adapter that was trained on a quantised base: `relative_difference` to it on the base as it is stored,
    which is what rounding the merged weights does. None where that is the base it was measured on."""
    stored_base_same_top_token: float | None = None
    """`same_top_token` to the same."""


class TeacherFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The teacher of a run, and what it took."""

    name: str
    held: str
    parameters: int
    loss: str
    """ "forward_kl, temperature 2, 50 % labels", in words."""
    task_loss: float | None = None
    """The teacher's own on the held-out rows, nats per trained token."""
    exact_match: float | None = None
    cached_tokens: int = 0
    cached_bytes: int = 0
    rollout_tokens: int = 0
    rollout_seconds: float = 0.0


class PredictedMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """One promise and what came of it."""

    name: str
    """ "memory", "time", "speed"."""
    unit: str
    low: float
    likely: float
    high: float
    measured: float
    origin: str


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """What one program makes of a model with a longer window."""

    program: str
    """ "transformers 5", "vLLM"."""
    verdict: str
    """ "exact", "approximate" or "lost"."""
    why: str


class CurvePoint(msgspec.Struct, frozen=True, array_like=True):
    step: int
    value: float


class FollowedCurve(msgspec.Struct, frozen=True, kw_only=True):
    """A suite or a benchmark over the run; step 0 is before training."""

    name: str
    unit: str
    """ "bits per byte", or the metric's name."""
    points: tuple[CurvePoint, ...]


class StageRetention(msgspec.Struct, frozen=True, kw_only=True):
    """One stage's model against the job's parent model, at the end of the stage."""

    stage: int
    """From 1."""
    name: str
    step: int
    suites: tuple[SuiteResult, ...]
    benchmarks: tuple[BenchmarkResult, ...]
    reports: tuple[RetentionReport, ...]
    gate: str = ""
    """Which limit was broken, in words."""
    not_compared: tuple[str, ...] = ()
    """Benchmarks that have no share of right answers, so that no report speaks of them."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str
    name: str
    task: str
    model: str
    created: float
    before: Scores | None
    """None where nothing was trained."""
    after: Scores | None
    samples: tuple[SampleComparison, ...]
    steps: int
    tokens: int
    trained_tokens: int
    training_seconds: float
    working_seconds: float
    cost_usd: float
    adapter: Adapter
    merged: MergeCheck | None = None
    predicted: tuple[PredictedMeasured, ...] = ()
    loss_curve: tuple[CurvePoint, ...] = ()
    eval_curve: tuple[CurvePoint, ...] = ()
    spec_hash: str = ""
    data_sha256: str = ""
    attempts: int = 1
    """How many workers it took; more than one means the run was resumed."""
    device: str = ""
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    growths: tuple[GrowthResult, ...] = ()
    lengths_before: LengthReport | None = None
    """Of the model as it came, where the job measured lengths."""
    lengths_after: LengthReport | None = None
    readers: tuple[Reader, ...] = ()
    """Of a job that made the window longer."""
    retention: tuple[RetentionReport, ...] = ()
    """The result against the parent model, one report per ability."""
    held: str = ""
    """Why the result was not promoted: it lies in output/held then, and `adapter.path` says so."""
    stages: tuple[StageRetention, ...] = ()
    """Of a job with stages."""
    curves: tuple[FollowedCurve, ...] = ()
    """Suites and benchmarks as they were followed while training."""
    stage_figures: tuple[StageFigures, ...] = ()
    """What each stage did; one entry for a job without stages."""
    recoveries: tuple[Recovery, ...] = ()
    """Trouble that the run went through by itself, oldest first."""
    ranks: Ranks | None = None
    """The processes of a job on several cards."""
    teacher: TeacherFigures | None = None
    """Of a job with a teacher."""
    mix: MixReport | None = None
    """Of a job that made one adapter of several."""
    exports: tuple[ExportReport, ...] = ()
    """What was written for other programs, oldest first; later ones are added."""
    v: int = 1
