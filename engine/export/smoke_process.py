"""The GGUF as llama.cpp computes it: the smoke test's other side, a process of its own since llama.cpp may
crash.

Request: gguf, work (folder with the reference), out (JSON lines), baseline (log-probabilities to compare
with, .npy), save (where to put this file's own, or null), source (the f16 file that this one was made from,
or null), threads, new_tokens. Each finished stage is one line ``{"stage": ..., "value": ...}`` in ``out``, so
that a crash later loses none of it. Run by smoke.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WhetError
from .gguf.native import LlamaLog, Progress, import_llama_cpp, told
from .smoke_metadata import read_metadata
from .smoke_weights import compare_weights

TYPICAL = 0.98
"""Share of positions whose mean counts for mixtures of experts: where two experts nearly tie, rounding sends
a token to the other one, and that position differs by far more than by rounding."""
BATCH_BYTES = 64 << 20
"""Most bytes of logits in one llama.cpp batch."""


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    import_llama_cpp()
    reference = json.loads((Path(request["work"]) / "reference.json").read_text(encoding="utf-8"))
    with open(request["out"], "w", encoding="utf-8") as out:
        measurement = Measurement(request, reference, progress)
        stages = measurement.all()
        for number, (name, stage) in enumerate(stages.items(), 1):
            # First the name alone: a crash inside the stage is then known by it.
            print(json.dumps({"stage": name}), file=out, flush=True)
            started = time.monotonic()
            value = stage()
            seconds = round(time.monotonic() - started, 3)
            print(json.dumps({"stage": name, "value": value, "seconds": seconds}), file=out, flush=True)
            measurement.finished = number
            progress(number, len(stages))
    return {}


class Measurement:
    """One loaded GGUF and the reference's questions."""

    def __init__(self, request: dict[str, Any], reference: dict[str, Any], progress: Progress) -> None:
        self.request, self.reference, self.progress = request, reference, progress
        self.llama: Any = None
        self.finished = 0
        """Stages, for the progress within one."""

    def each(self, items: list[Any]) -> Iterator[Any]:
        return told(items, self.progress, self.finished, len(self.all()))

    def all(self) -> dict[str, Any]:
        stages = {
            "metadata": lambda: read_metadata(Path(self.request["gguf"])),
            "load": self.load,
            "vocabulary": self.vocabulary,
            "template": self.template,
            "stops": self.stops,
            "logits": self.logits,
            "answers": self.answers,
            "greedy": self.greedy,
        }
        if self.request["source"]:
            stages["weights"] = lambda: compare_weights(
                Path(self.request["gguf"]), Path(self.request["source"])
            )
        return stages

    def load(self) -> dict[str, Any]:
        """Everything in float32 but the weights, no flash attention, no GPU: differences are then the
        file's."""
        from .gguf.llama import Llama

        self.log = LlamaLog()
        columns = self.reference["vocabulary_size"]
        longest = max(len(ids) for ids in self._all_sequences())
        batch = max(8, min(512, BATCH_BYTES // (4 * columns)))
        try:
            self.llama = Llama(
                self.request["gguf"],
                n_ctx=longest + self.request["new_tokens"] + 8,
                n_batch=batch,
                n_ubatch=batch,
                n_threads=self.request["threads"],
                n_threads_batch=self.request["threads"],
                logits_all=True,
                type_k=0,
                type_v=0,
                flash_attn=False,
                n_gpu_layers=0,
                verbose=True,
            )
        except ValueError as error:
            raise WhetError(
                "smoke.unloadable", f"llama.cpp cannot load {self.request['gguf']}: {self.log.reason()}", ""
            ) from error
        return {"n_vocab": self.llama.n_vocab(), "chat_format": self.llama.chat_format}

    def _all_sequences(self) -> list[list[int]]:
        reference = self.reference
        rows = [row["prompt"] + row["answer"] for row in reference["rows"]]
        return [*reference["sequences"], *rows, *(prompt["ids"] for prompt in reference["greedy"]), [0]]

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        return list(self.llama.tokenize(text.encode(), add_bos=add_special, special=True))

    def vocabulary(self) -> list[dict[str, Any]]:
        return [
            {"ids": self.tokenize(entry["text"]), "special": self.tokenize(entry["text"], True)}
            for entry in self.reference["texts"]
        ]

    def template(self) -> dict[str, Any]:
        source = self.llama.chat_template
        if source is None:
            return {"source": None, "cases": []}
        return {"source": source, "cases": [self._case(case) for case in self.reference["cases"]]}

    def _case(self, case: dict[str, Any]) -> dict[str, Any]:
        try:
            text = self.llama.render(case["messages"], case["add_generation_prompt"], **case["kwargs"])
        except WhetError as error:
            return {"error": error.message}
        return {"text": text, "ids": self.tokenize(text)}

    def _is_end(self, token: int) -> bool:
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(self.llama.model), token))

    def stops(self) -> dict[str, Any]:
        ends = [token for token in range(self.llama.n_vocab()) if self._is_end(token)]
        return {"end_of_generation": ends, "bos": self.llama.token_bos(), "eos": self.llama.token_eos()}

    def log_probabilities(self, ids: list[int]) -> np.ndarray:
        """[len(ids), vocabulary] float64; position t predicts token t + 1."""
        self.llama.reset()
        self.llama.eval(ids)
        logits_TV = self.llama.scores[: len(ids)].astype(np.float64)
        top_T1 = logits_TV.max(axis=-1, keepdims=True)
        return logits_TV - top_T1 - np.log(np.exp(logits_TV - top_T1).sum(axis=-1, keepdims=True))

    def logits(self) -> dict[str, Any]:
        """KL(baseline || this file) a position, over the probe sequences, in nats: mean, most, and the mean
        of the nearest ``TYPICAL`` share."""
        baseline = np.load(self.request["baseline"], mmap_mode="r")
        if self.llama.n_vocab() != baseline.shape[1]:
            return {"columns": self.llama.n_vocab(), "expected_columns": baseline.shape[1]}
        saved = None
        if self.request["save"]:
            saved = np.lib.format.open_memmap(self.request["save"], "w+", np.float32, baseline.shape)
        divergences, agreed, at = [], 0, 0
        for ids in self.each(self.reference["sequences"]):
            q_TV = self.log_probabilities(ids)
            p_TV = np.asarray(baseline[at : at + len(ids)], dtype=np.float64)
            divergences.append((np.exp(p_TV) * (p_TV - q_TV)).sum(axis=-1))
            agreed += int((p_TV.argmax(-1) == q_TV.argmax(-1)).sum())
            if saved is not None:
                saved[at : at + len(ids)] = q_TV
            at += len(ids)
        kl_T = np.concatenate(divergences)
        return {
            "mean": float(kl_T.mean()),
            "max": float(kl_T.max()),
            "typical": float(np.sort(kl_T)[: max(1, int(len(kl_T) * TYPICAL))].mean()),
            "same_top": agreed / len(kl_T),
            "positions": len(kl_T),
            "finite": bool(np.isfinite(kl_T).all()),
        }

    def answers(self) -> list[float]:
        """Mean negative log-likelihood of each held-out answer after the prompt as this file renders it, in
        nats."""
        losses = []
        for row in self.each(self.reference["rows"]):
            prompt = self._prompt(row["messages"], row["prompt"], len(row["answer"]))
            logp_TV = self.log_probabilities(prompt + row["answer"])
            at = np.arange(len(prompt) - 1, len(prompt) + len(row["answer"]) - 1)
            losses.append(float(-logp_TV[at, row["answer"]].mean()))
        return losses

    def _prompt(self, messages: list[dict[str, str]] | None, ids: list[int], answer: int) -> list[int]:
        """As this file renders it. A wrong tokenizer may make more tokens of it than there is room for beside
        the answer; then its end counts."""
        if messages is not None and self.llama.chat_template is not None:
            ids = self.tokenize(self.llama.render(messages)) or ids
        return ids[-(self.llama.n_ctx() - answer) :]

    def greedy(self) -> list[dict[str, Any]]:
        return [self._greedy(prompt) for prompt in self.each(self.reference["greedy"])]

    def _greedy(self, prompt: dict[str, Any]) -> dict[str, Any]:
        self.llama.reset()
        self.llama.eval(self._prompt(prompt["messages"], prompt["ids"], self.request["new_tokens"]))
        answer: list[int] = []
        while len(answer) < self.request["new_tokens"]:
            token = int(self.llama.scores[self.llama.n_tokens - 1].argmax())
            if self._is_end(token):
                return {"answer": answer, "stopped": True, "text": self._text(answer)}
            answer.append(token)
            self.llama.eval([token])
        return {"answer": answer, "stopped": False, "text": self._text(answer)}

    def _text(self, ids: list[int]) -> str:
        return str(self.llama.detokenize(ids, special=True).decode("utf-8", "replace"))
