"""What an agent reads when a call fails: a code, the fact, and the next call to make."""

from __future__ import annotations

import re

from whet.engine.api import WhetError

NEXT = {
    "run.unknown": "job_list()",
    "run.none": "plan_create(data=...)",
    "run.ambiguous": "job_list()",
    "plan.unknown": "plan_create(data=...)",
    "model.not_found": "model_list()",
    "template.unknown": "template_preview(...) without template",
    "hub.unproven": "gguf_smoke_test(run_id=...)",
}
"""Code -> the call that leads on, where the hint is for people at a shell."""

SHELL = (
    (r"whet attach (\S+)", r'job_wait(run_id="\1")'),
    (r"whet show (\S+?)(?: --log \d+)?", r'run_get(run_id="\1", view="logs")'),
    (r"whet resume (\S+)", r'run_resume(run_id="\1")'),
    (r"whet resume", "run_resume(run_id=...)"),
    (r"whet stop (\S+)", r'job_stop(run_id="\1")'),
    (r"whet demo", 'plan_create(data="demo", model="demo")'),
    (r"whet doctor(?: --\w+)*", "env_inspect()"),
    (r"whet runs", "job_list()"),
    (r"whet fix (\S+)(?: \w\d\d)?", "plan_create(base_plan_id=..., changes=<the finding's fix>)"),
    (r"whet plan\b[^`]*", "plan_create(...)"),
    (r"whet template --list", "template_preview(model=..., data=...)"),
)
"""Commands in the engine's hints -> the tool that does the same."""
COMMAND = re.compile(r"`?(?:" + "|".join(f"(?:{pattern})" for pattern, _ in SHELL) + r")`?(?=$|[\s,.;:)])")


def words(error: WhetError) -> str:
    """``[code] fact Next: exact call``, commands of the shell put as calls of tools."""
    lead = NEXT.get(error.code)
    hint = as_calls(error.hint)
    following = lead if lead and not hint else f"{hint} {lead or ''}".strip()
    return f"[{error.code}] {as_calls(error.message)}" + (f" Next: {following}" if following else "")


def as_calls(text: str) -> str:
    """``text`` with whet's shell commands replaced by the calls that do the same."""
    return COMMAND.sub(_one, text)


def _one(match: re.Match[str]) -> str:
    said = match.group().strip("`")
    for pattern, replacement in SHELL:
        if re.fullmatch(pattern, said):
            return re.sub(pattern, replacement, said)
    return said
