"""Writes tests/data/blocks/reference.bin: what the Python package `gguf` makes of block formats.

Run by hand:  pip install gguf==0.19.0 && python tests/reference/blocks_reference.py

The file is a list of records, little-endian:
  u32 direction   0: bytes were dequantised to floats, 1: floats were quantised to bytes
  u32 type        GGUF number of the format
  u32 values      how many floats
  the bytes of the blocks, then the floats
"""

import pathlib
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

LEGACY = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
K_QUANTS = [Type.Q4_K, Type.Q5_K, Type.Q6_K]
# Only dequantised: the package does not write most of them, and ours are searched.
LOW_BIT = [Type.Q2_K, Type.Q3_K, Type.IQ4_NL, Type.IQ4_XS, Type.MXFP4]
# Where the f16 fields of a block start.
F16_FIELDS = {Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
              Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
              Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.IQ4_NL: [0], Type.IQ4_XS: [0],
              Type.MXFP4: []}


def random_blocks(rng, kind, count):
    """Random bytes with f16 fields of every size, subnormals, zeros and the largest among them."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    scales = [0.0, 6e-8, -6e-8, 65504.0, -65504.0, 1e-5]
    for field in F16_FIELDS[kind]:
        d = rng.standard_normal(count) * 10.0 ** rng.uniform(-6, 3, count)
        d[: len(scales)] = scales[:count]
        blocks[:, field : field + 2] = d.astype(np.float16).view(np.uint8).reshape(count, 2)
    if kind == Type.MXFP4:
        blocks[:6, 0] = [0, 1, 2, 127, 254, 255]
    return blocks


def rows_to_quantize(rng):
    """Rows of 32 that meet the corners of the reference quantisers."""
    rows = [
        np.zeros(32),
        np.full(32, 0.75),
        np.full(32, -3.0),
        np.linspace(-8, 7.5, 32),  # many exact ties
        np.arange(32) - 15.5,
        np.where(np.arange(32) % 2, 1.0, -1.0),  # two extremes of equal magnitude
        np.where(np.arange(32) == 31, 100.0, 0.01),
        np.where(np.arange(32) == 0, -127.0, 62.5),  # a tie: away from zero is not to even
        rng.standard_normal(32) * 1e-7,
        rng.standard_normal(32) * 1e4,
        np.abs(rng.standard_normal(32)),
        -np.abs(rng.standard_normal(32)) - 2,
    ]
    rows += [rng.standard_normal(32) * 10.0 ** rng.uniform(-5, 2) for _ in range(84)]
    return np.stack(rows).astype(np.float32)


def main():
    rng = np.random.default_rng(2025)
    out = bytearray()

    def record(direction, kind, blocks, floats):
        floats = np.ascontiguousarray(floats, dtype=np.float32).reshape(-1)
        out.extend(struct.pack("<III", direction, kind.value, floats.size))
        out.extend(blocks.tobytes())
        out.extend(floats.tobytes())

    for kind in LEGACY + K_QUANTS:
        blocks = random_blocks(rng, kind, 8 if kind in K_QUANTS else 24)
        record(0, kind, blocks, gguf.quants.dequantize(blocks, kind))
    x = rows_to_quantize(rng)
    for kind in LEGACY:
        record(1, kind, gguf.quants.quantize(x, kind), x)
    for kind in LOW_BIT:
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        blocks = random_blocks(rng, kind, 8 if block == 256 else 24)
        record(0, kind, blocks, gguf.quants.dequantize(blocks, kind))

    path = pathlib.Path(__file__).parent.parent / "data" / "blocks" / "reference.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    print(f"{path}: {len(out)} bytes")


if __name__ == "__main__":
    main()
