"""How much memory a training step needs, by component, from arithmetic alone.

Each component is a formula over the model's shape that says what it counts; :func:`estimate_memory` adds
them. The peak of a step is at the start of a micro-batch's backward pass, when the gradients of the earlier
micro-batches, all saved activations and the loss's buffers stand.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..adapted import adapted_layers, trainable_parameters
from ..data.inspection import DataReport
from ..hardware import Machine
from ..methods.kinds import NEXT_TOKEN
from ..recipe import AdapterSection
from ..resolve import Resolved
from .encoder_memory import BYTES, fast_encoder_bytes, head_parameters, on_fast_path, replays, stacked_bytes
from .facts import ModelFacts, match_targets
from .families import family_of
from .layout import DEPTH
from .sound_memory import heard_bytes
from .vision_memory import answer_bytes, as_padded, encoder_bytes, language_facts, mask_bytes
from .writing_memory import beside_writing

MIB = 2**20

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4 with double quantisation (arXiv:2305.14314): 4 bits, one byte of scale for each 64 weights,
and one fp32 for each 256 of those scales."""

ADAMW_8BIT_BYTES = 2 * (1 + 4 / 256)
"""Two states of one byte with an fp32 scale for each block of 256 (arXiv:2110.02861). bitsandbytes keeps
tensors below 4,096 elements in fp32, which is too little to count."""

TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
"""The loss projects tiles of tokens x vocabulary and never holds all logits."""

CUDA_CONTEXT = 770 * MIB
"""Context, loaded kernels and cuBLAS handles; outside of PyTorch's allocator, but it takes GPU memory.
Measured on an H100 with torch 2.11."""
CUDA_WORKSPACE = 64 * MIB
"""cuBLAS workspaces and the allocator's rounding to 2 MiB blocks."""
PROCESS = 700 * MIB
"""Resident size of a CPU worker after importing torch, transformers and TRL."""

FRAGMENTATION = 0.05
"""Share of the memory that the caching allocator cannot use because of its block sizes."""

COMPONENTS = (
    "base", "adapter", "gradients", "optimizer", "activations", "passing", "loss", "exchange", "runtime",
)  # fmt: skip
"""``passing``: what the fast path's worst moment holds beside the activations, where that is not the loss.
``exchange``: of several ranks, what is gathered or sent."""


class Memory(BaseModel):
    """Bytes by component and their sum, against what the device has free."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: Literal["gpu", "ram"]
    components: dict[str, int] = Field(description=f"Bytes: {', '.join(COMPONENTS)}.")
    peak: int = Field(description="Sum of the components: the most the step holds at once.")
    capacity: int = Field(description="The device's own memory, whatever else runs there now.")
    available: int = Field(description="Free on the device when the plan was made.")
    exact_parameters: bool = Field(
        default=True, description="False: the family is unknown and its size a guess."
    )

    @property
    def allocated(self) -> int:
        """What PyTorch's allocator holds at the peak: on a GPU all but the context."""
        return self.peak - (CUDA_CONTEXT if self.where == "gpu" else 0)

    @property
    def needed(self) -> int:
        """What must be free for the step to run: the peak and what fragmentation wastes."""
        return int(self.peak * (1 + FRAGMENTATION))

    @property
    def fits(self) -> bool:
        """Whether the device can hold it once nothing else runs there."""
        return self.needed <= self.capacity


