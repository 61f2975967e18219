"""The embedding model as transformers computes it: the proof's reference side, a process of its own.

Request: model_dir, work (folder), texts. Writes ``reference.json`` and ``vectors.npy`` (float32 [texts,
width], before any normalisation) into ``work``. Run by smoke.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from ..data.tokenizer_files import TokenizerFiles
from ..models.capped_attention import attention_of
from ..models.own_files import LOCAL, WEIGHTS
from ..models.sentence_folder import Dense, SentenceFolder, read_sentence_folder
from .embedding_metadata import expected_values
from .embedding_texts import LONGEST, long_texts, prompted, short_texts
from .gguf.known_differences import KnownDifferences
from .gguf.native import Progress
from .gguf.space_prefix import space_prefix
from .probe_corpus import with_special_tokens
from .reference_device import place


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    reference = EmbeddingReference(read_sentence_folder(Path(request["model_dir"])))
    work = Path(request["work"])
    specials = [str(token) for token in reference.tokenizer.get_added_vocab()]
    result = reference.facts(with_special_tokens(request["texts"], specials))
    progress(1, 2)
    np.save(work / "vectors.npy", np.stack([reference.vector(row["ids"]) for row in result["rows"]]))
    (work / "reference.json").write_text(json.dumps(result), encoding="utf-8")
    return {"dtype": reference.dtype}


class EmbeddingReference:
    """Tokenizer, encoder, pooling and dense layers of one folder."""

    def __init__(self, sentence: SentenceFolder) -> None:
        self.sentence = sentence
        self.tokenizer: Any = AutoTokenizer.from_pretrained(sentence.folder, **LOCAL)
        self.config: Any = AutoConfig.from_pretrained(sentence.folder, **LOCAL)
        weights = sum(file.stat().st_size for file in sentence.folder.glob("*.safetensors"))
        self.device, dtype = place(weights * 2)
        self.dtype = str(dtype).removeprefix("torch.")
        model: Any = AutoModel.from_pretrained(
            sentence.folder, dtype=dtype, **WEIGHTS, **attention_of(sentence.folder)
        )
        self.model = model.to(self.device).eval()
        self.dense = [_matrix(one).to(self.device) for one in sentence.dense]

    @property
    def limit(self) -> int:
        """Tokens of the longest text: what the folder or the position table allows, at most LONGEST."""
        config = expected_values(self.sentence, self.config.to_dict())
        return min(self.sentence.max_tokens or LONGEST, int(config["context_length"]), LONGEST)

    def encode(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special).input_ids)

    def facts(self, texts: list[str]) -> dict[str, Any]:
        """What the other side is asked, and what it is held against."""
        sentence, backend = self.sentence, self.tokenizer.backend_tokenizer
        space = space_prefix(backend, TokenizerFiles.read(sentence.folder))
        known = KnownDifferences(backend, space.add)
        causes = {text: known.cause(text) for text in texts}
        return {
            "texts": [
                {
                    "text": text,
                    "ids": self.encode(text),
                    "special": self.encode(text, True),
                    "known": cause,
                }
                for text, cause in causes.items()
            ],
            "rows": self.rows(),
            "vocabulary_size": int(self.model.get_input_embeddings().weight.shape[0]),
            "names": {str(id): text for text, id in self.tokenizer.get_added_vocab().items()},
            "values": expected_values(sentence, self.config.to_dict()),
            "pooling": sentence.pooling,
            "normalize": sentence.normalize,
            "notes": list(sentence.notes),
            "dtype": self.dtype,
            "device": str(self.device),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The texts to embed with their ids; a text beyond the limit is cut in front of its last token."""
        made = []
        for text in [*short_texts(), *prompted(self.sentence.prompts), *long_texts()]:
            ids, kept = self.encode(text, True), self.limit
            cut = len(ids) > kept
            made.append({"text": text, "ids": [*ids[: kept - 1], ids[-1]] if cut else ids, "cut": cut})
        return made

    @torch.no_grad()
    def vector(self, ids: list[int]) -> np.ndarray:
        """[width] float32: pooled and mapped, not normalised."""
        input_1T = torch.tensor([ids], device=self.device)
        mask_1T = torch.ones_like(input_1T)
        hidden_TD = self.model(input_ids=input_1T, attention_mask=mask_1T).last_hidden_state[0].float()
        match self.sentence.pooling:
            case "mean":
                pooled_D = hidden_TD.mean(dim=0)
            case "cls":
                pooled_D = hidden_TD[0]
            case "last":
                pooled_D = hidden_TD[-1]
        for weight in self.dense:
            pooled_D = weight @ pooled_D
        vector: np.ndarray = pooled_D.cpu().numpy()
        return vector


def _matrix(dense: Dense) -> torch.Tensor:
    """[outputs, inputs] float32; the converter has refused layers with bias or activation."""
    from safetensors.torch import load_file

    return load_file(dense.folder / "model.safetensors")["linear.weight"].float()
