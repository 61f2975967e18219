"""Judging what was trained: talk to it, and measure it against its base."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any, ClassVar

from anyio.to_thread import run_sync
from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from whet.engine import api

from ..chats import Answer, Chats
from ..options import Options
from ..results import Result, call
from ..root import Root
from ..server import who
from .common import ACTIVE, RUN_ID, known_run
from .toolsets import READS, WRITES, Toolset
from .train import StartResult, started

CHAT_SECONDS = 45.0
ROLES = ("system", "user", "assistant")


class AnswerOut(BaseModel):
    """One voice's answer: untrusted text, and why it ended (stop, length, time)."""

    who: str
    text: str
    end: str
    seconds: float


class ChatResult(Result):
    """The voices' answers to the same messages."""

    answers: list[AnswerOut]


class EvalTools(Toolset):
    """Tools that judge a model."""

    name: ClassVar[str] = "eval"
    tools: ClassVar[dict[str, ToolAnnotations]] = {"model_chat": READS, "eval_run": WRITES}

    def __init__(self, options: Options, root: Root, chats: Chats) -> None:
        super().__init__(options, root)
        self.chats = chats

    async def model_chat(
        self,
        target: str,
        prompt: str | None = None,
        messages: list[dict[str, str]] | None = None,
        voices: list[api.Who] | None = None,
        max_new_tokens: Annotated[int, Field(ge=1, le=256)] = 128,
        temperature: Annotated[float, Field(ge=0, le=2)] = 0.0,
    ) -> ChatResult:
        """Ask a run (base beside tuned, and its GGUF), a model folder or a GGUF file: give `prompt`, or
        `messages` with role and content."""
        said = _messages(prompt, messages)
        name, found = await run_sync(self._target, target)
        wanted = voices or found.voices
        for voice in wanted:
            if voice not in found.voices:
                raise api.WhetError(
                    "chat.voice",
                    f"{name} has no voice {voice!r}; it has {', '.join(found.voices)}.",
                    call("model_chat", target=target, prompt=prompt, voices=found.voices),
                )
        # What is not asked is not loaded.
        found = found.model_copy(update={"gguf": found.gguf if "gguf" in wanted else None})
        if wanted == ["gguf"]:
            found = found.model_copy(update={"model": None, "adapter": None})
        ask = partial(self.chats.ask, found, said, wanted, max_new_tokens, temperature, seconds=CHAT_SECONDS)
        return _chat_result(name, wanted, await run_sync(ask, abandon_on_cancel=True))

    def eval_run(
        self,
        run_id: str,
        context: Context[Any, Any],
        data: str | None = None,
        prompts: list[str] | None = None,
        max_rows: Annotated[int | None, Field(ge=1)] = None,
        idempotency_key: str | None = None,
    ) -> StartResult:
        """Start an evaluation: held-out loss, metrics and answers of base and tuned model, on the rows the
        run held out or on `data`."""
        run = known_run(run_id)
        source = None if data is None else self.root.source(data)
        self.chats.close()
        begun = time.time()
        job = api.start_evaluation(
            run.id, source, max_rows, prompts or [], started_by=who(context), key=idempotency_key
        )
        return started(job, begun)

    def close(self) -> None:
        """End the loaded model."""
        self.chats.close()

    def _target(self, text: str) -> tuple[str, api.ChatTarget]:
        """A run by its id, or a model folder, adapter folder or GGUF file inside of the root."""
        if RUN_ID.fullmatch(text) and not (self.root.folder / text).exists():
            run = known_run(text)
            if run.status() in ACTIVE and not run.read_state().is_job:
                raise api.WhetError(
                    "chat.nothing_trained",
                    f"Run {run.id} is {run.status()}.",
                    call("job_wait", run_id=run.id, until="end"),
                )
            # The file is asked for as it lies there, proven or not: that is what the comparison is for.
            gguf = next((one.path for one in api.artifacts(run.id) if one.kind == "gguf"), None)
            return run.id, api.chat_target(run.id).model_copy(update={"gguf": gguf})
        path = self.root.model(text)
        a_model = any((path / name).is_file() for name in ("adapter_config.json", "config.json"))
        if not a_model and not (path.suffix == ".gguf" and path.is_file()):
            raise api.WhetError(
                "model.not_found",
                f"{api.printable(text[:80])!r} is no run, no folder of a model or an adapter, no GGUF file.",
                call("job_list"),
            )
        return path.name, api.chat_target(str(path))


def _messages(prompt: str | None, messages: list[dict[str, str]] | None) -> list[dict[str, str]]:
    """Raises WhetError ``chat.messages``."""
    given = messages if messages is not None else [{"role": "user", "content": prompt or ""}]
    sound = all(set(one) == {"role", "content"} and one["role"] in ROLES for one in given)
    if (prompt is None) == (messages is None) or not sound or not given or given[-1]["role"] != "user":
        raise api.WhetError(
            "chat.messages",
            "Give either prompt or messages: each with role (system, user, assistant) and content, the last "
            "one the user's.",
            'model_chat(target=..., messages=[{"role": "user", "content": "Hello"}])',
        )
    return given


def _chat_result(name: str, voices: list[api.Who], answers: list[Answer]) -> ChatResult:
    late = [one.who for one in answers if one.end == "time"]
    missing = [voice for voice in voices if voice not in [one.who for one in answers]]
    cut = [f"{who} ran out of time after {CHAT_SECONDS:.0f} seconds; ask for fewer tokens." for who in late]
    unsaid = [f"{voice} did not get its turn; ask it alone with voices." for voice in missing]
    same = len(answers) > 1 and len({one.text for one in answers}) == 1
    return ChatResult(
        summary=f"{name} answered as {', '.join(one.who for one in answers)}."
        + (" All said the same." if same else ""),
        next=[call("model_chat", target=name, prompt="Hello")] if not answers else [],
        warnings=[*cut, *unsaid],
        answers=[AnswerOut(who=one.who, text=one.text, end=one.end, seconds=one.seconds) for one in answers],
    )
