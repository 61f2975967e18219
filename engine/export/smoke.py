"""Smoke test: prove step by step that a GGUF is the trained model, against transformers.

Two processes: ``smoke_reference`` (transformers, once for any number of files) and ``smoke_process``
(llama.cpp, one a file). Neither can take the caller down: a crash is a failed proof. Light: imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.chat_templates import TEMPLATES, find
from ..data.chat_templates.renderer import COSTLY, strip_generation_tags
from ..errors import WhetError
from ..models.sentence_folder import is_embedding_model
from .embedding_judge import judge_embedding
from .gguf.native import patience_for, run_native
from .probe_corpus import probe_texts
from .smoke_cases import Limits
from .smoke_judge import judge
from .verdict import DIGEST_FILE, Proof, Verdict, fingerprint, save_verdict

HeldOut = list[dict[str, Any]]
"""Rows that were not trained on: ``messages`` (the last one the answer) and, where known, the ``input_ids``
and ``labels`` that training made of them; or ``input_ids`` and ``labels`` alone."""
DIRECT = ("f32", "f16", "bf16")
OWN_ROWS = 32
SCRATCH = ".whet-smoke-"
"""Begins the names of folders that are there while something is proven."""
SMALL_FILE = 100 << 20
"""Below this one thread is fastest: llama.cpp's threads spin while they wait for each other."""


@dataclass
class Baseline:
    """The reference side's measurements in a folder, good for any number of GGUF files of the same model."""

    work: Path
    facts: dict[str, Any]
    limits: Limits
    f16: Path | None = None
    """The first unquantised file that was proven: the quantised ones are held against it."""


@contextmanager
def reference_of(
    model_dir: Path,
    held_out: HeldOut | None = None,
    limits: Limits | None = None,
    work_dir: Path | None = None,
) -> Iterator[Baseline]:
    """Measure the trained model with transformers in a subprocess; the folder vanishes at the end.

    Args:
        model_dir: plain 16-bit model folder (merged) with tokenizer.
        held_out: see :data:`HeldOut`.
        limits: how much to look at.
        work_dir: where the temporary folder goes (up to 400 MB for large vocabularies).

    Raises:
        WhetError: ``smoke.reference`` when transformers cannot load or run the model; ``template.costly``.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=work_dir) as folder:
        request = {
            "model_dir": str(model_dir),
            "work": folder,
            "texts": [*probe_texts(), *_contents(held_out or [])],
            "held_out": (held_out or [])[: 4 * limits.held_out_rows],
            "limits": asdict(limits),
        }
        try:
            side = "embedding" if is_embedding_model(model_dir) else "smoke"
            run_native(f"whet.engine.export.{side}_reference", request, patience=patience_for(model_dir))
        except WhetError as error:
            if error.code == COSTLY:
                raise
            raise WhetError(
                "smoke.reference",
                f"The trained model in {model_dir} could not be measured with transformers: {error.message}",
                "Does it load with transformers? Is there memory for it?",
            ) from error
        facts = json.loads((Path(folder) / "reference.json").read_text(encoding="utf-8"))
        facts |= {"side": side, "template_as_trained": template_as_trained(model_dir, facts.get("template"))}
        yield Baseline(Path(folder), facts, limits)


def smoke_test(
    gguf: Path,
    reference_dir: Path,
    *,
    held_out: HeldOut | None = None,
    f16: Path | None = None,
    limits: Limits | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> Verdict:
    """The verdict of one file; also saved beside it as ``<name>.verdict.json``.

    Args:
        gguf: the file to prove.
        reference_dir: the merged 16-bit model.
        held_out: see :data:`HeldOut`; without it the model's answers to two questions of our own are
            compared.
        f16: unquantised GGUF of the same model; a quantised file is then compared with it instead of
            transformers.
        limits: how much to look at.
        progress: (stages done, stages in all).

    Raises:
        WhetError: ``smoke.no_gguf``, ``smoke.adapter``, ``smoke.reference``. What is wrong with the file is
            in the verdict.
    """
    with reference_of(reference_dir, held_out, limits) as baseline:
        if f16 is not None and type_of(gguf) not in DIRECT:
            prove(f16, baseline, keep=False)
        return prove(gguf, baseline, progress=progress)


def prove(
    gguf: Path,
    baseline: Baseline,
    *,
    progress: Callable[[float, float], None] | None = None,
    keep: bool = True,
) -> Verdict:
    """Prove one file against a measured reference. Prove the f16 file first: the quantised ones are held
    against it.

    Raises:
        WhetError: ``smoke.no_gguf``, ``smoke.adapter``.
    """
    started = time.monotonic()
    saved, kind = baseline.work / "f16.npy", _type_of_model(gguf)
    direct = kind in DIRECT
    against_f16 = not direct and saved.is_file()
    out = baseline.work / "measured.jsonl"
    out.unlink(missing_ok=True)
    request = {
        "gguf": str(gguf),
        "work": str(baseline.work),
        "out": str(out),
        "baseline": str(saved if against_f16 else baseline.work / "logits.npy"),
        "source": str(baseline.f16) if baseline.f16 and not direct else None,
        "save": str(saved) if direct and not saved.is_file() else None,
        "threads": 1 if gguf.stat().st_size < SMALL_FILE else len(os.sched_getaffinity(0)),
        "new_tokens": baseline.limits.new_tokens,
    }
    failure: WhetError | None = None
    side = baseline.facts["side"]
    try:
        run_native(f"whet.engine.export.{side}_process", request, progress, patience_for(gguf))
    except WhetError as error:
        failure = error
    measured, reached = _stages(out)
    if side == "embedding":
        proofs = judge_embedding(baseline.facts, measured, kind)
    else:
        proofs = judge(baseline.facts, measured, kind, against="f16" if against_f16 else "transformers")
    if request["save"]:
        baseline.f16 = baseline.f16 or gguf
        step = "vectors" if side == "embedding" else "logits"
        baseline.facts[f"f16_{step}"] = next((p.model_dump() for p in proofs if p.name == step), None)
    if failure is not None:
        proofs.append(_crash(failure, reached))
    verdict = Verdict.of(
        proofs,
        gguf,
        file_type=kind,
        seconds=round(time.monotonic() - started, 2),
        fingerprint=fingerprint(gguf),
    )
    if keep:
        save_verdict(verdict, gguf)
    return verdict


def _type_of_model(gguf: Path) -> str:
    """Of a file that is there and holds a whole model; else raises WhetError."""
    if not gguf.is_file():
        raise WhetError(
            "smoke.no_gguf", f"There is no GGUF file at {gguf}.", "Export one with `whet export`."
        )
    number, role = _header(gguf, "general.file_type", "general.type")
    if role == "adapter":
        raise WhetError(
            "smoke.adapter",
            f"{gguf} is an adapter: llama.cpp lays it over a model, and it is none by itself.",
            "It is proven where it is written: `whet export RUN --adapter-gguf`.",
        )
    return _type_name(number)


def _contents(rows: HeldOut) -> list[str]:
    """The users' own texts join the probe corpus."""
    messages = [message for row in rows[:OWN_ROWS] for message in row.get("messages") or []]
    return [message["content"] for message in messages if isinstance(message.get("content"), str)]


