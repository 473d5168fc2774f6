"""Masks for photos that come without masks."""

from ureca.proposals.segments import ProposalConfig, propose_masks

__all__ = ["ProposalConfig", "propose_masks"]