def estimate_memory(
    facts: ModelFacts, adapter: AdapterSection, resolved: Resolved, report: DataReport, machine: Machine
) -> Memory:
    """Peak memory of a training step.

    Args:
        facts: the model's shape.
        adapter: what is trained beside or instead of the base.
        resolved: batch, length, precision, checkpointing.
        report: for the share of supervised tokens, which the loss alone touches.
        machine: what it has; of several GPUs the smallest counts, since the run takes whichever is free.
    """
    cuda = resolved.device == "cuda"
    head = head_parameters(facts, resolved.method)
    trainable = resolved.trainable_parameters + head
    full, fast = adapter.kind == "none", on_fast_path(facts, adapter, resolved)
    moment = ADAMW_8BIT_BYTES if resolved.optimizer == "adamw_8bit" else 8
    replayed = replays(facts, adapter, resolved, report) or replays_sound(resolved)
    components = {
        "base": base_bytes(
            facts, resolved.base_precision, resolved.embedding_precision, resolved.head_precision
        )
        * (2 if resolved.second_copy else 1)
        + BYTES.get(resolved.base_precision, 2) * head,
        # PEFT holds adapters, and its copies of whole modules, in fp32.
        "adapter": 0 if full else 4 * trainable + (stacked_bytes(facts, adapter, resolved) if fast else 0),
        "gradients": 4 * trainable,
        "optimizer": moment_bytes(facts, adapter, resolved.optimizer) + int(moment * head),
        "activations": heard_bytes(facts, adapter, resolved) + weight_copies(facts, adapter, resolved)
        if resolved.method == "speech"
        else fast_encoder_bytes(facts, adapter, resolved, report)
        if fast
        else activation_bytes(facts, adapter, resolved) + frame_bytes(facts, resolved),
        # Only what is to be continued is compared with the whole vocabulary.
        "loss": loss_bytes(facts, adapter, resolved, report)
        if resolved.method in NEXT_TOKEN and facts.codebooks is None
        else 0,
        # What captures a graph is a stream with workspaces of its own.
        "runtime": CUDA_CONTEXT + CUDA_WORKSPACE * (2 if replayed else 1) if cuda else PROCESS,
    }
    if resolved.method == "vision":
        inner, padded = language_facts(facts), as_padded(resolved)
        ends = resolved.embedding_precision, resolved.head_precision
        components |= {
            "base": base_bytes(inner, resolved.base_precision, *ends),  # the encoder is not rounded
            "optimizer": int(trainable * moment),
            "activations": activation_bytes(inner, adapter, padded)
            + mask_bytes(inner, padded)
            + encoder_bytes(facts, resolved, report.images),
            "loss": answer_bytes(facts, resolved, report.images),
        }
    components = beside_writing(components, facts, resolved)
    return Memory(
        where="gpu" if cuda else "ram",
        components=components,
        peak=sum(components.values()),
        capacity=min(gpu.memory_total for gpu in machine.gpus) if cuda else machine.ram_total,
        available=max(gpu.memory_free for gpu in machine.gpus) if cuda else machine.ram_available,
        exact_parameters=facts.parameters.exact,
    )


def replays_sound(resolved: Resolved) -> bool:
    """Whether steps of speech are a CUDA graph."""
    rounded = resolved.base_precision not in BYTES
    return (
        resolved.method == "speech"
        and resolved.device == "cuda"
        and not (rounded or resolved.gradient_checkpointing)
    )


def moment_bytes(facts: ModelFacts, adapter: AdapterSection, optimizer: str) -> int:
    """The optimizer's two states. An input embedding keeps them in fp32 beside 8-bit ones, as transformers
    has it: most of its rows get no gradient in a step, and few get large ones."""
    trainable = trainable_parameters(facts, adapter)
    if optimizer != "adamw_8bit":
        return 8 * trainable
    wide = facts.parameters.embedding if embedding_trains(facts, adapter) else 0
    return int((trainable - wide) * ADAMW_8BIT_BYTES) + 8 * wide


def embedding_trains(facts: ModelFacts, adapter: AdapterSection) -> bool:
    """Whether the input embedding does; tied to the head, both are one matrix."""
    ends = adapter.whole_ends()
    return adapter.kind == "none" or "embed_tokens" in ends or (facts.tied and bool(ends))


def head_trains(facts: ModelFacts, adapter: AdapterSection) -> bool:
    """Whether the output head does; tied to the embedding, both are one matrix."""
    ends = adapter.whole_ends()
    return adapter.kind == "none" or "lm_head" in ends or (facts.tied and bool(ends))


END_BYTES: dict[str, float] = {"16bit": 2, "int8": 1, "nf4": NF4_BYTES}
"""Of a number in a frozen embedding or head; int8 has an fp32 scale a row beside."""


