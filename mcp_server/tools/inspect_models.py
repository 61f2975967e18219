"""Looking at models: those here and known ones, and what one of them needs and can do."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from whet.engine import api

from ..results import Result, call
from .common import fitting, place
from .toolsets import Toolset


class ModelsResult(Result):
    """A page of the list."""

    models: list[dict[str, Any]]
    left: int
    cursor: str | None


class ModelResult(Result):
    """One model."""

    facts: dict[str, Any]
    template: dict[str, Any]
    capabilities: dict[str, str]
    memory_gib: dict[str, dict[int, float]]
    longest_row: dict[str, int | None]
    capacity_gib: float


class ModelTools(Toolset):
    """The part of the tools that look which is about models."""

    def model_list(
        self,
        query: Annotated[str | None, Field(description="Part of a name, family or licence.")] = None,
        limit: Annotated[int, Field(ge=1, le=50)] = 20,
        cursor: str | None = None,
    ) -> ModelsResult:
        """Models on this machine, then known ones, with memory for LoRA and whether that fits."""
        every = api.models(query, folders=[self.root.folder])
        first = place(cursor, len(every))
        page = fitting([_short(one) for one in every[first:]], limit)
        left = len(every) - first - len(page)
        after = str(first + len(page)) if left else None
        here = sum(one.here for one in every)
        usable = [one for one in every if one.chat and one.here and any(one.fits.values())]
        best = max(usable, key=lambda one: one.parameters, default=None)
        return ModelsResult(
            summary=f"{len(every)} models, {here} of them on this machine; {len(page)} shown, {left} left.",
            next=[
                *([call("model_inspect", model=best.name)] if best else []),
                *([call("model_list", query=query, limit=limit, cursor=after)] if after else []),
                *([] if every else [call("model_list")]),
            ],
            models=page,
            left=left,
            cursor=after,
        )

    def model_inspect(self, model: str) -> ModelResult:
        """One model: size, template, what works with it, memory by precision and row length."""
        report = api.inspect_model(self.root.source(model))
        facts, template = report.facts, report.template
        best = max((length for length in report.longest.values() if length), default=None)
        return ModelResult(
            summary=f"{facts.parameters.total / 1e6:,.0f} million parameters, family {report.family}, "
            f"{'chat' if report.chat else 'base'} model; weights {'here' if report.here else 'not here'}."
            + (f" Rows of up to {best:,} tokens fit." if best else ""),
            next=[
                call("dataset_inspect", data="demo", model=model),
                call("template_preview", model=model, data="demo"),
            ],
            warnings=_limits(report),
            facts={
                "name": report.name,
                "family": report.family,
                "parameters": facts.parameters.total,
                "context": facts.max_positions,
                "layers": facts.layers,
                "dtype": facts.dtype,
                "quantization": facts.quantization,
                "licence": report.licence,
                "here": report.here,
                "off_fast_path": report.fast_path,
                "no_gguf": report.gguf,
            },
            template={
                "own": report.chat,
                "family": template.family if template else None,
                "prompt": template.prompt if template else None,
                "fitting": report.fitting_template,
            },
            capabilities={
                name: f"{able.status}: {able.note}".removesuffix(": ")
                for name, able in report.capabilities.items()
            },
            memory_gib=report.memory_gib,
            longest_row=report.longest,
            capacity_gib=report.capacity_gib,
        )


def _short(entry: api.ModelEntry) -> dict[str, Any]:
    """A line of the list: what decides whether one takes the model."""
    whole = {
        "name": entry.name,
        "parameters": entry.parameters,
        "here": entry.here,
        "chat": entry.chat,
        "context": entry.context,
        "licence": entry.licence,
        "gated": entry.gated,
        "needs_gib": entry.needs_gib,
        "fits": [held for held, fits in entry.fits.items() if fits],
        "no_gguf": entry.gguf,
        "note": entry.note,
    }
    return {key: value for key, value in whole.items() if value not in (None, "", False)}


def _limits(report: api.ModelReport) -> list[str]:
    """What one should know before taking this model, in whet's own words; ``facts`` has the reasons."""
    limits = {
        f"No safetensors weights; {len(report.other_weights)} file(s) of other kinds are not read.": (
            not report.here and report.other_weights
        ),
        "The family is unknown: it trains on plain transformers, and sizes are estimates.": (
            not report.known_family
        ),
        "Off the fast path; see facts.": report.fast_path,
        "No GGUF export; see facts.": report.gguf,
    }
    return [text for text, holds in limits.items() if holds]
