"""Token budget of a job, as seen by whatever spends tokens."""

from typing import Protocol


class Budget(Protocol):
    """Tokens that all processes of a job may spend together."""

    async def reserve(self, tokens: int) -> None:
        """Reserve the maximum that the next request may take.

        Raises:
            BudgetSpent: fewer tokens are left.
        """
        ...

    def commit(self, reserved: int, spent: int) -> None:
        """Release a reservation and count the tokens that the request took."""
        ...
