"""Subcommands that look and compare, and start nothing: doctor, inspect, matrix, plan, data check.

Owns their text and JSON. Must not compute: every figure comes from the engine.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, format_count, format_hours, format_range, format_usd
from scaler_tui import output
from scaler_tui.data_file import existing_teacher, note_missing_rows
from scaler_tui.machines import machine_for

if TYPE_CHECKING:
    from engine.advise.answers import Answers
    from engine.advise.context import ContextChoice
    from engine.advise.matrix import ApproachRow, Matrix
    from engine.advise.session import Session
    from engine.expansion.support import ExpansionSupport
    from engine.jobs.spec import JobSpec, SourceSection
    from engine.models.source import ModelRef


def doctor(arguments: argparse.Namespace) -> int:
    """The machine, the libraries and what will be in the way."""
    from engine.hardware.doctor import raw_outputs, report
    from engine.hardware.label import card_details

    machine = machine_for(arguments.gpu)
    if arguments.json:
        document = report(machine)
        if arguments.raw:
            document["raw"] = raw_outputs()
        output.emit_json(document)
        return int(ExitCode.DONE)
    output.say(f"Machine   {machine.label}" + ("  (SIM: simulated, not this machine)" if machine.simulated else ""))
    for gpu in machine.gpus:
        output.say(
            f"GPU {gpu.index}     {gpu.name}: {format_bytes(gpu.free_vram_bytes)} free of "
            f"{format_bytes(gpu.vram_bytes)}  [{gpu.source}]"
        )
        if details := card_details(gpu):
            output.say(f"          {details}")
    if not machine.gpus:
        output.say("GPU       none: small models train on the CPU; or plan for a card with --gpu")
    output.say(f"CPU       {machine.cpu.name}, {machine.cpu.cores} cores")
    output.say(
        f"RAM       {format_bytes(machine.ram.available_bytes)} available of "
        f"{format_bytes(machine.ram.total_bytes)}  [{machine.ram.source}]"
    )
    for disk in machine.disks:
        output.say(f"Disk      {format_bytes(disk.free_bytes)} free for {disk.purpose}: {disk.path}")
    output.say(
        "Libraries " + ", ".join(f"{name} {version or 'missing'}" for name, version in machine.libraries.items())
    )
    for problem in machine.problems:
        output.say(f"Problem   {problem.where}: {problem.what}")
        output.say(f"          Next: {problem.next_step}")
    if not machine.problems:
        output.say("Problems  none found")
    if arguments.raw:
        for name, text in raw_outputs().items():
            output.say(f"\n--- {name}\n{text.rstrip()}")
    return int(ExitCode.DONE)


def inspect(arguments: argparse.Namespace) -> int:
    """A model's architecture, and what of it can grow."""
    from engine.expansion.support import support_of
    from engine.models.analyze import analyze_model
    from engine.models.resolve import resolve_model

    ref = resolve_model(arguments.model, revision=arguments.revision)
    found, growth = analyze_model(ref), support_of(ref)
    if arguments.json:
        output.emit_json({**msgspec.to_builtins(found), "expansion": growth})
        return int(ExitCode.DONE)
    moe = found.moe
    lines = [
        ("Model", f"{found.name} ({found.architecture}, family {found.family}{'' if found.known else ', unknown'})"),
        ("Parameters", f"{format_count(found.parameters)} ({found.parameters:,}; from {found.parameters_source})"),
        ("Layers", f"{found.layers}, hidden {found.hidden_size:,}, FFN {found.intermediate_size:,} ({found.mlp_kind})"),
        ("Attention", f"{found.attention_heads} heads, {found.key_value_heads} key/value heads of {found.head_dim}"),
        ("Vocabulary", f"{found.vocab_size:,}, embeddings {'tied' if found.tied_embeddings else 'not tied'}"),
        ("Context", f"{found.context_length:,} tokens, RoPE {found.rope.kind}, base {found.rope.theta:g}"),
        ("Norm", f"{found.norm}, {found.norm_placement}, QK-norm {found.qk_norm}"),
    ]
    if moe is not None:
        lines.append(
            ("Experts", f"{moe.experts}, {moe.experts_per_token} per token, FFN {moe.expert_intermediate_size:,}")
        )
    lines += _growth_lines(growth)
    for label, text in lines:
        output.say(f"{label:<11} {text}")
    for text in found.notes:
        output.say(f"{'Note':<11} {text}")
    return int(ExitCode.DONE)


