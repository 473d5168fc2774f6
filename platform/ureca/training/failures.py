"""Failure policy of a training run: which errors are retried, and which end the run.

A worker or machine that dies is replaced, and training resumes from the newest checkpoint (`workers.max_failures`
times). Errors that only the user can fix (a missing image, a non-finite loss, a full disk) would recur, so they end the
run with their message. S3 that does not answer may recover, so StorageError is retried.
"""

from typing import Any

from ray.train import UserCallback

from ureca.errors import StorageError, UrecaError
from ureca.storage.files import is_full_disk


class StopOnUserErrors(UserCallback):
    """Ray Train callback that ends the run on errors that a retry can't fix.

    Runs in Ray Train's controller, which stops after an error raised here.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raise the first worker error that only the user can fix."""
        for failure in worker_exceptions.values():
            error = _unwrap(failure)
            if error is not None and not isinstance(error, StorageError):
                raise error


def find_user_error(error: BaseException) -> BaseException:
    """Return the UrecaError inside Ray Train's wrappers, or `error` itself if there is none."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    controller = getattr(error, "controller_failure", None)
    for failure in [*failures.values(), *([controller] if controller else [])]:
        if (found := _unwrap(failure)) is not None:
            return found
    if controller is not None and is_full_disk(controller):
        return StorageError(
            f"Ray Train can't write its checkpoint index: the disk is full ({controller}). Free some space and run the "
            "same command again; it resumes from the newest checkpoint."
        )
    return error


def _unwrap(failure: BaseException) -> UrecaError | None:
    for candidate in (failure, getattr(failure, "_base_exc", None), getattr(failure, "cause", None)):
        if isinstance(candidate, UrecaError):
            return candidate
    return None
