"""The GGUF files of one export, in the sizes that were asked for, each verified before it gets its name.

Owns which files are made of which, and what an interrupted attempt need not make again. Must not know how a file is
written or quantised (`engine.export.gguf`, `engine.export.quantise`), nor Modelfiles.

    merged or source folder ─► f16 ... q8_0 (written here)
                            └► own type, kept for the attempt ─► k-quants (llama.cpp's quantiser)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.export.gguf import write_gguf
from engine.export.imatrix import check_imatrix
from engine.export.merged import has_own_config
from engine.export.order import ExportOrder, adapter_name, base_name, gguf_name
from engine.export.questions import asked_of
from engine.export.runtime import Runtime, find_runtime, why_none
from engine.export.staging import Staging, place
from engine.export.verify import Spoken, Verifier, faults
from engine.jobs.export_report import Agreement, ExportedFile
from engine.jobs.layout import write_atomic
from engine.jobs.spec import JobSpec
from engine.surgery.staging import sha256_of

Say = Callable[[str, int, int], None]
WRITTEN_HERE = ("f32", "f16", "bf16", "q8_0")
"""The others are made of one of the first three by llama.cpp's quantiser."""
NOT_ASKED = "It was not asked for (--no-verify, or verify = false)."
_CANNOT_TELL = ("verify.memory", "verify.failed")
"""Nothing was measured, which says nothing against a file."""


