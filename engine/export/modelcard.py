"""The README.md of an exported model: what was done, on what data, with which figures, under which licence.

Owns its words and its front matter. Must not know where the facts come from, nor write files. Nothing local gets into
it: of files that the spec names only the names stay, for the folder may be published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath

from engine.export.licence import Licence
from engine.jobs.card import Card, MergeCheck
from engine.jobs.export_report import Agreement
from engine.jobs.spec import JobSpec
from engine.jobs.spec_paths import Named, map_files
from engine.jobs.spec_toml import dump_spec
from engine.units import format_count, format_duration

MADE_WITH = "scaler-wizard"
_TASKS = {
    "qlora": "Fine-tuned with QLoRA (an adapter on a 4-bit base), merged into the weights.",
    "lora": "Fine-tuned with LoRA (an adapter), merged into the weights.",
    "mix": "Several adapters were mixed into one, which is merged into the weights.",
    "expand": "Grown: parameters were added without training.",
    "extend": "Given a longer window without training.",
    "full": "Trained in all its weights.",
    "new_blocks": "Grown, then trained in its new blocks.",
    "new_coordinates": "Grown, then trained in its new coordinates.",
    "qlora_grown": "Grown, then trained in its new parts on a 4-bit base.",
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a card says; what is not known is left out."""

    name: str
    base: str
    """As one would find it: a hub id, or the name of a folder."""
    licence: Licence
    base_on_hub: bool = False
    adapter: bool = False
    """Made of one, merged."""
    card: Card | None = None
    spec: JobSpec | None = None
    parameters: int = 0
    context: int = 0
    """Tokens of its window."""
    check: Agreement | None = None
    """The folder in stock transformers against what it was made of."""
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def model_card(facts: ModelFacts) -> str:
    """The whole README.md."""
    parts = [
        _front_matter(facts),
        f"# {facts.name}",
        "\n".join(_done(facts)),
        _use(facts),
        "\n".join(_figures(facts)),
        "\n".join(_checked(facts)),
        "\n".join(_data(facts)),
        "\n".join(_licence(facts)),
        "\n".join(_versions(facts)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: ModelFacts) -> str:
    licence = facts.licence
    lines = ["---", f"license: {licence.identifier}"]
    lines += [f"license_name: {_quoted(licence.name)}"] if licence.name else []
    lines += [f"license_link: {_quoted(licence.link)}"] if licence.link else []
    if facts.base_on_hub:
        relation = "merge" if facts.card is not None and facts.card.task == "mix" else "finetune"
        lines += [f"base_model: {facts.base}", f"base_model_relation: {relation}"]
    lines += ["library_name: transformers", "pipeline_tag: text-generation", f"tags:\n- {MADE_WITH}", "---"]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A YAML scalar whatever is in it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _upper(words: str) -> str:
    return words[:1].upper() + words[1:]


# ── what was done ────────────────────────────────────────────────────────────────────────────────────────────────
def _done(facts: ModelFacts) -> list[str]:
    card = facts.card
    size = f"{format_count(facts.parameters)} parameters" if facts.parameters else ""
    window = f"a window of {facts.context:,} tokens" if facts.context else ""
    shape = ", ".join(word for word in (size, window) if word)
    lines = ["## What was done", ""]
    if card is None:
        made = f"An adapter merged into {facts.base}" if facts.adapter else f"Exported from {facts.base}"
        return [*lines, f"{made}.{f' {_upper(shape)}.' if shape else ''}"]
    lines.append(f"{_TASKS.get(card.task, card.task)} Base: {facts.base}.{f' {_upper(shape)}.' if shape else ''}")
    if card.steps:
        lines.append(
            f"{card.steps:,} steps over {format_count(card.tokens)} tokens ({format_count(card.trained_tokens)} of "
            f"them learnt from), {format_duration(card.training_seconds)} on {card.device or 'a machine'}."
        )
    for growth in card.growths:
        before, after = format_count(growth.parameters_before), format_count(growth.parameters_after)
        proof = "" if growth.proof is None else f"; proof {'passed' if growth.proof.passed else 'failed'}"
        lines.append(f"Grown from {before} to {after} parameters ({', '.join(growth.operators.values())}){proof}.")
    if card.mix is not None:
        weighed = ", ".join(
            f"{w:g} x {PurePath(a).name}" for a, w in zip(card.mix.adapters, card.mix.weights, strict=True)
        )
        lines.append(f"Adapters: {weighed} ({card.mix.method}).")
    if card.teacher is not None:
        lines.append(f"Taught by {PurePath(card.teacher.name).name} ({card.teacher.loss}).")
    return lines


def _use(facts: ModelFacts) -> str:
    return (
        "## How to use it\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this folder")\n```'
    )


# ── what was measured ────────────────────────────────────────────────────────────────────────────────────────────
def _figures(facts: ModelFacts) -> list[str]:
    card = facts.card
    rows = _score_rows(card) if card is not None else []
    if not rows:
        return []
    head = ["## Figures", "", "| | before | after |", "| --- | ---: | ---: |"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows)]


def _score_rows(card: Card) -> list[tuple[str, str, str]]:
    before, after = card.before, card.after
    if before is None or after is None:
        return []
    rows = []
    if after.has_task_loss:
        rows.append(("held-out loss (nats per token)", f"{before.task_loss:.4f}", f"{after.task_loss:.4f}"))
    if before.exact_match is not None and after.exact_match is not None:
        name = f"exact match ({after.exact_match_rows} held-out rows)"
        rows.append((name, f"{before.exact_match:.1%}", f"{after.exact_match:.1%}"))
    if before.base_perplexity is not None and after.base_perplexity is not None:
        rows.append(("perplexity of other text", f"{before.base_perplexity:.3f}", f"{after.base_perplexity:.3f}"))
    earlier = {(one.task, one.metric): one.value for one in before.benchmarks}
    for one in after.benchmarks:
        if (one.task, one.metric) in earlier:
            rows.append((f"{one.task} ({one.metric})", f"{earlier[one.task, one.metric]:.4f}", f"{one.value:.4f}"))
    return rows


def _checked(facts: ModelFacts) -> list[str]:
    lines = ["## What was checked", ""]
    check, merged = facts.check, facts.card.merged if facts.card is not None else None
    if check is not None:
        lines.append(
            f"This folder loads in stock {check.runtime}. On {check.prompts} prompts, {check.tokens_compared:,} "
            f"positions, it names the same next token as what it was made of in {check.same_top_token:.2%}; logits "
            f"differ by at most {check.largest_logit_difference:.2g}, perplexity over {check.perplexity_tokens:,} "
            f"tokens {check.perplexity:.4f} and {check.reference_perplexity:.4f}."
        )
    if merged is not None:
        lines.append(_merge_words(merged))
    lines += [f"Note: {note}" for note in facts.notes]
    return lines if len(lines) > 2 else []


def _merge_words(merged: MergeCheck) -> str:
    return (
        f"Merged against the adapter on its {merged.base_dtype} base, on held-out rows: the same next token in "
        f"{merged.same_top_token:.2%} of places, loss {merged.merged_task_loss:.4f} and {merged.adapter_task_loss:.4f}."
    )


# ── where it comes from ──────────────────────────────────────────────────────────────────────────────────────────
def _data(facts: ModelFacts) -> list[str]:
    card, spec = facts.card, facts.spec
    if card is None:
        return []
    lines = ["## Data and spec", ""]
    lines.append(f"Data, SHA-256: `{card.data_sha256}`" if card.data_sha256 else "No data was trained on.")
    lines.append(f"Spec, SHA-256: `{card.spec_hash}`; run `{card.run_id}`")
    if spec is not None:
        text = dump_spec(map_files(spec, _without_place)).strip()
        lines += ["", "<details><summary>The spec</summary>", "", "```toml", text, "```", "", "</details>"]
    return lines


def _without_place(named: Named) -> str:
    place = PurePath(named.value)
    return place.name if place.is_absolute() and place.name else named.value


def _licence(facts: ModelFacts) -> list[str]:
    licence = facts.licence
    lines = ["## Licence", ""]
    if not licence.is_known:
        lines.append(
            f"Unknown: {facts.base} does not say under which licence it may be passed on. Find out before you publish "
            "this model."
        )
        return lines
    name = licence.name or licence.identifier
    lines.append(f"{name}, carried over from {facts.base} (said by {licence.origin}).")
    if licence.files:
        lines.append(f"Its texts are in this folder: {', '.join(file.name for file in licence.files)}.")
    return lines


def _versions(facts: ModelFacts) -> list[str]:
    card = facts.card
    versions = {**(card.versions if card is not None else {}), **facts.versions}
    if not versions:
        return []
    return ["## Versions", "", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))]
