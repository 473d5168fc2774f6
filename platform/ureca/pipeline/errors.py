"""Errors that stop a corpus job before its end, so that the same command can resume it.

Other errors concern one image, which is quarantined. Errors here concern all remaining images. Finished rows are kept,
and the same command continues with the rest.
"""

from ureca.errors import UrecaError


class JobStopped(UrecaError):  # noqa: N818  (a state that the job is in, not a fault)
    """No further image can be processed for now; no image is at fault."""


class BudgetSpent(JobStopped):
    """The job's token budget is spent."""


class EndpointLost(JobStopped):
    """The endpoint or engine that writes the captions is gone and did not come back in time."""
