"""The one façade that the command line, the TUI and the MCP server call. It imports no torch.

What needs torch runs elsewhere: in a run's own worker, or in a short process that speaks JSON lines.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import WhetError
from .facade.artefacts import (
    adapter_base,
    artifact,
    artifacts,
    chat_target,
    export,
    export_targets,
    gguf_types,
    push,
    pushable,
    smoke,
    start_evaluation,
    start_export,
    start_smoke,
    trained,
    usual_target,
    write_modelfile,
)
from .facade.findings import catalogue, explain, fix, patch_text, write_recipe
from .facade.looking import (
    bundle,
    chat_templates,
    check_kernels,
    data_suffixes,
    doctor,
    environment_flags,
    first_rows,
    gpus,
    inspect_data,
    machine,
    row_uses,
    template_view,
    with_method,
)
from .facade.planning import (
    about_recipe,
    copy_recipe,
    hub_login,
    inspect_model,
    keep_plan,
    kept_plan,
    method_models,
    models,
    plan,
    propose,
    recipe,
    schema,
    search_models,
)
from .facade.remote import RemoteRun, follow_remote, is_remote, parse_address, remote_runs
from .facade.rewards import try_rewards
from .facade.running import (
    events,
    find,
    follow,
    log,
    model_code,
    prepare,
    request_checkpoint,
    restore,
    resume,
    run,
    runs,
    start,
    stop,
    trash,
)
from .findings import Finding, Fix
from .printable import printable
from .runs.control import StopRequest
from .runs.events import (
    FAST_PATH,
    CheckpointEvent,
    DoneEvent,
    ErrorEvent,
    EvalEvent,
    Event,
    ExportEvent,
    FindingEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
)
from .runs.log import LogPage
from .runs.state import RunState, RunSummary, Status
from .settings import Settings, settings

if TYPE_CHECKING:
    from .chat.session import ChatPiece, ChatSession, ChatTarget, Who
    from .checks.catalogue import Entry
    from .data.inspection import DataReport
    from .data.preview import RowText, TemplatePreview
    from .data.template_facts import TemplateFacts
    from .data.uses import Use
    from .doctor import DoctorReport, FlagReport
    from .export.artifacts import Artifact
    from .fixing import Fixed
    from .goals import Goal, Option, Proposal
    from .goals.methods import proposable
    from .hardware import Machine
    from .kernel_report import KernelReport
    from .methods.kinds import LANGUAGE_MODELS
    from .models.hub_search import HubModel
    from .models.listing import ModelEntry
    from .models.report import ModelReport
    from .plan import RECIPE_KEYS, Plan
    from .recipe import Recipe
    from .recipe_files import parse_override, patched, recipe_from_text, shipped, to_yaml
    from .redaction import Redactor
    from .remote.following import RemoteEnd, RemoteStart
    from .rewards.trial import RewardTrial
    from .run_view import RunView
    from .surroundings.facts import GPUHealth
    from .template_compare import Comparison
    from .template_view import TemplateView
    from .yaml_edit import set_key

# Loaded when first used: listing runs and completing words in a shell must not wait for the planner.
_LAZY = {
    "LANGUAGE_MODELS": "methods.kinds",
    "RECIPE_KEYS": "plan",
    "Artifact": "export.artifacts",
    "ChatPiece": "chat.session",
    "ChatSession": "chat.session",
    "ChatTarget": "chat.session",
    "Comparison": "template_compare",
    "DataReport": "data.inspection",
    "DoctorReport": "doctor",
    "FlagReport": "doctor",
    "GPUHealth": "surroundings.facts",
    "Entry": "checks.catalogue",
    "Fixed": "fixing",
    "Goal": "goals",
    "HubModel": "models.hub_search",
    "KernelReport": "kernel_report",
    "Machine": "hardware",
    "ModelEntry": "models.listing",
    "ModelReport": "models.report",
    "Option": "goals",
    "Plan": "plan",
    "Proposal": "goals",
    "Recipe": "recipe",
    "Redactor": "redaction",
    "RemoteEnd": "remote.following",
    "RemoteStart": "remote.following",
    "RewardTrial": "rewards.trial",
    "RowText": "data.preview",
    "RunView": "run_view",
    "TemplateFacts": "data.template_facts",
    "TemplatePreview": "data.preview",
    "TemplateView": "template_view",
    "Use": "data.uses",
    "Who": "chat.session",
    "parse_override": "recipe_files",
    "proposable": "goals.methods",
    "patched": "recipe_files",
    "recipe_from_text": "recipe_files",
    "set_key": "yaml_edit",
    "shipped": "recipe_files",
    "to_yaml": "recipe_files",
}

__all__ = [
    "FAST_PATH",
    "LANGUAGE_MODELS",
    "RECIPE_KEYS",
    "Artifact",
    "ChatPiece",
    "ChatSession",
    "ChatTarget",
    "CheckpointEvent",
    "Comparison",
    "DataReport",
    "DoctorReport",
    "DoneEvent",
    "Entry",
    "ErrorEvent",
    "EvalEvent",
    "Event",
    "ExportEvent",
    "Finding",
    "FindingEvent",
    "Fix",
    "Fixed",
    "FlagReport",
    "GPUHealth",
    "Goal",
    "HubModel",
    "KernelReport",
    "LogPage",
    "Machine",
    "ModelEntry",
    "ModelReport",
    "Option",
    "PhaseEvent",
    "Plan",
    "Proposal",
    "Recipe",
    "Redactor",
    "RemoteEnd",
    "RemoteRun",
    "RemoteStart",
    "RewardTrial",
    "RowText",
    "RunState",
    "RunSummary",
    "RunView",
    "SampleEvent",
    "Settings",
    "Status",
    "StepEvent",
    "StopRequest",
    "TemplateFacts",
    "TemplatePreview",
    "TemplateView",
    "Use",
    "WhetError",
    "Who",
    "about_recipe",
    "adapter_base",
    "artifact",
    "artifacts",
    "bundle",
    "catalogue",
    "chat_target",
    "chat_templates",
    "check_kernels",
    "copy_recipe",
    "data_suffixes",
    "doctor",
    "environment_flags",
    "events",
    "explain",
    "export",
    "export_targets",
    "find",
    "first_rows",
    "fix",
    "follow",
    "follow_remote",
    "gguf_types",
    "gpus",
    "hub_login",
    "inspect_data",
    "inspect_model",
    "is_remote",
    "keep_plan",
    "kept_plan",
    "log",
    "machine",
    "method_models",
    "model_code",
    "models",
    "parse_address",
    "parse_override",
    "patch_text",
    "patched",
    "plan",
    "prepare",
    "printable",
    "proposable",
    "propose",
    "push",
    "pushable",
    "recipe",
    "recipe_from_text",
    "remote_runs",
    "request_checkpoint",
    "restore",
    "resume",
    "row_uses",
    "run",
    "runs",
    "schema",
    "search_models",
    "set_key",
    "settings",
    "shipped",
    "smoke",
    "start",
    "start_evaluation",
    "start_export",
    "start_smoke",
    "stop",
    "template_view",
    "to_yaml",
    "trained",
    "trash",
    "try_rewards",
    "usual_target",
    "with_method",
    "write_modelfile",
    "write_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __package__), name)
