"""What a checkpoint of this worker holds, how it is taken over from the Trainer, and which one may be resumed.

Owns the list of needed files, `progress.json` and the refusals. Must not know the loop. Staging, hashing and renaming
are `engine.jobs.checkpoints`'. The Trainer writes `optimizer.pt`, `scheduler.pt` and `rng_state.pth`; they are read
back by torch's weights-only reader, and only after their SHA-256 was verified. Its `training_args.bin`, a pickle of
arbitrary objects, is never kept.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs import checkpoints, layout

FIRST = "trained-00001.safetensors"
"""The first file of `engine.train.trained_weights`."""

PROGRESS = "progress.json"
REQUIRED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    PROGRESS,
)
"""Without any one of these a resumed run would silently be another run."""
REQUIRED_GROWN = (FIRST, *REQUIRED[2:])
"""The same for whole-model training: what learns instead of an adapter."""
SHARDED = "sharded/.metadata"
"""Of a checkpoint that several processes wrote together (`engine.distributed.sharded`)."""
REQUIRED_SHARDED = (SHARDED, "scheduler.pt", "trainer_state.json", PROGRESS)
NOT_KEPT = ("training_args.bin", "README.md")
_STAGING = ".staging-trainer"
_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container.cc", "iostream error")


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """`progress.json`: what the Trainer's own state does not say."""

    step: int
    spec_hash: str
    data_sha256: str
    threads: int
    versions: dict[str, str]
    device: str
    complete: bool = False
    """No step is left: the last one is done, or early stopping ended it."""
    early_stopped: bool = False
    best_eval_loss: float | None = None
    evaluations_without_gain: int = 0
    training_seconds: float = 0.0
    """Sum of the steps' seconds, evaluations and saves left out."""
    tokens: int = 0
    trained_tokens: int = 0
    stage: int = 0
    """Of a staged job, from 0; `complete` then speaks of this stage."""
    stage_first_step: int = 0
    pieces: int = 1
    """In which every micro-batch is computed since memory ran out."""
    writing_pieces: int = 1
    position: dict[str, int] = {}
    """Of streams: tokens taken of each source so far, over all epochs and stages."""
    stage_position: dict[str, int] = {}
    stage_worked_from: float = 0.0
    recent_losses: tuple[float, ...] = ()
    eval_losses: tuple[float, ...] = ()
    ended: str = ""
    """These as in `engine.train.tally.Tally`."""
    v: int = 1


@dataclass(frozen=True, slots=True)
class Resume:
    """A checkpoint to go on from."""

    path: Path
    progress: Progress

    @property
    def is_sharded(self) -> bool:
        """Whether several processes wrote it together, and several have to read it."""
        return (self.path / SHARDED).is_file()


def trainer_output(run_dir: Path) -> Path:
    """Where the Trainer writes; hidden, on the same file system as the checkpoints, swept when a run is taken over."""
    return run_dir / layout.CHECKPOINTS / _STAGING


def take_over(
    run_dir: Path, progress: Progress, *, written_step: int | None = None, required: tuple[str, ...] = REQUIRED
) -> Path:
    """Turn the folder that the Trainer just wrote into the checkpoint of `progress.step`. Raises EngineError.

    `written_step` is the Trainer's own count where it differs: it begins anew in every stage.
    """
    step = progress.step
    written = trainer_output(run_dir) / f"checkpoint-{step if written_step is None else written_step}"
    staging = checkpoints.stage_dir(run_dir, step)
    staging.rmdir()
    written.rename(staging)
    try:
        for name in NOT_KEPT:
            (staging / name).unlink(missing_ok=True)
        layout.write_atomic(staging / PROGRESS, msgspec.json.format(msgspec.json.encode(progress)))
        return checkpoints.commit(staging, step, required=required)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def discard_staging(run_dir: Path) -> None:
    """Drop a half-written checkpoint."""
    shutil.rmtree(trainer_output(run_dir), ignore_errors=True)
    checkpoints.sweep(run_dir)


def is_full_disk(error: BaseException, *, while_saving: bool) -> bool:
    """Did a write fail for lack of room? torch's writer loses the errno and says only that its stream broke."""
    if isinstance(error, EngineError):
        return error.code == "disk.full"
    if not while_saving:
        return False
    return checkpoints.is_disk_full(error) or any(words in str(error) for words in _TORCH_WRITER)


def find_resume(
    run_dir: Path, spec_hash: str, *, required: tuple[str, ...] = REQUIRED
) -> tuple[Resume | None, tuple[str, ...]]:
    """The newest sound checkpoint and a sentence per newer one passed over; None when the run has none yet.

    Raises EngineError when there are checkpoints and none is sound, or when the spec is another one.
    """
    found = checkpoints.latest(
        run_dir, required=lambda path: REQUIRED_SHARDED if (path / SHARDED).is_file() else required
    )
    if found.path is None:
        if found.messages:
            raise EngineError(
                "resume.no_sound_checkpoint",
                "None of this run's checkpoints is complete and undamaged, so it cannot go on.",
                cause=" ".join(found.messages),
                next_step=f"To train again from the first step, remove {run_dir / layout.CHECKPOINTS} and resume.",
                exit_code=ExitCode.RUN_FAILED,
            )
        return None, ()
    progress = msgspec.json.decode((found.path / PROGRESS).read_bytes(), type=Progress)
    if progress.spec_hash != spec_hash:
        raise _changed("spec", "spec.toml is not the one its checkpoints were made with.", run_dir)
    messages = found.messages
    if messages:
        messages = (*messages, f"The run goes on from step {progress.step} instead.")
    return Resume(found.path, progress), messages


def check_same_run(resume: Resume, run_dir: Path, *, data_sha256: str, current: Progress) -> tuple[str, ...]:
    """Refuse other data; say what else differs and makes the continuation inexact. Raises EngineError."""
    progress = resume.progress
    if progress.data_sha256 != data_sha256:
        raise _changed("data", "The training or held-out rows are not the ones the run began with.", run_dir)
    notes = []
    if progress.threads != current.threads and current.device == "cpu":
        notes.append(f"{current.threads} CPU threads instead of {progress.threads}")
    if progress.device != current.device:
        notes.append(f"{current.device} instead of {progress.device}")
    for name, version in current.versions.items():
        before = progress.versions.get(name)
        if before is not None and before != version:
            notes.append(f"{name} {version} instead of {before}")
    if not notes:
        return ()
    return (f"The run goes on with {', '.join(notes)}: results may differ in the last digits from an unbroken run.",)


def _changed(kind: str, what: str, run_dir: Path) -> EngineError:
    return EngineError(
        f"resume.{kind}_changed",
        what,
        cause="Going on would mix two different jobs in one result.",
        next_step=f"Put the old {kind} back, or start a new run: scaler-wizard start "
        + shlex.quote(str(run_dir / layout.SPEC)),
        exit_code=ExitCode.RUN_FAILED,
    )
