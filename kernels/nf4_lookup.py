"""Looking 4-bit codes up in registers: four at a time, by permuting bytes.

A byte permutation picks four of the eight bytes of two registers, each by three bits of a selector, so that a
table of 16 bytes answers four codes in three instructions: one of either half of the table, by the codes'
lower bits, and one between the two answers, by the highest. Every NVIDIA GPU that Triton compiles for has the
instruction; elsewhere shifts stand in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def permutes_natively(device: torch.device) -> bool:
    """Whether kernels may permute bytes by PTX's instruction."""
    return device.type == "cuda" and torch.version.hip is None


@triton.jit
def byte_permute(a, b, selector, NATIVE: tl.constexpr):
    """Four of the bytes 0 to 3 of ``a`` and 4 to 7 of ``b`` as an int32: byte i is the one that the
    selector's hexadecimal digit i names. Digits beyond the fourth are ignored, and none is above 7.

    All three are int32 and broadcast against one another.
    """
    if NATIVE:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        both = (b.to(tl.int64) << 32) | (a.to(tl.int64) & 0xFFFFFFFF)
        word = both & 0
        for i in tl.static_range(4):
            word |= ((both >> (8 * ((selector >> (4 * i)) & 7)).to(tl.int64)) & 0xFF) << (8 * i)
        return word.to(tl.int32)


@triton.jit
def look_up_bytes(t0, t1, t2, t3, word, NATIVE: tl.constexpr):
    """The bytes that eight 4-bit codes stand for, as two int32: elements 0 to 3 and 4 to 7, the first in the
    lowest byte.

    Args:
        t0: bytes 0 to 3 of the table, int32; t1, t2 and t3: the next ones. They broadcast against the words.
        word: int32 of NF4's layout: element e in byte e // 2, the even ones in its high digit.
    """
    word = ((word >> 4) & 0x0F0F0F0F) | ((word & 0x0F0F0F0F) << 4)  # element e in digit e
    lower = word & 0x77777777
    half = ((word >> 1) & 0x44444444) | 0x32103210  # digit i: byte i of the first answer or of the second
    first = byte_permute(
        byte_permute(t0, t1, lower, NATIVE), byte_permute(t2, t3, lower, NATIVE), half, NATIVE
    )
    lower, half = lower >> 16, half >> 16
    last = byte_permute(
        byte_permute(t0, t1, lower, NATIVE), byte_permute(t2, t3, lower, NATIVE), half, NATIVE
    )
    return first, last
