"""The trained model as transformers computes it: the smoke test's reference side, a process of its own.

Request: model_dir, work (folder), texts, held_out (rows), limits. Writes ``reference.json`` and
``logits.npy`` (float32 log-probabilities [positions, vocabulary]) into ``work``. Run by smoke.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..data.chat_templates.of_tokenizer import rendered_as_given
from ..data.chat_templates.renderer import REFUSED
from ..data.tokenizer_files import TokenizerFiles
from ..errors import WhetError
from ..models.capped_attention import attention_of
from ..models.own_files import LOCAL, WEIGHTS
from .gguf.known_differences import KnownDifferences
from .gguf.native import Progress, told
from .gguf.space_prefix import space_prefix
from .probe_corpus import probe_texts, with_special_tokens
from .reference_device import place
from .smoke_cases import ASK, CASES, MARKER, Limits, cases_for
from .smoke_values import expected_values


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    reference = Reference(Path(request["model_dir"]), Limits(**request["limits"]))
    work = Path(request["work"])
    rows = reference.rows(request["held_out"])
    result = reference.tokenizer_facts(request["texts"])
    result |= {"rows": rows, "trained_ids": reference.trained_ids(rows)}
    progress(1, 4)
    sequences = reference.probe_sequences(rows, request["texts"])
    np.save(work / "logits.npy", reference.log_probabilities(told(sequences, progress, 1, 4)))
    answers = [reference.answer_loss(row) for row in told(rows, progress, 2, 4)]
    result |= {"sequences": sequences, "answers": answers}
    result["greedy"] = [reference.greedy(prompt) for prompt in told(reference.prompts(rows), progress, 3, 4)]
    result |= {"vocabulary_size": int(reference.vocabulary_size)}
    result |= {
        "values": expected_values(reference.config.to_dict(), reference.rope()),
        "dtype": reference.dtype,
        "device": str(reference.device),
    }
    (work / "reference.json").write_text(json.dumps(result), encoding="utf-8")
    return {"dtype": reference.dtype}


class Reference:
    """Tokenizer and model of one folder, and the questions asked of them."""

    def __init__(self, model_dir: Path, limits: Limits) -> None:
        self.limits, self.model_dir = limits, model_dir
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, **LOCAL)
        self.config: Any = AutoConfig.from_pretrained(model_dir, **LOCAL)
        weights = sum(file.stat().st_size for file in model_dir.glob("*.safetensors"))
        self.device, dtype = place(weights * 2)
        self.dtype = str(dtype).removeprefix("torch.")
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, **WEIGHTS, **attention_of(model_dir)
        )
        self.model: Any = model.to(self.device).eval()  # type: ignore[arg-type]
        template = self.tokenizer.chat_template
        self.template: str | None = (
            template if template is None or isinstance(template, str) else template["default"]
        )

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    def rope(self) -> dict[str, Any]:
        """Frequencies as the model turns them, where all its layers turn alike."""
        for module in self.model.modules():
            own = dict(module.named_buffers(recurse=False))
            if "inv_freq" in own:
                return {
                    "inverse_frequencies": own["inv_freq"].tolist(),
                    "attention_scaling": float(module.attention_scaling),
                }
        return {}

    def encode(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special).input_ids)

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool, **kwargs: Any) -> str:
        """As ``apply_chat_template`` does, in the bounds that all templates have. Raises WhetError
        ``template.*``."""
        return rendered_as_given(self.tokenizer, messages, add_generation_prompt, **kwargs)

    def tokenizer_facts(self, texts: list[str]) -> dict[str, Any]:
        generation = self.model.generation_config.eos_token_id
        return {
            "texts": self._texts(texts),
            "template": self.template,
            "cases": [self._case(case) for case in cases_for(self.template)] if self.template else [],
            "bos": self.tokenizer.bos_token_id,
            "eos": self.tokenizer.eos_token_id,
            "generation_eos": generation
            if isinstance(generation, list)
            else [generation]
            if generation
            else [],
            "end_of_turn": self._end_of_turn(),
            "names": {str(i): t for t, i in self.tokenizer.get_added_vocab().items()},
        }

    def _texts(self, texts: list[str]) -> list[dict[str, Any]]:
        """``texts`` and forms with added tokens, behind what conversations begin with where that decides."""
        space = space_prefix(self.tokenizer.backend_tokenizer, TokenizerFiles.read(self.model_dir))
        known = KnownDifferences(self.tokenizer.backend_tokenizer, space.add)
        specials = [str(token) for token in self.tokenizer.get_added_vocab()]
        own = set(texts) - set(probe_texts())
        asked = [(space.lead + text, text in own) for text in with_special_tokens(texts, specials)]
        return [
            {
                "text": text,
                "ids": self.encode(text),
                "special": self.encode(text, True),
                "known": known.cause(text),
                "own": mine,
            }
            for text, mine in asked
        ]

    def _case(self, case: dict[str, Any]) -> dict[str, Any]:
        try:
            text = self.render(case["messages"], case["add_generation_prompt"], **case["kwargs"])
        except WhetError as error:
            if error.code != REFUSED:
                raise
            return {**case, "error": error.message}
        return {**case, "text": text, "ids": self.encode(text)}

    def _end_of_turn(self) -> list[int]:
        """The special token that the template writes after an answer; none where it writes only text."""
        if self.template is None:
            return []
        text = self.render([ASK, {"role": "assistant", "content": MARKER}], False)
        special = set(self.tokenizer.get_added_vocab().values())
        after = [i for i in self.encode(text.rpartition(MARKER)[2]) if i in special]
        return after[:1]

    def rows(self, held_out: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Held-out rows as prompt and answer ids, with the messages of the prompt where there are any."""
        found: list[dict[str, Any]] = []
        for row in held_out:
            made = self._row(row)
            if made is not None and len(made["prompt"]) + len(made["answer"]) <= self.limits.row_tokens:
                found.append(made)
        return found[: self.limits.held_out_rows]

    def _row(self, row: dict[str, Any]) -> dict[str, Any] | None:
        messages, ids, labels = row.get("messages"), row.get("input_ids"), row.get("labels")
        made: dict[str, Any] = {"messages": None, "trained": None, "trained_end": None}
        if messages and self.template and len(messages) > 1 and messages[-1]["role"] == "assistant":
            made |= self._rendered(messages)
            made["trained"] = ids
        if labels:
            made["trained_end"] = next(label for label in reversed(labels) if label >= 0)
        if "prompt" not in made:
            if not labels or not ids:
                return None
            end = max(i for i, label in enumerate(labels) if label >= 0) + 1
            start = max((i + 1 for i in range(end) if labels[i] < 0), default=1)
            made |= {"prompt": ids[:start], "answer": ids[start:end]}
        return made if made["prompt"] and made["answer"] else None

    def _rendered(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        try:
            whole = self.encode(self.render(messages, False))
            prompt = self.encode(self.render(messages[:-1], True))
        except WhetError as error:
            if error.code != REFUSED:
                raise
            return {"rendered": None}  # counts as different from what training saw
        if whole[: len(prompt)] != prompt:
            return {"rendered": whole}
        answer = self._through_end(whole, len(prompt))
        return {"rendered": whole, "messages": messages[:-1], "prompt": prompt, "answer": answer}

    def _through_end(self, whole: list[int], start: int) -> list[int]:
        """The answer through its end-of-turn token; what the template writes after that is no part of it."""
        answer = whole[start:]
        ends = [i for i, token in enumerate(answer) if token in self._end_ids]
        return answer[: ends[0] + 1] if ends else answer

    @property
    def _end_ids(self) -> set[int]:
        return {*self._end_of_turn(), self.tokenizer.eos_token_id}

    def trained_ids(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Do the template and tokenizer of this folder still give the ids that training saw?"""
        compared = [row for row in rows if row["trained"] is not None]
        differing = [row for row in compared if row["rendered"] != row["trained"]]
        example = {k: (differing[0][k] or [])[:64] for k in ("rendered", "trained")} if differing else None
        return {"compared": len(compared), "differing": len(differing), "example": example}

    def probe_sequences(self, rows: list[dict[str, Any]], texts: list[str]) -> list[list[int]]:
        """Token sequences to compare distributions on: held-out rows first, then conversations, then plain
        text."""
        pool = [row["prompt"] + row["answer"] for row in rows]
        if self.template:
            pool += [made["ids"] for made in map(self._case, cases_for(self.template)) if "ids" in made]
        pool += [self.encode(text, True) for text in texts if len(text) > 20]
        left, chosen = self.limits.positions_for(self.vocabulary_size), []
        for ids in pool:
            ids = ids[: min(self.limits.probe_length, left)]
            if len(ids) >= 2:
                chosen.append(ids)
                left -= len(ids)
            if left < 2:
                break
        return chosen

    @torch.no_grad()
    def log_probabilities(self, sequences: Iterable[list[int]]) -> np.ndarray:
        """[positions, vocabulary] float32, the sequences one after another."""
        parts = []
        for ids in sequences:
            logits_TV = self.model(input_ids=torch.tensor([ids], device=self.device)).logits[0].float()
            parts.append(torch.log_softmax(logits_TV, dim=-1).cpu().numpy())
        return np.concatenate(parts)

    @torch.no_grad()
    def answer_loss(self, row: dict[str, Any]) -> float:
        """Mean negative log-likelihood of the answer's tokens given the prompt, in nats."""
        ids = torch.tensor([row["prompt"] + row["answer"]], device=self.device)
        logits_TV = self.model(input_ids=ids).logits[0].float()
        start = len(row["prompt"])
        loss = torch.nn.functional.cross_entropy(logits_TV[start - 1 : -1], ids[0, start:])
        return float(loss)

    def prompts(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Prompts to answer greedily: the held-out ones, or two of our own."""
        chosen = [{"messages": row["messages"], "ids": row["prompt"]} for row in rows[: self.limits.prompts]]
        if not chosen and self.template:
            own = [CASES["single"], CASES["multi-turn"]]
            chosen = [
                {"messages": messages, "ids": self.encode(self.render(messages, True))} for messages in own
            ]
        return chosen

    @torch.no_grad()
    def greedy(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The greedy answer within the budget; ``stopped`` when an end token came."""
        ids = torch.tensor([prompt["ids"]], device=self.device)
        ends = {*self._end_ids, *self.tokenizer_ends()} - {None}
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.limits.new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(ends),
            pad_token_id=self.tokenizer.pad_token_id or 0,
        )[0, ids.shape[1] :].tolist()
        stopped = bool(out) and out[-1] in ends
        return {**prompt, "answer": out, "stopped": stopped, "text": self.tokenizer.decode(out)}

    def tokenizer_ends(self) -> list[int]:
        generation = self.model.generation_config.eos_token_id
        return generation if isinstance(generation, list) else [generation]