def _growth_lines(growth: ExpansionSupport) -> list[tuple[str, str]]:
    """What can grow, axis by axis, or the one reason why nothing can."""
    from engine.expansion.support import AXES

    if growth.refused:
        return [("Growth", f"not possible: {growth.refused}")]
    lines: list[tuple[str, str]] = []
    for axis in AXES:
        found = getattr(growth, axis)
        words = f"{'exact' if found.exact else 'not exact'}; {found.constraint}" if found.supported else found.reason
        lines.append(("" if lines else "Growth", f"{axis}: {words}"))
    return lines


def answered_session(arguments: argparse.Namespace) -> Session:
    """A session with the answers given as flags. Raises EngineError for a value a question does not accept."""
    from engine.advise.questions import load_graph, parse_answer
    from engine.advise.session import Session

    graph = load_graph()
    given = {"model": arguments.model}
    for question in graph.questions:
        text = getattr(arguments, f"answer_{question.id}", None)
        if text is not None:
            given[question.id] = parse_answer(question, text)
    if "teacher" in given:
        given["teacher"] = existing_teacher(str(given["teacher"]))
    return Session(graph, given)


def matrix(arguments: argparse.Namespace) -> int:
    """Every approach on this machine."""
    from engine.advise.compare import build_matrix, to_json
    from engine.models.analyze import analyze

    session = answered_session(arguments)
    note_missing_rows(session.answers().text("data"))
    machine = machine_for(arguments.gpu, session.answers())
    result = build_matrix(analyze(arguments.model), machine, session.answers())
    if arguments.explain:
        _explain(result, arguments.explain, as_json=arguments.json)
    elif arguments.json:
        output.emit_json(to_json(result))
    else:
        _print_matrix(result)
    return int(ExitCode.DONE)


def _explain(result: Matrix, approach: str, *, as_json: bool) -> None:
    """The parts behind one row, by column."""
    from engine.advise.explain import explain

    try:
        row = result.row(approach)
    except KeyError:
        raise EngineError(
            "matrix.approach",
            f"There is no approach '{approach}'.",
            next_step="Use one of: " + ", ".join(r.id for r in result.rows) + ".",
        ) from None
    columns = {column: explain(row, column) for column in ("verdict", "vram", "ram", "disk", "hours", "cost")}
    if as_json:
        output.emit_json({"model": result.model, "machine": result.machine, "id": row.id, "columns": columns})
        return
    for column, lines in columns.items():
        output.say(f"{row.title}: {column}")
        for line in lines:
            source = f"  [{line.source}]" if line.source else ""
            output.say(f"  {line.label:<22} {line.value:>12}  {line.formula}{source}".rstrip())


def _print_matrix(result: Matrix) -> None:
    output.say(f"{result.model} on {result.machine}" + ("  SIM: not this machine" if result.simulated else ""))
    output.table(
        ["", "APPROACH", "ID", "FITS?", "MEMORY", "TIME", "COST", "PARAMETERS"],
        [_cells(row, result.recommended) for row in result.rows],
        right=(4, 5, 6),
    )
    output.say()
    output.say(f"* {result.recommendation}")
    for warning in result.warnings:
        output.say(f"! {warning}")


def _cells(row: ApproachRow, recommended: str) -> list[str]:
    grown = row.base_parameters != row.final_parameters
    return [
        "*" if row.id == recommended else "",
        row.title,
        row.id,
        *([row.obstacle, "", "", ""] if row.obstacle else _figures(row)),
        (f"{format_count(row.base_parameters)} -> " if grown else "") + format_count(row.final_parameters),
    ]


def _figures(row: ApproachRow) -> list[str]:
    return [
        str(row.verdict),
        format_bytes(row.vram.likely or row.ram.likely),
        format_range(format_hours(row.hours.low), format_hours(row.hours.high)),
        format_range(format_usd(row.cost_usd.low), format_usd(row.cost_usd.high)),
    ]


