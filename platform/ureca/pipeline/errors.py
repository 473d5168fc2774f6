"""Why a labeling job stops before its corpus is done, in a way that it can go on from.

Every other error of a describer concerns one image, which is then set aside; these concern all that are left.
What is finished by then is written, and the same command goes on with the rest.
"""

from ureca.errors import UrecaError


class JobStopped(UrecaError):  # noqa: N818  (a state that the job is in, not a fault)
    """No further image can be labeled for now; none is to blame."""


class BudgetSpent(JobStopped):
    """The tokens that the job may spend are spent."""


class EndpointLost(JobStopped):
    """The endpoint, or the engine, that writes the captions is gone and did not come back in time."""
