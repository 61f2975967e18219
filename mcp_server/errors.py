"""What an agent reads when a call fails: a code, the fact, and the next call to make."""

from __future__ import annotations

import json
import re
from typing import Any

from whet.engine.api import WhetError

LONGEST = 4000
"""Characters of a hint that are looked through; less is shown."""
NEXT = {
    "run.unknown": "job_list()",
    "run.none": "plan_create(data=...)",
    "run.ambiguous": "job_list()",
    "plan.unknown": "plan_create(data=...)",
    "model.not_found": "model_list()",
    "template.unknown": "template_preview(...) without template",
    "hub.unproven": "gguf_smoke_test(run_id=...)",
    "run.not_running": "run_get(run_id=...)",
    "run.no_plan": "job_list()",
    "lock.held": "the same call again in a minute; job_list() says who works",
    "recipe.invalid": "whet://recipe-schema says what each key takes",
    "chat.load": "model_inspect(model=...)",
    "chat.no_language_model": 'run_get(run_id=..., view="artifacts")',
    "gguf.unreadable": "export_start(run_id=...)",
    "smoke.decode": "export_start(run_id=...)",
    "smoke.unloadable": "export_start(run_id=...)",
    "tool.failed": "env_inspect()",
    "data.format": 'dataset_inspect(data=..., format="alpaca", columns={"instruction": "question", ...})',
}
"""Code -> the call that leads on, where the hint is for people at a shell."""

SHELL = (
    ("unset WHET_OFFLINE", "ask the operator to unset WHET_OFFLINE"),
    (r"whet attach (\S+?)", r'job_wait(run_id="\1")'),
    (r"whet show (\S+?)(?: --log \d+)?", r'run_get(run_id="\1", view="logs")'),
    (r"whet resume (\S+?) \S+=\S+", r'plan_create(base_plan_id=..., changes=...) for run "\1"'),
    (r"whet resume (\S+?)", r'run_resume(run_id="\1")'),
    (r"whet resume", "run_resume(run_id=...)"),
    (r"whet stop (\S+?)(?: && whet train RECIPE)?", r'job_stop(run_id="\1")'),
    (r"whet demo", 'plan_create(data="demo", model="demo")'),
    (r"whet doctor(?: --\w+)*", "env_inspect()"),
    (r"whet runs", "job_list()"),
    (r"whet fix (\S+?)(?: \w\d\d)?", "plan_create(base_plan_id=..., changes=<the finding's fix>)"),
    (r"whet plan\b[^`]*", "plan_create(...)"),
    (r"whet train RECIPE", "plan_create(...)"),
    (r"whet data SOURCE", "dataset_inspect(data=...)"),
    (r"whet data (\S+?)", r'dataset_inspect(data="\1")'),
    (r"whet template --list", "template_preview(model=..., data=...)"),
    (r"whet template MODEL DATA", "template_preview(model=..., data=...)"),
    (r"whet template (\S+?) (\S+?)", r'template_preview(model="\1", data="\2")'),
    (r"whet template", "template_preview(model=..., data=...)"),
    (r"whet export (\S+?)(?: --\w+(?: \w+)?)*", r'export_start(run_id="\1", types=["q4_k_m"])'),
    (r"whet export", "export_start(run_id=...)"),
    (r"whet eval (\S+?) --data FILE", r'eval_run(run_id="\1", data=...)'),
    (r"whet eval (\S+?)", r'eval_run(run_id="\1")'),
    (r"whet smoke \S+? --reference \S+?", "gguf_smoke_test(run_id=...)"),
    (r"whet push --unproven", "hub_push(..., force_unproven=true), about which the person is asked"),
    (r"whet explain ID", "whet://findings/ID"),
    (r"whet explain (\w\d\d)", r"whet://findings/\1"),
    (r"whet explain", "whet://findings"),
    (r"whet schema", "whet://recipe-schema"),
    (r"whet recipes", "plan_create(data=...)"),
)
"""Commands in the engine's hints -> the tool, or resource, that does the same; longer ones first."""
COMMAND = re.compile(
    r"`?(?:" + "|".join(f"(?:{pattern})" for pattern, _ in SHELL) + r")`?(?=[,.;:)]*(?:\s|$))"
)
SECTIONS = "model|data|method|adapter|training|eval|sampling|export|checks"
SETTING = rf"\b(?:(?:{SECTIONS})(?:\.\w+)+|accept)=(?:'[^']*'|[^\s,;]*[^\s,;.])"
SETTINGS = re.compile(rf"{SETTING}(?: {SETTING})*")
"""Settings as they are typed behind a command: ``data.bad_rows=skip training.max_steps=30``."""


NEXT_WORD = re.compile(r"\bNext\s*:", re.IGNORECASE)


def words(error: WhetError) -> str:
    """``[code] fact Next: exact call``, commands of the shell put as calls of tools."""
    lead = NEXT.get(error.code)
    hint = SETTINGS.sub(_changes, as_calls(error.hint[:LONGEST]))
    following = lead if lead and not hint else f"{hint} {lead or ''}".strip()
    # A fact quotes names and rows, whose author could write a next call behind it.
    fact = NEXT_WORD.sub("Next;", as_calls(error.message))
    return f"[{error.code}] {fact}" + (f" Next: {following}" if following else "")


def as_calls(text: str) -> str:
    """``text`` with whet's shell commands replaced by the calls that do the same."""
    return COMMAND.sub(_one, text)


def _one(match: re.Match[str]) -> str:
    said = match.group().strip("`")
    for pattern, replacement in SHELL:
        if found := re.fullmatch(pattern, said):
            return found.expand(replacement)
    return said


def _changes(match: re.Match[str]) -> str:
    """Typed settings as plan_create takes them."""
    pairs = (word.partition("=") for word in re.findall(SETTING, match.group()))
    return f"changes={json.dumps({key: _value(text) for key, _, text in pairs}, ensure_ascii=False)}"


def _value(text: str) -> Any:
    """A setting's value as JSON where it is such, else its text; lists may hold bare words: ``'[D16]'``."""
    text = text.strip("'\"")
    if text.startswith("[") and text.endswith("]"):
        return [_value(word) for word in text[1:-1].split(", ") if word]
    try:
        return json.loads(text)
    except ValueError:
        return text
