"""From a goal to a whole recipe with reasons. Light: no torch."""

from .goal import Goal, Option, Proposal
from .proposing import propose

__all__ = ["Goal", "Option", "Proposal", "propose"]
