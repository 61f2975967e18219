"""Rows of tokens going on, one token a row and step, with their keys and values in a cache of fixed size.

Prompts go through packed, without padding; then every step has the same shapes, so on a GPU it is captured
once as a CUDA graph and replayed. Rows of unequal length need no padding either: each has its own length, on
the device. Legend: B rows, T tokens of the prompts, P places of the cache, C = H + 2G heads, E head size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from whet.kernels.attention import attention_forward
from whet.kernels.decode_attention import decode_attention
from whet.kernels.rms_norm import rms_norm_forward

from ..writing_memory import rounded_places
from .attention_half import AttentionHalf, RotaryTable
from .inference import attention_step, mlp_step
from .mlp_half import MlpHalf
from .packed import PackedTokens

if TYPE_CHECKING:
    from .program import DecoderProgram


class Decoding:
    """Cache, buffers and graph of ``rows`` rows of at most ``places`` tokens.

    Args:
        program: all of whose halves are fused; its factors are fresh, see :meth:`DecoderProgram.refresh`.
        rows: B.
        places: tokens a row, prompt included.
    """

    def __init__(self, program: DecoderProgram, rows: int, places: int) -> None:
        self.exact = program.settings.rope_follows_length
        self.rows, self.places = rows, places if self.exact else rounded_places(places)
        self.adapters = adapters_in_force(program)
        ropes = {layer.rope for layer in program.layers if layer.rope is not None}
        self.tables = {rope: program.table(rope, self.places) for rope in ropes}
        device = program.norm.weight.device
        self.kv = [self._cache(layer.attention, program.dtype, device) for layer in program.layers]
        self.lengths_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.tokens_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.rows_B = torch.arange(rows, device=device)
        self.steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits_BV: torch.Tensor | None = None
        self.held: list[Any] = []

    def __deepcopy__(self, memo: Any) -> None:
        """A copied model starts without: a graph's addresses are those of the original."""
        return None

    @property
    def nbytes(self) -> int:
        """Of the cache."""
        return sum(kv.nbytes for kv in self.kv)

    def serves(self, program: DecoderProgram, rows: int, places: int) -> bool:
        """Whether these buffers do for another generation."""
        enough = self.places == places if self.exact else self.places >= places
        return self.rows == rows and enough and self.adapters == adapters_in_force(program)

    def _cache(self, half: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """(B, P, 2G, E): at each place the keys and then the values."""
        shape = half.shape
        return torch.zeros(
            self.rows, self.places, 2 * shape.kv_heads, shape.head_dim, dtype=dtype, device=device
        )

    def prefill(self, program: DecoderProgram, packed: PackedTokens) -> torch.Tensor:
        """Read the prompts; logits (B, V) in fp32 of the token that follows each.

        Args:
            program: as at the beginning.
            packed: B documents on the model's device.
        """
        offsets = packed.offsets.long()
        self.lengths_B.copy_(offsets.diff())
        rows_T = self.rows_B.repeat_interleave(self.lengths_B, output_size=len(packed.input_ids_T))
        positions_T = packed.positions_T.long()

        def attend(half: AttentionHalf, kv: torch.Tensor, qkv_TCE: torch.Tensor, out: torch.Tensor) -> None:
            q, k, v = half.heads(qkv_TCE)
            kv[rows_T, positions_T] = qkv_TCE[:, half.shape.heads :]
            o_THE, _, _ = attention_forward(
                q,
                k,
                v,
                packed.offsets,
                packed.longest,
                documents=packed.documents,
                **half.attention_options(),
            )
            out.copy_(o_THE)

        return self._run(program, packed.input_ids_T, positions_T, attend, last=offsets[1:] - 1)

    def step(self, program: DecoderProgram, tokens_B: torch.Tensor) -> torch.Tensor:
        """Append a token to each row; logits (B, V) in fp32 of the next, overwritten by the next step.

        The first step after the buffers were made runs eagerly, which compiles kernels; the second is
        captured.
        """
        self.tokens_B.copy_(tokens_B)
        self.steps += 1
        if self.graph is not None:
            self.graph.replay()
        elif self.tokens_B.is_cuda and self.steps > 1:
            self.graph = torch.cuda.CUDAGraph()
            # other threads (a loader that pins memory) must not spoil the capture
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.logits_BV = self._next(program)
            self.held = program.buffers()
            self.graph.replay()
        else:
            self.logits_BV = self._next(program)
        assert self.logits_BV is not None
        return self.logits_BV

    def _next(self, program: DecoderProgram) -> torch.Tensor:
        positions_B = self.lengths_B.clone()
        self.lengths_B.add_(1)

        def attend(half: AttentionHalf, kv: torch.Tensor, qkv_BCE: torch.Tensor, out: torch.Tensor) -> None:
            shape = half.shape
            kv[self.rows_B, positions_B] = qkv_BCE[:, shape.heads :]
            decode_attention(
                qkv_BCE[:, : shape.heads],
                kv,
                self.lengths_B,
                window=shape.window,
                softcap=shape.softcap,
                scale=shape.scale,
                out_BHE=out,
            )

        return self._run(program, self.tokens_B, positions_B, attend)

    def _run(
        self,
        program: DecoderProgram,
        ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        attend: Callable[[AttentionHalf, torch.Tensor, torch.Tensor, torch.Tensor], None],
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, V) in fp32 behind the tokens, or behind those at ``last``."""
        x_TD, delta_TD = program.embed(ids_T), None
        for layer, kv in zip(program.layers, self.kv, strict=True):
            half, mlp = layer.attention, layer.mlp
            assert isinstance(half, AttentionHalf) and isinstance(mlp, MlpHalf)
            table = self._table(layer.rope)

            def at_layer(
                qkv: torch.Tensor, out: torch.Tensor, half: AttentionHalf = half, kv: torch.Tensor = kv
            ) -> None:
                attend(half, kv, qkv, out)

            x_TD, delta_TD = attention_step(half, x_TD, delta_TD, positions_T, table, at_layer)
            x_TD, delta_TD = mlp_step(mlp, x_TD, delta_TD)
        assert delta_TD is not None
        if last is not None:
            x_TD, delta_TD = x_TD[last], delta_TD[last]
        norm = program.norm
        y_BD, _, _ = rms_norm_forward(x_TD, norm.weight, norm.eps, offset=norm.offset, residual_TD=delta_TD)
        return program.logits(y_BD)

    def _table(self, rope: str | None) -> RotaryTable | None:
        return None if rope is None else self.tables[rope]


def cache_bytes(program: DecoderProgram, rows: int, places: int) -> int:
    """What the keys and values of so many rows and tokens take."""
    places = places if program.settings.rope_follows_length else rounded_places(places)
    shapes = [layer.attention.shape for layer in program.layers]
    elements = sum(2 * shape.kv_heads * shape.head_dim for shape in shapes)
    return rows * places * elements * program.dtype.itemsize


def free_bytes(device: torch.device) -> float:
    """Memory that a new tensor can have; a CPU's is not asked for."""
    if device.type != "cuda":
        return float("inf")
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def adapters_in_force(program: DecoderProgram) -> tuple[int, ...]:
    """The ranks of all projections: 0 where no adapter is in force. Shapes of a step follow from them."""
    return tuple(projection.stack.rank for projection in program.in_force.projections)
