"""A card with plausible figures, for the tests of everything that shows one."""

from __future__ import annotations

from engine.jobs.card import Adapter, Card, CurvePoint, MergeCheck, PredictedMeasured, SampleComparison, Scores
from tests.support.fake_worker import SAMPLES, loss_at


def example_card(steps: int = 240) -> Card:
    """The card of a resumed QLoRA run of `steps` steps."""
    evaluated = range(0, steps + 1, max(steps // 12, 1))
    return Card(
        run_id="20261123-181502-7f3a",
        name="Pirate manners",
        task="qlora",
        model="demo",
        created=1_790_000_900.0,
        before=Scores(task_loss=2.812, task_tokens=3120, exact_match=0.0, exact_match_rows=64, base_perplexity=4.31,
                      base_tokens=9000, seconds=4.2),
        after=Scores(task_loss=0.604, task_tokens=3120, exact_match=0.922, exact_match_rows=64, base_perplexity=4.36,
                     base_tokens=9000, seconds=4.1),
        samples=tuple(SampleComparison(prompt=p, before=b, after=a, expected=a) for p, b, a in SAMPLES),
        steps=steps,
        tokens=246_000,
        trained_tokens=98_400,
        training_seconds=71.0,
        working_seconds=88.0,
        cost_usd=0.011,
        adapter=Adapter(path="output/adapter", size_bytes=661_432, parameters=163_840),
        merged=MergeCheck(path="output/merged", size_bytes=6_830_112, max_logit_difference=0.41,
                          mean_logit_difference=0.018, same_top_token=0.9962, merged_task_loss=0.6051,
                          adapter_task_loss=0.604, base_dtype="nf4"),
        predicted=(
            PredictedMeasured(name="memory", unit="bytes", low=9e8, likely=1.1e9, high=1.4e9, measured=1.22e9,
                              origin="formula"),
            PredictedMeasured(name="time", unit="seconds", low=50, likely=75, high=120, measured=88, origin="probe"),
            PredictedMeasured(name="speed", unit="tokens/s", low=3600, likely=4000, high=4600, measured=3400,
                              origin="formula"),
        ),
        loss_curve=tuple(CurvePoint(step, loss_at(step)) for step in range(1, steps + 1)),
        eval_curve=tuple(CurvePoint(step, loss_at(step) + 0.08) for step in evaluated),
        spec_hash="5f1c" * 16,
        data_sha256="a07e" * 16,
        attempts=2,
        device="cpu",
        versions={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        notes=("Resumed once, from step 120.",),
    )  # fmt: skip