def template_as_trained(model_dir: Path, template: str | None) -> bool | None:
    """Whether ``template`` is the one whose hash training left in ``template_digest``; None where it left
    none.

    The hash is that of the template with its generation tags, which a saved tokenizer no longer has.
    """
    file = model_dir / DIGEST_FILE
    if template is None or not file.is_file():
        return None
    trained = file.read_text(encoding="utf-8").strip()
    sources = [template, *(s for s in map(_source, TEMPLATES) if strip_generation_tags(s) == template)]
    return any(hashlib.blake2b(source.encode(), digest_size=16).hexdigest() == trained for source in sources)


def _source(name: str) -> str:
    return find(name).source


def _stages(out: Path) -> tuple[dict[str, Any], str]:
    """Finished stages, and the last one begun."""
    measured: dict[str, Any] = {}
    reached = "start"
    if out.is_file():
        for line in out.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            entry = json.loads(line)
            reached = entry["stage"]
            if "value" in entry:
                measured[reached] = entry["value"]
    return measured, reached


def _crash(error: WhetError, reached: str) -> Proof:
    return Proof(
        name="llama.cpp",
        status="fail",
        summary=f"llama.cpp did not get past the step {reached!r}: {error.message[:300]}",
        evidence={"code": error.code, "step": reached, "message": error.message},
        fix=error.hint
        or "Convert again; if it stays, the file is not what llama.cpp expects of this architecture.",
    )


def type_of(gguf: Path) -> str:
    """The file's GGUF type from its header, e.g. ``q4_k_m``; empty for one whet does not know or cannot
    read."""
    return _type_name(*_header(gguf, "general.file_type"))


def _type_name(number: int | None) -> str:
    from .gguf.types import GGUF_TYPES

    return next((kind.name for kind in GGUF_TYPES.values() if kind.file_type == number), "")


def _header(gguf: Path, *keys: str) -> list[Any]:
    """Values of the file's header; None for what it has not. Reading one takes a second for large
    vocabularies."""
    from .gguf.reading import open_gguf, value_of

    try:
        fields = open_gguf(gguf).fields
        return [value_of(fields[key], gguf) if key in fields else None for key in keys]
    except WhetError:
        return [None] * len(keys)  # no GGUF, or cut off: llama.cpp's own words go into the verdict