def base_bytes(facts: ModelFacts, precision: str, embedding: str = "16bit", head: str = "16bit") -> int:
    """The weights as they are held.

    16- and 32-bit: 2 or 4 bytes a parameter. nf4, int8 and fp8 apply to the decoder's linear layers only:
    embedding, head and norms stay in 16 bits; int8 and fp8 have one fp32 scale an output row. Embedding and
    head may be held in fewer bits of their own; tied weights are the embedding's.
    """
    parameters = facts.parameters
    if precision in BYTES:
        whole = parameters.total * BYTES[precision]
        return whole - _saved_at_ends(facts, BYTES[precision], embedding, head)
    quantised = parameters.decoder_linear
    rest = 2 * (parameters.total - quantised) - _saved_at_ends(facts, 2, embedding, head)
    if precision == "nf4":
        return int(quantised * NF4_BYTES) + rest
    scales = sum(4 * m.count * m.outputs for m in parameters.linear if m.pattern != "lm_head" and not m.bare)
    return quantised + scales + rest


def _saved_at_ends(facts: ModelFacts, width: int, embedding: str, head: str) -> int:
    """Bytes that embedding and head take less than in the type of the rest."""
    ends = ((facts.parameters.embedding, embedding), (facts.parameters.head, head))
    saved = 0.0
    for numbers, held in ends:
        if held != "16bit":
            saved += numbers * (width - END_BYTES[held]) - (4 * facts.embedding_rows if held == "int8" else 0)
    return int(saved)


def activation_bytes(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved) -> int:
    """What the forward pass keeps for the backward pass, for one micro-batch.

    Without checkpointing: every layer's tensors (:func:`layer_bytes_a_token`). With it: each layer's input,
    and the tensors of the one layer that is being recomputed together with the gradients flowing through it.
    """
    tokens = resolved.tokens_per_micro_batch
    width = BYTES[resolved.compute_dtype]
    stream = 4 if adapter.kind == "none" else width  # the residual stream follows the base weights
    layer = layer_bytes_a_token(facts, adapter, resolved)
    if resolved.gradient_checkpointing:
        gradients = 3 * width * facts.mlp_width  # of the gate, its activation and up
        a_token = facts.layers * stream * facts.hidden_size + layer + gradients
    else:
        a_token = facts.layers * layer
    ends = 4 * facts.hidden_size  # the final norm's input
    return tokens * (a_token + ends) + weight_copies(facts, adapter, resolved)


def frame_bytes(facts: ModelFacts, resolved: Resolved) -> int:
    """What a decoder of a frame's further codes keeps, where a model has one: each place of a row is a frame
    at most, and its codes are as many places in there.

    Each linear layer's input and output; with checkpointing those of one layer and every layer's input. The
    logits stand in the compute type, in fp32, and as their gradient.
    """
    if facts.codebooks is None:
        return 0
    count, size = facts.codebooks
    width = BYTES[resolved.compute_dtype]
    inside = [one for one in facts.parameters.linear if one.pattern.startswith(DEPTH)]
    if resolved.gradient_checkpointing:
        kept = sum(one.inputs + one.outputs for one in inside)
        kept += max((one.count * one.inputs for one in inside), default=0)
    else:
        kept = sum(one.count * (one.inputs + one.outputs) for one in inside)
    return resolved.tokens_per_micro_batch * count * (width * kept + size * (width + 8))


def evaluation_bytes_a_token(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved) -> int:
    """What a token of a padded held-out batch takes while it goes through: one layer's tensors, and the
    residual stream before and after."""
    return layer_bytes_a_token(facts, adapter, resolved) + 8 * facts.hidden_size