def plan(arguments: argparse.Namespace) -> int:
    """Write the spec that the answers lead to."""
    from engine.advise.compare import build_matrix
    from engine.advise.growth import Setting, recommended_growth
    from engine.advise.plan import JobWish, build_spec
    from engine.jobs.spec_toml import dump_spec
    from engine.models.analyze import analyze_model
    from engine.models.resolve import resolve_model
    from scaler_tui.frank import require_agreement
    from scaler_tui.spec_file import write_spec
    from scaler_tui.teacher_flag import check_teacher_flag

    session = answered_session(arguments)
    answers = session.answers()
    machine = machine_for(arguments.gpu, answers)
    ref = resolve_model(arguments.model)
    architecture = analyze_model(ref)
    approach = arguments.approach or build_matrix(architecture, machine, answers).recommended
    check_teacher_flag(arguments, approach, answers, architecture)
    grown = recommended_growth(Setting(approach, architecture, machine, answers), ref, arguments.growth)
    wish = JobWish(
        name=arguments.name[:80],
        grown=grown,
        context=_window_choice(arguments, approach),
        sources=_sources(arguments, answers),
    )
    spec = build_spec(architecture, machine, answers, approach=approach, wish=wish)
    _check_window(spec, ref)
    require_agreement(approach, architecture, machine, answers, grown, agreed=arguments.understood)
    target = None if arguments.write == "-" else Path(arguments.write)
    if not answers.trains_on_text:
        note_missing_rows(spec.data.train)
    if target is not None:
        write_spec(spec, target)
    if arguments.json:
        output.emit_json(spec)
    elif target is None:
        output.say_block(dump_spec(spec))
    else:
        output.say(f"Wrote {target}. Run it: scaler-wizard run {shlex.quote(str(target))}")
    return int(ExitCode.DONE)


def _sources(arguments: argparse.Namespace, answers: Answers) -> tuple[SourceSection, ...]:
    """The text that the flags name. Raises EngineError where there is none, or the answer about data is another."""
    from engine.advise.text_spec import sources_of

    if arguments.source and not answers.trains_on_text:
        raise EngineError(
            "usage",
            "--source names large text, but --data is not text.",
            next_step="Add --data text, and with --data-tokens how many tokens to train on.",
        )
    if answers.trains_on_text and not arguments.source:
        raise EngineError(
            "plan.no_data",
            "It is not said which text to train on.",
            next_step="Name it with --source PATH, once or more, each with its weight: --source books/=0.7.",
        )
    return sources_of(arguments.source)


def _window_choice(arguments: argparse.Namespace, approach: str) -> ContextChoice | None:
    """What the flags say about a longer window. Raises EngineError where the approach has none."""
    from engine.advise.approaches import find_approach
    from engine.advise.context import ContextChoice

    given = [name for name in ("method", "window", "zero_shot") if getattr(arguments, name)]
    if not find_approach(approach).longer:
        if given:
            raise EngineError(
                "usage",
                f"--{given[0].replace('_', '-')} is for a longer window; the approach is {approach}.",
                next_step="Add --approach context, and the window with --context, for example --context 32k.",
            )
        return None
    if arguments.zero_shot and arguments.window:
        raise EngineError(
            "usage",
            "--window is about training, and --zero-shot trains nothing.",
            next_step="Leave out one of the two.",
        )
    return ContextChoice(method=arguments.method or "auto", window=arguments.window, train=not arguments.zero_shot)


def _check_window(spec: JobSpec, ref: ModelRef) -> None:
    """Whether the model's rotary positions can be taken there. Raises EngineError `context.*`."""
    from engine.context.planner import applicable, plan_context

    if not spec.context.extends or ref.path is None:
        return
    if spec.context.method == "auto":
        applicable(ref.config, spec.context.length)
    else:
        plan_context(ref.config, spec.context.length, spec.context.method, None, ref.name)


def data_check(arguments: argparse.Namespace) -> int:
    """What training would see of a file."""
    from engine.data.report import check
    from engine.jobs.spec import DataSection, TrainOn
    from engine.models.analyze import analyze

    model_dir = with_tokenizer(arguments.model)
    if model_dir is None:
        raise EngineError(
            "data.model",
            f"'{arguments.model}' is a known shape, not a model with a tokenizer here.",
            next_step="Name a model folder, a hub id that can be reached or is cached, or demo.",
        )
    length = arguments.max_length or min(analyze(arguments.model).context_length, 4096)
    heldout = arguments.heldout or ("demo" if arguments.file == "demo" else "")
    section = DataSection(
        train=arguments.file, heldout=heldout, max_length=length, train_on=TrainOn(arguments.train_on)
    )
    report = check(arguments.file, model_dir, section)
    document = report.as_json()
    if arguments.json:
        output.emit_json(document)
    else:
        from scaler_tui.data_text import plain_text

        output.say(plain_text(document))
    return int(ExitCode.DONE)


def with_tokenizer(model: str) -> Path | None:
    """The folder with a model's tokenizer, fetched when the hub id is known and can be reached."""
    from engine.models.resolve import resolve_model

    ref = resolve_model(model)
    if ref.path is None and "/" in model:
        ref = resolve_model(ref.repo_id, revision="main")
    return ref.path
