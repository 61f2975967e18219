"""Resources: what an agent may read besides calling tools. The essentials are in tools too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from whet.engine import api

from .report import report
from .results import Cleaner

if TYPE_CHECKING:
    from .server import Server

GUIDE = Path(__file__).parent / "guide.md"
LOG_LINES = 100
CURVE_POINTS = 60
JSON, MARKDOWN = "application/json", "text/markdown"


def add_resources(server: Server, cleaner: Cleaner) -> None:
    """Guide, recipe schema, findings, and five views of each run."""

    @server.resource("whet://guide", title="How to fine-tune with these tools", mime_type=MARKDOWN)
    def guide() -> str:
        """The flow in under 600 words."""
        return GUIDE.read_text(encoding="utf-8")

    @server.resource("whet://recipe-schema", title="JSON Schema of a recipe", mime_type=JSON)
    def recipe_schema() -> str:
        """Every key that plan_create's changes may set, with type, default and meaning."""
        return json.dumps(api.schema(), ensure_ascii=False)

    @server.resource("whet://findings", title="What findings mean: all ids", mime_type=MARKDOWN)
    def findings() -> str:
        """The catalogue of what can go wrong: id and symptom, a line each."""
        return "\n".join(f"- {id}: {entry.title}" for id, entry in api.catalogue().items())

    @server.resource("whet://findings/{id}", title="What one finding means", mime_type=MARKDOWN)
    def finding(id: str) -> str:
        """Symptom, how it is seen, cause and fix of one id."""
        entry = _found(api.explain, id)
        return (
            f"# {entry.id}: {entry.title}\n\n{entry.symptom}\n\nSeen: {entry.seen}\n\n"
            f"Why: {entry.why}\n\nFix: {entry.fix}\n"
        )

    views = {
        "status": _status,
        "config": _config,
        "metrics": _metrics,
        "log": _log,
        "report": report,
    }

    @server.resource("run://{id}/{view}", title="A run: status, config, metrics, log or report")
    def run(id: str, view: str) -> str:
        """One view of one run; the view is status, config, metrics, log or report."""
        if view not in views:
            raise ResourceNotFoundError(f"A run has no view {view!r}. There are: {', '.join(views)}.")
        text = views[view](_found(api.run, id))
        return "\n".join(cleaner.text(line, 4000) for line in text.splitlines())


def _found(look: Any, id: str) -> Any:
    """What a façade function knows of an id, its refusal as the protocol's own."""
    try:
        return look(id)
    except api.WhetError as error:
        if error.code.endswith(("unknown", "unknown_id", "none")):
            raise ResourceNotFoundError(str(error)) from error
        raise ResourceError(str(error)) from error


def _status(view: api.RunView) -> str:
    return json.dumps({"id": view.id, "status": view.status, **view.state.model_dump(mode="json")})


def _config(view: api.RunView) -> str:
    return api.to_yaml(view.plan.recipe) if view.plan else "A smoke test of files has no recipe."


def _metrics(view: api.RunView) -> str:
    """At most CURVE_POINTS steps, evenly spaced, the last one among them; all evaluations."""
    every = max(1, -(-len(view.steps) // CURVE_POINTS))
    kept = view.steps[::-every][::-1]
    steps = [
        one.model_dump(mode="json", include={"step", "loss", "learning_rate", "grad_norm"}) for one in kept
    ]
    evals = [one.model_dump(mode="json", include={"step", "loss", "best", "metrics"}) for one in view.evals]
    return json.dumps({"steps": steps, "evals": evals})


def _log(view: api.RunView) -> str:
    return "\n".join(api.find(view.id).log_tail(LOG_LINES))