@dataclass(slots=True)
class GgufWork:
    """One attempt."""

    order: ExportOrder
    staging: Staging
    model: Path
    """The folder whose weights become the file: the source, merged, or an adapter's base."""
    spec: JobSpec | None
    say: Say
    flags: list[str] = field(default_factory=list)
    files: list[ExportedFile] = field(default_factory=list)
    compared: dict[str, tuple[Agreement | None, str]] = field(default_factory=dict)
    """File name -> what an earlier export of the same file found."""
    _verifier: Verifier | None = None

    def make(self) -> None:
        """Every file, in `staging.result`. Raises EngineError `export.*`, `disk.full`, `verify.*`."""
        self.staging.result.mkdir(exist_ok=True)
        if self.order.adapter:
            self._make_adapter()
            return
        kinds = self.order.types
        for kind in kinds:
            self._written(kind)
        own = self.staging.work / "own.gguf"
        if own.is_file() and not any(kind in WRITTEN_HERE for kind in kinds):
            self._check_own(own)
        for kind in kinds:
            self._keep(self.staging.result / gguf_name(self.order, kind), kind, None)

    # ── making ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _written(self, kind: str) -> Path:
        out = self.staging.result / gguf_name(self.order, kind)
        if self._linked(out, kind) or out.is_file():
            self._find_again(out)
            return out  # it has its name since it was whole
        if kind in WRITTEN_HERE:
            self._write(out, kind)
            return out
        source = self._floats()
        from engine.export.quantise import quantise

        self.say(f"quantising to {kind}", 0, 0)
        imatrix = Path(self.order.imatrix) if self.order.imatrix else None
        quantised = quantise(source, out, kind, imatrix=imatrix, on_progress=self._bytes(f"quantising to {kind}"))
        if quantised.fallbacks:
            widths = ", ".join(sorted({str(one.row_width) for one in quantised.fallbacks}))
            self._found(
                out, f"{kind}: {len(quantised.fallbacks)} matrices with rows of {widths} are kept in a larger type."
            )
        return out

    def _linked(self, out: Path, kind: str) -> bool:
        """Whether an earlier export of the run made it already."""
        made = self.order.made_file(kind)
        if made is None:
            return False
        place(Path(made.path), out)
        self.compared[out.name] = (made.agreement, made.not_verified)
        return True

    def _write(self, out: Path, kind: str) -> None:
        name = base_name(self.order) if self.order.adapter else self.order.name
        found = write_gguf(self.model, out, kind, force=True, name=name, on_progress=self._bytes(f"writing {out.name}"))
        for finding in found.findings:
            self._found(out, " ".join(part for part in (finding.what, finding.cause, finding.next_step) if part))

    def _floats(self) -> Path:
        """A file of floats to quantise: one that was asked for, else one in the weights' own type for this attempt."""
        for kind in ("f32", "bf16", "f16"):
            asked = self.staging.result / gguf_name(self.order, kind)
            if asked.is_file():
                return asked
        own = self.staging.work / "own.gguf"
        if not own.is_file():
            self._write(own, "")
        else:
            self._find_again(own)
        return own

    def _make_adapter(self) -> None:
        out = self.staging.result / adapter_name(self.order)
        if not self._linked(out, "adapter") and not out.is_file():
            from engine.export.gguf_adapter import write_gguf_adapter

            self.say("writing the adapter", 0, 0)
            write_gguf_adapter(Path(self.order.source), self.model, out)
        bases = [(self._written(kind), kind) for kind in self.order.types]
        if not bases and self.order.verify and out.name not in self.compared and find_runtime() is not None:
            bases = [(self._floats(), "f16")]
        if not bases:
            self._keep(out, "adapter", None)
            return
        proofs = [self._proof_on(base, kind, out) for base, kind in bases]
        own = proofs[0] if proofs[0][0] is not None else self.compared.get(out.name, proofs[0])
        self.files.append(self._file(out, "adapter", *own))
        if self.order.types:
            self.files += [self._file(*base, *proof) for base, proof in zip(bases, proofs, strict=True)]

    def _proof_on(self, base: Path, kind: str, adapter: Path) -> tuple[Agreement | None, str]:
        """Base and adapter together; no size speaks for another one."""
        earlier = self.compared.get(base.name)
        return earlier if earlier is not None and earlier[0] is not None else self._verified(base, kind, adapter)

    # ── verifying ────────────────────────────────────────────────────────────────────────────────────────────────
    def _check_own(self, own: Path) -> None:
        """Only small types were asked for, which have no bound: the floats they are made of have one."""
        found, _ = self._verified(own, "f16", None)
        if found is not None:
            self.flags.append(
                f"Before quantising: the same next token in {found.same_top_token:.1%} of {found.tokens_compared} "
                f"positions, perplexity {found.perplexity_change:+.2%} over {found.perplexity_tokens} tokens."
            )

    def _keep(self, path: Path, kind: str, adapter: Path | None) -> None:
        found, why = self._verified(path, kind, adapter)
        self.files.append(self._file(path, kind, found, why))

    def _file(self, path: Path, kind: str, found: Agreement | None, why: str) -> ExportedFile:
        final = self.order.out_path if self.order.one_file else self.order.out_path / path.name
        return ExportedFile(
            path=str(final),
            size_bytes=path.stat().st_size,
            kind=kind,
            sha256=sha256_of(path),
            agreement=found,
            not_verified=why,
        )

    def _verified(self, path: Path, kind: str, adapter: Path | None) -> tuple[Agreement | None, str]:
        """The figures, or why there are none. Raises EngineError `export.differs` for a file that must not be used."""
        if adapter is None and path.name in self.compared:
            return self.compared[path.name]
        if not self.order.verify:
            return None, NOT_ASKED
        runtime = find_runtime()
        if runtime is None:
            return None, why_none()
        found, why = self._asked(runtime, path, adapter)
        wrong = faults(found, kind) if found is not None else ()
        if wrong and not self.order.keep_failed:
            raise differs(path.name, wrong)
        self.flags += [f"{path.name}: {fault}. It was kept with --keep-failed." for fault in wrong]
        if found is not None and not found.stops:
            self._flag(f"{path.name}: {found.ended_words}.")
        return found, why

    def _asked(self, runtime: Runtime, path: Path, adapter: Path | None) -> tuple[Agreement | None, str]:
        try:
            verifier = self._reference()
            return verifier.in_llama_cpp(runtime, path, adapter, self.say), ""
        except EngineError as error:
            if error.code not in _CANNOT_TELL and not self.order.keep_failed:
                raise
            why = " ".join(part for part in (error.what, error.cause) if part)
            self._flag(f"Not verified: {why}")
            return None, why

    def _reference(self) -> Verifier:
        if self._verifier is None:
            adapter = Path(self.order.source) if self.order.adapter else None
            if adapter is not None and has_own_config(adapter):
                raise EngineError("verify.failed", "The adapter has a config of its own, which plain peft cannot load.")
            where = self.staging.work / "verify"
            asked = asked_of(self.model, self.spec)
            self._verifier = Verifier.of(Spoken(self.model, adapter), asked, where, self.say)
        return self._verifier

    def _found(self, file: Path, text: str) -> None:
        """A flag about a file just made, kept beside it for an attempt that finds it made."""
        self._flag(text)
        notes = self._notes(file)
        told = notes.read_text() if notes.is_file() else ""
        write_atomic(notes, f"{told}{text}\n".encode())

    def _find_again(self, file: Path) -> None:
        notes = self._notes(file)
        for text in notes.read_text().splitlines() if notes.is_file() else ():
            self._flag(text)

    def _notes(self, file: Path) -> Path:
        return self.staging.work / f"{file.name}.flags"

    def _flag(self, text: str) -> None:
        if text not in self.flags:
            self.flags.append(text)

    def _bytes(self, words: str) -> Callable[[int, int], None]:
        return lambda done, total: self.say(words, done, total)


def check_quantiser(order: ExportOrder) -> None:
    """Raises EngineError `export.no_quantiser` or `export.imatrix` before anything is written."""
    made = [kind for kind in order.types if kind not in WRITTEN_HERE]
    if order.imatrix:
        check_imatrix(Path(order.imatrix), made)
    if order.holds_weights and made and find_runtime() is None:
        raise EngineError(
            "export.no_quantiser",
            f"{', '.join(made)} is made by llama.cpp's quantiser, which is not here.",
            cause=why_none(),
            next_step="Or take f16, bf16 or q8_0, which are written without it.",
        )


def differs(name: str, wrong: tuple[str, ...]) -> EngineError:
    """The refusal to give a file its name."""
    return EngineError(
        "export.differs",
        f"{name} does not compute what it was made of, so it did not get its name.",
        cause=f"In its own runtime {'; '.join(wrong)}.",
        next_step="Choose a larger --type, or keep it all the same with --keep-failed.",
        exit_code=ExitCode.RUN_FAILED,
    )
