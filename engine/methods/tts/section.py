"""Recipe section of speaking language models. Light: no torch.

Every token and number that a model's family defines is a setting here, with the published value as default.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..section import RowMethod

Voice = Literal["orpheus", "spark", "csm"]


class Marks(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OrpheusMarks(Marks):
    """Orpheus (Canopy Labs, github.com/canopyai/Orpheus-TTS): a Llama whose vocabulary goes on behind its
    128,256 tokens with marks, and with seven times 4,096 codes of the SNAC codec."""

    prompt: str = Field(
        "{speaker}: {text}", description="How a row with a speaker is written; without one, the text alone."
    )
    text_end: int = Field(128009, ge=0, description="Token after the text.")
    human_start: int = Field(128259, ge=0, description="Token before the text.")
    human_end: int = Field(128260, ge=0, description="Token after text_end.")
    ai_start: int = Field(128261, ge=0, description="Token before speech_start.")
    ai_end: int = Field(128262, ge=0, description="The last token.")
    speech_start: int = Field(128257, ge=0, description="Token before the codes.")
    speech_end: int = Field(128258, ge=0, description="Token after the codes.")
    codes_start: int = Field(128266, ge=0, description="Token of code 0 at the first place of a frame.")
    codebook_size: int = Field(4096, ge=2, description="Codes at each of a frame's seven places.")
    drop_repeats: bool = Field(
        True, description="Leave out frames that begin with the same code as the one before: held silence."
    )


class SparkMarks(Marks):
    """Spark-TTS (arXiv:2503.01710, github.com/SparkAudio/Spark-TTS): a Qwen2.5 with a token for each code of
    the BiCodec codec, global ones for the voice and semantic ones for what is said."""

    prompt: str = Field(
        "<|task_tts|><|start_content|>{text}<|end_content|><|start_global_token|>{global_codes}"
        "<|end_global_token|><|start_semantic_token|>",
        description="Before what is said.",
    )
    speech: str = Field("{codes}<|end_semantic_token|><|im_end|>", description="What is said.")
    global_code: str = Field("<|bicodec_global_{}|>", description="Token of a code of the voice.")
    code: str = Field("<|bicodec_semantic_{}|>", description="Token of a code of what is said.")


class CsmMarks(Marks):
    """CSM (Sesame, in transformers as CsmForConditionalGeneration): a backbone that writes the first code of
    each frame of the Mimi codec, and a depth decoder that writes the others."""

    prompt: str = Field("<|begin_of_text|>[{speaker}]{text}<|end_of_text|>", description="Before the frames.")
    speaker: str = Field("0", description="Of rows that name none.")


class TTSSection(RowMethod):
    """A language model learns to speak: after a text it writes the codes of the sound."""

    kind: Literal["tts"] = "tts"
    layout: Literal["auto"] | Voice = Field(
        "auto",
        description="How text and codes become tokens: orpheus, spark or csm, as the model was "
        "trained; auto looks at the model.",
    )
    learn: Literal["speech", "all"] = Field(
        "speech", description="Loss on the codes and the end of speech, or on the text before them too."
    )
    codec: str | None = Field(
        None,
        description="Folder or hub id of the codec, for rows with audio in place of codes: SNAC for orpheus, "
        "Mimi for csm (by default the one inside the model). Rows with codes need none.",
    )
    orpheus: OrpheusMarks = Field(default_factory=OrpheusMarks)
    spark: SparkMarks = Field(default_factory=SparkMarks)
    csm: CsmMarks = Field(default_factory=CsmMarks)
