"""Find the checkpoint that a training resumes from, save its state, and mark the best."""

from __future__ import annotations

from pipeline.contract.stage import Context
from pipeline.contract.world import World
from pipeline.display.errors import UserError
from pipeline.training import checkpoint, resume
from pipeline.training.checkpoint import CheckpointInfo
from pipeline.training.saver import Saver
from pipeline.training.state import Saved, State


class Saving:
    """Keeps the state of one training in `checkpoints/`, on behalf of all its processes."""

    def __init__(self, context: Context, world: World) -> None:
        self._context, self._world = context, world
        self._folder = context.dir / "checkpoints"
        self._identity = resume.identity(context)
        self.saver = Saver(
            self._folder, context.config.checkpoint, context.check_owner, self._saved
        )

    def load(self) -> Saved | None:
        """Return the state to resume from; None for a training that begins.

        Raises:
            UserError: the checkpoints belong to another training, or none of them is intact.
        """
        found = resume.find(self._context, self._world, self._identity)
        saved: Saved | None = checkpoint.load(found) if found else None
        self._context.saved = saved["step"] if saved else 0
        self.saver.begin(self._context.saved, found.name if found else None)
        return saved

    def save(self, state: State) -> None:
        """Save the state while training continues; collective.

        Raises:
            NotFinite: a loss since the last save is not finite; no such state is saved.
            OSError: neither this checkpoint nor the previous one can be written.
        """
        state.history.flush()
        dump = state.dump()
        if self._world.main:
            self.saver.save(self._info(state), dump)

    def mark_best(self, state: State) -> None:
        """Record the newest checkpoint as the best, if its epoch has the best validation so far."""
        if self._world.main:
            self.saver.wait()
            self._context.check_owner()
            assert self.saver.newest is not None  # the checkpoint of this epoch's last step
            checkpoint.mark_best(
                self._folder, self.saver.newest, state.epoch, state.metrics["top1"]
            )

    def load_best(self, epoch: int) -> Saved:
        """Return the state with the best validation.

        Args:
            epoch: the epoch with the best validation.

        Raises:
            UserError: the file of that state is damaged or missing, or was written by steps that
                have been repeated since.
        """
        self.saver.wait()
        path = checkpoint.best(self._folder)
        best: Saved = checkpoint.load(path)
        if best["epoch"] + 1 != epoch:  # saved before the epoch was validated and counted
            raise UserError(
                f"{path} is not of epoch {epoch}, the best, which was trained again from an older "
                "checkpoint; train again with again=[train], or ship the last with train.ship=last"
            )
        return best

    def _info(self, state: State) -> CheckpointInfo:
        return CheckpointInfo(
            step=state.step,
            epoch=state.epoch,
            attempt=self._context.attempt,
            world_size=self._world.world_size,
            boundary=state.boundary,
            history=state.history.rows,
            growth=state.growth.rows,
            identity=self._identity,
        )

    def _saved(self, info: CheckpointInfo, seconds: float) -> None:
        self._context.saved = info.step
        self._context.event(
            "saved", step=info.step, epoch=info.epoch, file=info.name, seconds=round(seconds, 3)
        )
