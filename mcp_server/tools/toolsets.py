"""The tool sets an operator may choose from, in the order in which work goes."""

from __future__ import annotations

from typing import ClassVar

from mcp.types import ToolAnnotations

from whet.engine import api

from ..options import Options
from ..root import Root

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
DESTROYS = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
PUBLISHES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)


class Toolset:
    """A named set of tools. ``tools`` says which methods are tools, and what they may do."""

    name: ClassVar[str]
    tools: ClassVar[dict[str, ToolAnnotations]]

    def __init__(self, options: Options, root: Root) -> None:
        self.options = options
        self.root = root

    def close(self) -> None:
        """Give back what a session's end must not leave behind."""


def toolsets(options: Options) -> list[Toolset]:
    """All tool sets, made for one operator's options; the server decides which are offered."""
    from ..chats import Chats
    from .evaluate import EvalTools
    from .export import ExportTools
    from .hub import HubTools
    from .inspect import InspectTools
    from .plan import PlanTools
    from .runs import RunTools
    from .train import TrainTools

    root = Root(options.root, others=(api.settings().runs,))
    chats = Chats()
    return [
        InspectTools(options, root),
        PlanTools(options, root),
        RunTools(options, root),
        TrainTools(options, root, chats),
        EvalTools(options, root, chats),
        ExportTools(options, root, chats),
        HubTools(options, root),
    ]
