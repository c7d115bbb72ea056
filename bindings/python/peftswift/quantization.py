"""Arrays in weight formats."""

import json

import numpy as np

from ._library import Context, Tensors, encoded_json

_CODED = ("nf4", "fp4", "blockwise8")


class Quantized:
    """An array in a weight format, with bitsandbytes' parts where it has them:

    data: codes (packed four-bit ones uint8, two a byte; int8 of "int8"; the bytes of other formats); absmax: scales (with
    double_quant uint8 codes); code: what codes stand for; absmax2, offset, code2: of double_quant, scales of scales, what was taken off
    them, and what their codes stand for.
    """

    absmax = code = absmax2 = offset = code2 = None

    def __init__(self, tensors, scheme):
        self._tensors, self.scheme = tensors, scheme
        parts = tensors.arrays()
        self.data = parts["w"].reshape(-1) if scheme in _CODED else parts["w"]
        self.absmax = parts.get("w.absmax", parts.get("w.SCB"))
        self.code, self.absmax2, self.code2 = (parts.get(f"w.{name}") for name in ("quant_map", "nested_absmax", "nested_quant_map"))
        state = parts.get(f"w.quant_state.bitsandbytes__{scheme}")
        if self.absmax2 is not None:
            self.offset = np.array([json.loads(state.tobytes())["nested_offset"]], np.float32)

    def dequantize(self):
        """The values it stands for, float32."""
        return Tensors.make("peft_tensors_dequantize", self._tensors).get("w")


def quantize(array, scheme="nf4", block_size=None, double_quant=False, context=None):
    """An array in a weight format: "nf4", "fp4", "int8", "blockwise8", or a GGUF type ("q4_K" …; peft_tensors_quantize).

    block_size: 64 by default (blockwise8: 256); other schemes have their own.
    """
    options = {"scheme": scheme}
    if scheme in _CODED:
        options.update({"block_size": block_size, "double_quant": bool(double_quant)})
    elif double_quant:
        options["double_quant"] = True
    tensors = Tensors.from_arrays(context or Context(), {"w": np.asarray(array)})
    return Quantized(Tensors.make("peft_tensors_quantize", tensors, encoded_json(options)), scheme.lower())
