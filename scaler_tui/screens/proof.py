"""The proof of a grown model: one verdict, the figures behind it with their meaning, provenance and hashes.

Owns the layout; words are `proof_text`'s. The certificate is read in a thread, never measured or changed here.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import ClassVar

from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import Screen

from engine.errors import EngineError
from engine.expansion.certificate import CERTIFICATE_NAME, Certificate
from engine.jobs.events import ProofReady
from scaler_tui import proof_text
from scaler_tui.screens.help import HelpScreen
from scaler_tui.screens.run import STYLES
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets import proof_lines
from scaler_tui.widgets.frame import KeyLine
from scaler_tui.widgets.status_line import FixedText, toned

PARTS = {
    "findings": "What was measured",
    "noise": "Differences beside the noise of bfloat16",
    "operators": "What made the tensors",
    "files": "Files",
    "about": "About",
}


class CertificateRead(Message):
    """The certificate was read, or there is none."""

    def __init__(self, certificate: Certificate | None, error: EngineError | None = None) -> None:
        super().__init__()
        self.certificate = certificate
        self.error = error


class ProofScreen(Screen[None]):
    """The certificate of the model in `folder`."""

    CSS_PATH: ClassVar[list[str | PurePath]] = [STYLES / "run.tcss", STYLES / "card.tcss"]
    AUTO_FOCUS = "#card"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-normal"), (100, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b,escape,backspace", "back", "Back", key_display="b"),
        Binding("f", "file", "File", tooltip="Where the certificate is"),
        Binding("question_mark,f1", "help", "Help", key_display="?"),
        Binding("q", "leave", "Leave", show=False, tooltip="Leave the program"),
    ]
    place: ClassVar[str] = "proof"

    def __init__(self, folder: Path, told: Certificate | None = None) -> None:
        """`told` is shown where the folder has no certificate any more: what a journal kept of it."""
        super().__init__()
        self.folder = folder
        self.told = told
        self.certificate: Certificate | None = None

    @classmethod
    def of_run(cls, run_dir: Path, ready: ProofReady) -> ProofScreen:
        """The proof of the model that a run has grown."""
        return cls(run_dir / ready.model, proof_text.told_certificate(ready))

    def compose(self) -> ComposeResult:
        yield FixedText(id="card-title")
        with VerticalScroll(id="card"):
            yield FixedText(id="card-headline")
            for part in PARTS:
                yield FixedText(id=f"proof-{part}", classes="card-part")
        yield FixedText(id="card-status")
        yield KeyLine(id="keys")

    @property
    def unicode(self) -> bool:
        """False: ASCII only."""
        policy = getattr(self.app, "policy", None)
        return policy.unicode if isinstance(policy, RenderPolicy) else True

    def on_mount(self) -> None:
        self.set_class(not self.unicode, "-ascii")
        for part, title in PARTS.items():
            widget = self.query_one(f"#proof-{part}")
            widget.border_title = title
            widget.display = False
        self.query_one("#card-status").display = False
        self.query_one("#card-title", FixedText).show(
            Content.assemble(" ", toned("Proof", "strong"), f"  {self.folder.name}")
        )
        self.read_certificate()

    @work(thread=True, exclusive=True, exit_on_error=False, group="certificate")
    def read_certificate(self) -> None:
        """Read expansion.json in a thread."""
        from engine.expansion.certificate import read_certificate

        try:
            certificate = read_certificate(self.folder)
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            what = f"{CERTIFICATE_NAME} cannot be read."
            cause = f"{self.folder}: {error}"
            self.post_message(CertificateRead(None, EngineError("proof.damaged", what, cause=cause)))
            return
        missing = None
        certificate = certificate or self.told
        if certificate is None:
            missing = EngineError(
                "proof.missing",
                f"There is no {CERTIFICATE_NAME} in {self.folder}.",
                next_step="It is written when growing is complete.",
            )
        self.post_message(CertificateRead(certificate, missing))

    def on_certificate_read(self, message: CertificateRead) -> None:
        """Show it."""
        message.stop()
        self.certificate = message.certificate
        if message.error is not None:
            text = Content.assemble(
                toned(message.error.what, "strong"), "\n", message.error.next_step or message.error.cause
            )
            self.query_one("#card-headline", FixedText).show(text)
        self.show_proof()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.show_proof)

    def show_proof(self) -> None:
        """Draw the certificate for the present width."""
        certificate = self.certificate
        if certificate is None or not self.is_mounted:
            return
        unicode = self.unicode
        width = max(self.query_one("#card").scrollable_content_region.width - 2, 30)
        self.query_one("#card-headline", FixedText).show(proof_lines.headline(certificate, width - 2, unicode=unicode))
        found = proof_text.findings(certificate)
        self._fill("findings", proof_lines.finding_lines(found, width, unicode=unicode))
        self._fill("noise", proof_lines.noise_bars(certificate, width, unicode=unicode))
        self._fill("operators", proof_lines.operator_lines(certificate, width))
        self._fill("files", proof_lines.file_lines(certificate, str(self.folder), width))
        self._fill("about", proof_lines.about_lines(certificate, width))

    def _fill(self, name: str, content: Content) -> None:
        part = self.query_one(f"#proof-{name}", FixedText)
        part.display = bool(content.plain)
        part.show(content)

    def action_file(self) -> None:
        """Say where the certificate is."""
        status = self.query_one("#card-status", FixedText)
        status.display = True
        status.show(Content.assemble(toned("Certificate: ", "strong"), str(self.folder / CERTIFICATE_NAME)))

    def action_back(self) -> None:
        """One screen back."""
        self.dismiss()

    def action_help(self) -> None:
        """The keys of this screen."""
        self.app.push_screen(HelpScreen.of(self))

    async def action_leave(self) -> None:
        """Leave the program."""
        await self.app.run_action("leave" if hasattr(self.app, "action_leave") else "quit")
