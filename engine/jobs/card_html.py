"""The card as one self-contained page: no script, no font, no address to load anything from.

Owns the page. Must not measure or judge beyond the words for a difference. Everything that came from data or a model
goes through `escape`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from html import escape

from engine.jobs.card import Card, MergeCheck, PredictedMeasured, Reader, SampleComparison
from engine.jobs.card_evaluation import STYLE as EVALUATION_STYLE
from engine.jobs.card_evaluation import evaluation_sections
from engine.jobs.card_growth import growth_section
from engine.jobs.card_plots import loss_plot, range_bar
from engine.jobs.card_results import result_sections
from engine.jobs.length_html import STYLE as LENGTH_STYLE
from engine.jobs.length_html import length_section, report_section
from engine.jobs.length_report import LengthReport
from engine.units import format_bytes, format_count, format_duration, format_range, format_usd

_FORGOTTEN_A_LITTLE = 0.02
_FORGOTTEN = 0.10

_STYLE = """
:root { --paper:#fbfaf7; --panel:#fff; --ink:#1d2327; --quiet:#68737b; --rule:#e3e1da; --accent:#0b7285;
  --held:#c2550a; --good:#2b7a3d; --bad:#b3261e; --promise:#cfe6ea; }
@media (prefers-color-scheme: dark) { :root { --paper:#14181b; --panel:#1c2226; --ink:#e6e9ea; --quiet:#93a0a8;
  --rule:#2d353a; --accent:#56c2d6; --held:#f0a05a; --good:#79c98a; --bad:#f28b82; --promise:#24444b; } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif }
main { max-width:940px; margin:0 auto; padding:40px 20px 64px }
h1 { font-size:28px; line-height:1.2; margin:0 0 6px; overflow-wrap:anywhere }
h2 { font-size:14px; letter-spacing:.07em; text-transform:uppercase; color:var(--quiet); margin:40px 0 12px }
.quiet, .sub { color:var(--quiet) } .sub { margin:0; overflow-wrap:anywhere }
.panel { background:var(--panel); border:1px solid var(--rule); border-radius:10px; padding:18px 20px }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(230px,1fr)); gap:14px; margin-top:28px }
.figure .name { color:var(--quiet); font-size:14px } .figure .note { font-size:14px }
.figure .value { font-size:30px; font-weight:650; font-variant-numeric:tabular-nums; line-height:1.3 }
.figure .was { color:var(--quiet); font-weight:400; font-size:20px }
.good { color:var(--good) } .bad { color:var(--bad) }
svg { display:block; width:100%; height:auto } svg.bar { width:240px }
.grid { stroke:var(--rule); stroke-width:1 } .tick { fill:var(--quiet); font:12px system-ui,sans-serif }
.line { fill:none; stroke:var(--accent); stroke-width:2; stroke-linejoin:round }
.line.raw { opacity:.28; stroke-width:1 }
.line.held { stroke:var(--held); stroke-width:1.5; stroke-dasharray:5 4 } .dot { fill:var(--held) }
.promise { fill:var(--promise) } .likely { stroke:var(--quiet); stroke-width:1.5 } .measured { fill:var(--accent) }
.legend { display:flex; gap:22px; font-size:14px; color:var(--quiet); margin-bottom:8px }
.legend i { display:inline-block; width:18px; height:0; margin-right:7px; vertical-align:4px;
  border-top:2.5px solid var(--accent) }
.legend i.held { border-top:2px dashed var(--held) }
table { width:100%; border-collapse:collapse; font-variant-numeric:tabular-nums }
th { text-align:left; font-weight:500; color:var(--quiet); font-size:14px }
th, td { padding:8px 12px 8px 0; vertical-align:middle }
tr + tr > * { border-top:1px solid var(--rule) } .off { color:var(--held) } .wide { overflow-x:auto }
.wide td { white-space:nowrap } .plot svg { min-width:560px }
.sample { margin-bottom:14px } .prompt { font-weight:600; white-space:pre-wrap; overflow-wrap:anywhere }
.pair { display:grid; grid-template-columns:1fr 1fr; gap:18px; margin-top:10px }
.pair h3 { font-size:13px; font-weight:500; color:var(--quiet); margin:0 0 3px } .pair .after h3 { color:var(--accent) }
.pair p, .expected { margin:0; white-space:pre-wrap; overflow-wrap:anywhere }
.expected { margin-top:10px; padding-top:8px; border-top:1px solid var(--rule); color:var(--quiet); font-size:14px }
dl { display:grid; grid-template-columns:max-content 1fr; gap:6px 22px; margin:0 } dt { color:var(--quiet) }
dd { margin:0; overflow-wrap:anywhere } code { font:13px/1.5 ui-monospace,Menlo,Consolas,monospace }
@media (max-width:600px) { .pair { grid-template-columns:1fr } main { padding-top:24px } dl { display:block }
  dd { margin-bottom:8px } }
@media print { body { background:#fff } .panel { break-inside:avoid } }
"""


def render(card: Card) -> str:
    """The page as text, UTF-8."""
    title = escape(card.name or card.run_id)
    parts = (
        _figures, result_sections, evaluation_sections, growth_section, length_section, _curves, _samples, _promises,
        _details, _notes,
    )  # fmt: skip
    return document(title, f"{title} · before and after", _subtitle(card), [part(card) for part in parts])


def length_page(report: LengthReport, readers: Sequence[Reader] = ()) -> str:
    """A page about one length report alone."""
    title = escape(report.model)
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    subtitle = f"measured by length · {format_duration(report.seconds)} · {day}"
    return document(title, f"{title} · by length", subtitle, [report_section(report, readers=readers)])


def document(title: str, head: str, subtitle: str, sections: Sequence[str]) -> str:
    """The page around sections; everything is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{head}</title>\n<style>{_STYLE}{EVALUATION_STYLE}{LENGTH_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{title}</h1>\n<p class="sub">{subtitle}</p></header>\n'
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _subtitle(card: Card) -> str:
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(card.created))
    names = {
        "qlora": "QLoRA",
        "lora": "LoRA",
        "expand": "Expansion",
        "full": "Full training",
        "new_blocks": "New blocks",
        "new_coordinates": "New coordinates first",
        "qlora_grown": "4-bit old part, full new part",
        "extend": "Longer window",
        "mix": "Mix of adapters",
    }
    parts = [names.get(card.task, card.task), card.model, f"{card.steps:,} steps"]
    parts += [format_duration(card.working_seconds), *([format_usd(card.cost_usd)] if card.cost_usd else []), day]
    return " · ".join(escape(part) for part in parts)


# ── the three figures that matter ─────────────────────────────────────────────────────────────────────────────────
def _figures(card: Card) -> str:
    before, after = card.before, card.after
    if before is None or after is None:
        return ""
    figures = []
    if after.has_task_loss:
        change = _change(before.task_loss, after.task_loss)
        losses = (f"{before.task_loss:.3f}", f"{after.task_loss:.3f}")
        figures.append(_figure("Loss on held-out rows", *losses, *change))
    if before.exact_match is not None and after.exact_match is not None:
        points = (after.exact_match - before.exact_match) * 100
        note = f"{points:+.1f} points over {after.exact_match_rows} rows"
        tone = "good" if points > 0 else "bad" if points < 0 else "quiet"
        figures.append(
            _figure("Answers exactly right", f"{before.exact_match:.0%}", f"{after.exact_match:.0%}", note, tone)
        )
    if before.base_perplexity is not None and after.base_perplexity is not None:
        note, tone = _forgetting(before.base_perplexity, after.base_perplexity)
        figures.append(
            _figure(
                "Perplexity on base text", f"{before.base_perplexity:.2f}", f"{after.base_perplexity:.2f}", note, tone
            )
        )
    return f'<div class="figures">{"".join(figures)}</div>'


def _figure(name: str, before: str, after: str, note: str, tone: str) -> str:
    return (
        f'<div class="panel figure"><div class="name">{name}</div>'
        f'<div class="value"><span class="was">{before} →</span> {after}</div>'
        f'<div class="note {tone}">{note}</div></div>'
    )


def _change(before: float, after: float) -> tuple[str, str]:
    """Words and tone for a figure that should fall."""
    if not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return "not a finite number", "bad"
    change = after / before - 1
    return f"{abs(change):.1%} {'lower' if change <= 0 else 'higher'}", "good" if change <= 0 else "bad"


def _forgetting(before: float, after: float) -> tuple[str, str]:
    if not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return "not a finite number", "bad"
    change = after / before - 1
    if change <= _FORGOTTEN_A_LITTLE:
        return f"{change:+.1%}: nothing forgotten", "good"
    if change <= _FORGOTTEN:
        return f"{change:+.1%}: a little was forgotten", "quiet"
    return f"{change:+.1%}: the model forgot what it knew", "bad"


# ── curves, samples, promises ─────────────────────────────────────────────────────────────────────────────────────
def _curves(card: Card) -> str:
    if not card.loss_curve and not card.eval_curve:
        return ""
    legend = '<span><i></i>training loss</span><span><i class="held"></i>held-out loss</span>'
    plot = loss_plot(card.loss_curve, card.eval_curve)
    panel = f'<div class="legend">{legend}</div><div class="wide plot">{plot}</div>'
    return f'<section><h2>Loss</h2><div class="panel">{panel}</div></section>'


def _samples(card: Card) -> str:
    if not card.samples:
        return ""
    shown = "".join(_sample(sample) for sample in card.samples)
    return f"<section><h2>The same prompts, before and after</h2>{shown}</section>"


def _sample(sample: SampleComparison) -> str:
    expected = f'<p class="expected">Expected: {escape(sample.expected)}</p>' if sample.expected else ""
    nothing = '<span class="quiet">(nothing)</span>'
    return (
        f'<div class="panel sample"><div class="prompt">{escape(sample.prompt)}</div><div class="pair">'
        f"<div><h3>Before</h3><p>{escape(sample.before) or nothing}</p></div>"
        f'<div class="after"><h3>After</h3><p>{escape(sample.after) or nothing}</p></div></div>{expected}</div>'
    )


def _promises(card: Card) -> str:
    if not card.predicted:
        return ""
    rows = "".join(_promise(promise) for promise in card.predicted)
    head = "<tr><th></th><th>promised</th><th>likely</th><th>measured</th><th></th><th>promise from</th></tr>"
    return f'<section><h2>Promised and measured</h2><div class="panel wide"><table>{head}{rows}</table></div></section>'


def _promise(promise: PredictedMeasured) -> str:
    low, likely, high, measured = (
        _amount(value, promise.unit) for value in (promise.low, promise.likely, promise.high, promise.measured)
    )
    kept = promise.low <= promise.measured <= promise.high
    tone = "good" if kept else "off"
    where = "within the range" if kept else "outside the range"
    bar = range_bar(promise.low, promise.likely, promise.high, promise.measured, f"{promise.name}: {where}")
    return (
        f"<tr><td>{escape(promise.name)}</td><td>{format_range(low, high)}</td><td>{likely}</td>"
        f'<td class="{tone}">{measured}</td><td>{bar}</td><td class="quiet">{escape(promise.origin)}</td></tr>'
    )


def _amount(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return "not measured"
    match unit:
        case "bytes":
            return format_bytes(value)
        case "seconds":
            return format_duration(value)
        case "hours":
            return format_duration(value * 3600)
        case "usd":
            return format_usd(value)
        case _:
            return escape(f"{value:,.0f} {unit}" if abs(value) >= 10 else f"{value:.3g} {unit}")


# ── what it was made from ─────────────────────────────────────────────────────────────────────────────────────────
def _details(card: Card) -> str:
    tokens = f"{format_count(card.trained_tokens)} of {format_count(card.tokens)} tokens carried loss"
    trained = f"{card.steps:,} steps in {format_duration(card.training_seconds)}; {tokens}"
    adapter = f"<code>{escape(card.adapter.path)}</code>, {format_bytes(card.adapter.size_bytes)}, "
    pairs = [
        ("Run", f"<code>{escape(card.run_id)}</code>"),
        ("Trained", trained if card.steps else ""),
        (card.adapter.kind.capitalize(), adapter + f"{format_count(card.adapter.parameters)} parameters"),
        ("Merged model", _merged(card.merged) if card.merged else ""),
        ("Device", escape(card.device)),
        ("Workers", "1, never interrupted" if card.attempts == 1 else f"{card.attempts}: the run was resumed"),
        ("Spec", f"<code>sha256 {escape(card.spec_hash)}</code>" if card.spec_hash else ""),
        ("Data", f"<code>sha256 {escape(card.data_sha256)}</code>" if card.data_sha256 else ""),
        ("Versions", escape(", ".join(f"{name} {version}" for name, version in card.versions.items()))),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in pairs if text)
    return f'<section><h2>Made from</h2><div class="panel"><dl>{listed}</dl></div></section>'


def _merged(merged: MergeCheck) -> str:
    stored = ""
    if merged.stored_base_difference is not None and merged.stored_base_same_top_token is not None:
        stored = (
            f". Against it on the unquantised base: same next token at {merged.stored_base_same_top_token:.2%}, "
            f"logits differ by at most {merged.stored_base_difference:.1e} of their range"
        )
    return (
        f"<code>{escape(merged.path)}</code>, {format_bytes(merged.size_bytes)}. Against adapter on its "
        f"{escape(merged.base_dtype)} base: same next token at {merged.same_top_token:.2%} of positions, "
        f"logits differ by {merged.mean_logit_difference:.2g} on average, "
        f"{merged.max_logit_difference:.2g} at most; "
        f"loss {merged.merged_task_loss:.4f} instead of {merged.adapter_task_loss:.4f}{stored}"
    )


def _notes(card: Card) -> str:
    if not card.notes:
        return ""
    return f"<section><h2>Notes</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in card.notes)}</ul></section>"
