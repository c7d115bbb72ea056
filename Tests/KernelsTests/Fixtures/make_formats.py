"""Makes formats.bin: what the weight formats mean, by the reference implementations.

    pip install gguf numpy ml_dtypes        (tested with gguf 0.17 … 0.19)
    python make_formats.py [libggml-base.so]

The `gguf` package encodes q4_0 … q8_0, tq1_0, tq2_0 and bf16 and decodes everything. It has no encoder for q2_K … q6_K and
iq4_nl: those come from ggml's own library when its path is given (llama-cpp-python ships it), otherwise from random bytes,
which only test decoding. f8 is that of `ml_dtypes`.

A record, little endian: i32 type, i32 count, i32 encoded (1: `blocks` are the encoding of `values`; 0: of nothing),
f32 values[count], u8 blocks[…], f32 decoded[count].
"""
import ctypes
import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

COUNT = 1536


def inputs():
    """Blocks of every sort: normal, tiny, huge, zero, constant, one-sided, with an outlier, ties."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal(COUNT).astype(np.float32)
    x[32:64] = 0
    x[64:96] = 0.75
    x[96:128] = np.abs(x[96:128])
    x[128:160] = -np.abs(x[128:160]) * 1e-5
    x[160:192] *= 1e4
    x[200] = 300
    x[224:256] = np.tile([-1, 1], 16)
    x[256:512] = np.round(x[256:512] * 8) / 8
    x[512:768] = 0
    x[768:1024] *= np.float32(1e-6)
    return x


def encoded_by_ggml(library, kind, x):
    block, size = quants.GGML_QUANT_SIZES[kind]
    out = np.zeros(COUNT // block * size, dtype=np.uint8)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer = ctypes.c_void_p
    library.ggml_quantize_chunk(ctypes.c_int(int(kind)), x.ctypes.data_as(pointer), out.ctypes.data_as(pointer), ctypes.c_int64(0), ctypes.c_int64(1), ctypes.c_int64(COUNT), None)
    return out


def random_blocks(kind):
    """Bytes with scales of ordinary size."""
    rng = np.random.default_rng(11)
    block, size = quants.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (COUNT // block, size), dtype=np.uint8)
    scales = {T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,), T.IQ4_NL: (0,)}.get(kind, ())
    for at in scales:
        halves = rng.uniform(0.001, 0.02, COUNT // block).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def main():
    library = ctypes.CDLL(sys.argv[1]) if len(sys.argv) > 1 else None
    x = inputs()
    with open(Path(__file__).with_name("formats.bin"), "wb") as file:
        def record(kind, values, blocks, encoded):
            decoded = quants.dequantize(blocks, kind).astype(np.float32).reshape(-1)
            assert decoded.size == COUNT
            file.write(struct.pack("<iii", int(kind), COUNT, encoded))
            file.write(values.tobytes() + blocks.tobytes() + decoded.tobytes())

        f16 = x.astype(np.float16)
        file.write(struct.pack("<iii", int(T.F16), COUNT, 1) + x.tobytes() + f16.tobytes() + f16.astype(np.float32).tobytes())
        for kind in (T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.TQ1_0, T.TQ2_0):
            record(kind, x, np.ascontiguousarray(quants.quantize(x, kind)).view(np.uint8).reshape(-1), 1)
        for kind in (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL):
            record(kind, np.zeros(COUNT, np.float32), random_blocks(kind), 0)
            if library:
                record(kind, x, encoded_by_ggml(library, kind, x), 1)
        spread = x * np.float32(100)
        for number, kind in ((1010, ml_dtypes.float8_e4m3fn), (1011, ml_dtypes.float8_e5m2)):
            f8 = spread.astype(kind)
            file.write(struct.pack("<iii", number, COUNT, 1) + spread.tobytes() + f8.tobytes() + f8.astype(np.float32).tobytes())


main()
