"""Makes llm_int8.npz: products of bitsandbytes' LLM.int8 with outlier columns, and their derivative. (Its linear layers take another way on a
processor: they unpack the weights. Here its functions are called themselves.)

    pip install torch bitsandbytes        (made with 2.13, 0.50.2)
    python make_llm_int8.py
"""
from pathlib import Path

import bitsandbytes.functional as F
import numpy as np
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt, MatmulLtState

torch.manual_seed(3)
arrays = {}
for name, (rows, inputs, outputs) in {"one": (1, 96, 40), "many": (13, 130, 33)}.items():
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    x = torch.randn(rows, inputs)
    x[:, ::11] *= 6
    x = x.half().float()  # bitsandbytes rounds to f16 by itself
    codes, scales, _ = F.int8_vectorwise_quant(weight.half())
    for threshold in (6.0, 2.0):
        rounded, stats, columns = F.int8_vectorwise_quant(x.half(), threshold=threshold)
        y, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(x, rounded, codes, stats, scales, columns, bias)
        arrays[f"{name}.{threshold:.0f}.y"] = y.numpy()
    state, leaf, dy = MatmulLtState(), x.clone().requires_grad_(), torch.randn(rows, outputs).half().float()
    state.CB, state.SCB, state.threshold, state.has_fp16_weights, state.is_training = codes, scales, 6.0, False, False
    MatMul8bitLt.apply(leaf, weight, None, bias, state).backward(dy)
    for key, value in {"weight": weight, "bias": bias, "x": x, "dy": dy, "dx": leaf.grad}.items():
        arrays[f"{name}.{key}"] = value.numpy()
np.savez_compressed(Path(__file__).parent / "llm_int8.npz", **arrays)
