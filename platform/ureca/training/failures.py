"""Which failures of a training are tried again, and which end it at once.

A worker or a machine that dies is replaced, and all go on from the newest checkpoint (`workers.max_failures` times).
What a user has to mend, a missing image, a loss that is no number, a full disk, would come again: it ends the run with
its one line. S3 that does not answer may answer later, so that is tried again too.
"""

from typing import Any

from ray.train import UserCallback

from ureca.errors import StorageError, UrecaError
from ureca.io import is_full_disk

__all__ = ["EndAtUsersErrors", "users_error"]


class EndAtUsersErrors(UserCallback):
    """Lives in Ray Train's controller, which does not go on after an error raised here."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raise what a user has to mend."""
        for failure in worker_exceptions.values():
            error = _of_user(failure)
            if error is not None and not isinstance(error, StorageError):
                raise error


def users_error(error: BaseException) -> BaseException:
    """The error that was raised for the user, out of what Ray Train wraps it in; else as it came."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    controller = getattr(error, "controller_failure", None)
    for failure in [*failures.values(), *([controller] if controller else [])]:
        if (found := _of_user(failure)) is not None:
            return found
    if controller is not None and is_full_disk(controller):
        return StorageError(
            f"Ray Train can't write its list of checkpoints, the disk is full ({controller}). Free some space; the "
            "same command goes on from the newest checkpoint."
        )
    return error


def _of_user(failure: BaseException) -> UrecaError | None:
    for candidate in (failure, getattr(failure, "_base_exc", None), getattr(failure, "cause", None)):
        if isinstance(candidate, UrecaError):
            return candidate
    return None
