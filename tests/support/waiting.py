"""Wait for an event in a test."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Poll until the condition holds.

    Raises:
        TimeoutError: the condition does not hold after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"condition not met after {seconds:g} s")
        time.sleep(0.05)
