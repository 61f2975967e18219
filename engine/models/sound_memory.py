"""What a Whisper model keeps for its backward pass, layer by layer, as transformers and PEFT compute it with
torch's own attention, which holds no scores. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..adapted import adapted_layers
from ..recipe import AdapterSection
from .facts import match_targets

if TYPE_CHECKING:
    from ..resolve import Resolved
    from .facts import ModelFacts
    from .layout import LinearModule

WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}
POSITIONS = 1500
"""Of the encoder: each 20 ms of a window of 30 s, whatever of it is silent (arXiv:2212.04356)."""
SPECTRUM = 16_000_000
"""Bytes of a recording while its features are made: 480,000 samples in 16 and 32 bits, 3,001 x 201 complex
numbers, their energies twice."""
LOGIT = 16
"""Bytes a logit: in fp32 itself, its log-softmax, and the gradients of both."""
ATTENDED = ("encoder_attn.k_proj", "encoder_attn.v_proj")
"""What reads the encoder's positions in a decoder layer."""


def heard_bytes(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved) -> int:
    """Bytes of a micro-batch at the start of its backward pass; as many where the step is a CUDA graph, for
    the eager pass before it gives its memory back.

    Notation: h hidden, f intermediate, w bytes of the compute type, S positions of sound, T tokens of text.

    - a norm: its input in fp32, 4h; three in a decoder layer, two in an encoder layer.
    - attention: q, k, v, the output, an fp32 log-sum a head: 4wh + 4 heads; a decoder layer reads the
      encoder's output too: k and v of S, q and the output of T.
    - MLP: what the activation reads, wf.
    - inputs of trained matrices: see :func:`_trained_bytes`.
    - the last norms' inputs and outputs; the logits; the spectra of the next recordings.
    - with all weights training, the convolutions' inputs and outputs.

    With checkpointing a layer keeps its input, and one layer's tensors stand.
    """
    counts = _layers(facts)
    width, hidden = WIDTHS[resolved.compute_dtype], facts.hidden_size
    full = adapter.kind == "none"
    sound, text = POSITIONS, resolved.longest
    attention, logs = 4 * width * hidden, 4 * facts.heads
    encoder = sound * (2 * 4 * hidden + attention + logs + width * facts.mlp_width)
    decoder = text * (3 * 4 * hidden + attention + attention // 2 + 2 * logs + width * facts.mlp_width)
    decoder += sound * 2 * width * hidden
    for module in (
        match_targets(facts, "all-linear")["all-linear"] if full else adapted_layers(facts, adapter)
    ):
        trained = _trained_bytes(module, adapter, resolved)
        if ".encoder." in module.pattern:
            encoder += sound * trained
        elif ".decoder." in module.pattern:
            decoder += (sound if module.pattern.endswith(ATTENDED) else text) * trained
    if resolved.gradient_checkpointing:
        stream = (4 if full else width) * hidden
        kept = (counts["encoder"] * sound + counts["decoder"] * text) * stream + max(encoder, decoder)
    else:
        kept = counts["encoder"] * encoder + counts["decoder"] * decoder
    ends = 8 * hidden * (sound + text) + text * facts.embedding_rows * LOGIT + SPECTRUM
    convolutions = sound * 5 * width * hidden if full else 0
    return resolved.batch_size * (kept + ends + convolutions)


def _trained_bytes(module: LinearModule, adapter: AdapterSection, resolved: Resolved) -> int:
    """Bytes a position of what a trained matrix keeps: its input, cast for itself; of LoRA also the middle of
    its rank, with dropout the mask (a byte on a GPU, fp32 on a CPU); of DoRA both outputs."""
    width = WIDTHS[resolved.compute_dtype]
    found = width * module.inputs
    if adapter.kind == "none":
        return found
    found += width * adapter.rank
    if adapter.dropout > 0:
        found += module.inputs * (1 if resolved.device == "cuda" else 4)
    return found + (2 * width * module.outputs if adapter.kind == "dora" else 0)


def _layers(facts: ModelFacts) -> dict[str, int]:
    """Of the encoder and of the decoder."""
    counts = {"encoder": facts.layers, "decoder": facts.layers}
    for one in facts.parameters.linear:
        for part in counts:
            if one.pattern.endswith(f"{part}.layers.*.fc1"):
                counts[part] = one.count
    return counts