def weight_copies(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved) -> int:
    """Weights that stand a second time in the compute type while a step runs.

    A quantised base is expanded one linear layer at a time. fp32 weights that train in 16 bits are cast by
    autocast, which keeps all the copies for the step. PEFT adds an adapter to stacked experts by making the
    sum of all of them, which stays until the layer's backward pass.
    """
    width = BYTES[resolved.compute_dtype]
    inside = [module for module in facts.parameters.linear if module.pattern != "lm_head"]
    if resolved.base_precision in ("nf4", "int8"):
        expanded = max((one.inputs * one.outputs for one in inside if not one.bare), default=0)
    elif adapter.kind == "none" and BYTES[resolved.base_precision] > width:
        expanded = sum(module.parameters for module in inside)
    else:
        expanded = 0
    layers = [] if adapter.kind == "none" else adapted_layers(facts, adapter)
    summed = sum(one.parameters for one in layers if one.bare)
    return width * (expanded + (summed // facts.layers if resolved.gradient_checkpointing else summed))


def layer_bytes_a_token(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved) -> int:
    """Bytes one decoder layer saves for each token, as transformers, PEFT and SDPA do it.

    Notation: h hidden, q = heads x head_dim, k = kv_heads x head_dim, f intermediate, w bytes of the compute
    type.

    - two norms (four in Gemma 2 and 3): each computes in fp32 and keeps that input: 4h, twice that when norm
      weights train; a norm over q and k heads: 4(q + k).
    - attention: q, k, v after the rotary embedding, the output, one fp32 log-sum a head: w(2q + 2k) + 4
      heads. Where q, k, v come out of one matrix, v keeps that whole result: w(q + k) more.
    - attention without a fused kernel: k and v repeated for every head, and a row of scores a head for the
      softcap's tanh, the softmax in fp32 and its rounded copy.
    - gated MLP: gate, its activation, up: 3wf; of experts as many as a token passes, and their outputs.
    - inputs of trained matrices, see :func:`_trained_inputs`.
    """
    family = family_of(facts.model_type)
    h, q, k = facts.hidden_size, facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    w = BYTES[resolved.compute_dtype]
    trained = 2 if adapter.kind == "none" else 1
    norms = trained * (family.layer_norms * 4 * h + (4 * (q + k) if family.qk_norm else 0))
    attention = w * (2 * q + 2 * k) + 4 * facts.heads
    if family.attention == "fused":
        attention += w * (q + k)
    if family.eager_attention:
        rounded = w if w < 4 else 0
        attention += 2 * w * (q - k) + facts.heads * resolved.longest * (w + 4 + rounded)
    mlp = 3 * w * facts.mlp_width + w * facts.experts_per_token * h
    return norms + attention + mlp + _trained_inputs(facts, adapter, resolved)


def _trained_inputs(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved) -> int:
    """Bytes a token and layer of the inputs kept for weight gradients.

    In fp32 q, k and v share one input, gate and up another, and o's is the attention's output, which is kept
    anyway. In mixed precision each layer casts the input for itself, so there are as many copies (o's only
    with PEFT, which goes through fp32). LoRA adds its r-wide middle; dropout its mask (a byte on a GPU, fp32
    on a CPU) and a dropped copy a layer; DoRA the base's and the adapter's outputs, which its magnitude
    scales.
    """
    full, width = adapter.kind == "none", BYTES[resolved.compute_dtype]
    layers = match_targets(facts, "all-linear")["all-linear"] if full else adapted_layers(facts, adapter)
    casts = width < 4
    shared: dict[str, int] = {}
    total = 0
    for module in layers:
        leaf = module.pattern.rsplit(".", 1)[-1]
        if module.bare and leaf != "gate":
            total += width * module.inputs * facts.experts_per_token
            continue
        if adapter.dropout > 0 or (casts and not (full and leaf == "o_proj")):
            total += width * module.inputs
        elif leaf != "o_proj":
            shared[SHARED_INPUTS.get(leaf, leaf)] = module.inputs
        if not full:
            total += width * adapter.rank
        if not full and adapter.dropout > 0:
            total += module.inputs * (1 if resolved.device == "cuda" else 4)
        if adapter.kind == "dora":
            total += 2 * width * module.outputs
    return total + width * sum(shared.values())


SHARED_INPUTS = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "mlp", "up_proj": "mlp"}
"""Layers that read the same tensor."""


def loss_bytes(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved, report: DataReport) -> int:
    """Buffers of the tiled head and loss.

    One tile of logits in the compute type and its fp32 softmax, the supervised rows' hidden states and their
    fp32 gradient. A head that trains adds its weight gradient's fp32 accumulator.
    """
    supervised = report.train.supervised_tokens / max(1, report.train.tokens)
    rows = int(resolved.tokens_per_micro_batch * min(1.0, supervised))
    width = BYTES[resolved.compute_dtype]
    tile = min(rows, TILE_TOKENS) * min(facts.embedding_rows, TILE_VOCABULARY) * (width + 4)
    hidden = rows * facts.hidden_size * (width + 4)
    accumulator = 4 * facts.embedding_rows * facts.hidden_size if head_trains(facts, adapter) else 0
    return tile + hidden + accumulator
