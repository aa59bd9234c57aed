"""The demo job: a real QLoRA of the embedded model on the embedded rows.

Owns nothing but the choice of its settings; they are the demo recipe of `profiles/recipes/`.
"""

from __future__ import annotations

from engine.jobs.spec import JobSpec


def demo_spec() -> JobSpec:
    """The spec that `demo` runs, with this machine's prediction in it."""
    from engine.advise.answers import answers_of
    from engine.advise.plan import build_spec
    from engine.hardware.detect import detect
    from engine.models.analyze import analyze

    return build_spec(analyze("demo"), detect(), answers_of({"model": "demo"}), approach="qlora")
