"""Fine-tuning and running models with parameter-efficient adapters: libpeftswift from Python.

>>> from peftswift import Model, LoraConfig, get_peft_model
>>> model = get_peft_model(Model.from_pretrained("model.gguf"), LoraConfig(r=8, target_modules="all-linear"))
"""

from ._library import (Cancelled, Context, ContextFullError, PeftError, PeftIOError, PeftLookupError, PeftMemoryError, PeftValueError, Tensors,
                       decoded_json, lib)
from .composition import Average, BatchSplit, Fuse, Parallel, Split, Stack, mam, unipelt
from .config import ArrowConfig, LoraConfig, PeftConfig, TaskType
from .merging import combine_adapters, compare_adapters, compose_cartridge_adapters, prune_adapter, resize_adapter, scale_adapter
from .model import Model, Output
from .peft_model import PeftModel, create_arrow_model, get_peft_model
from .quantization import Quantized, quantize
from .session import Session
from .tokenizer import Tokenizer
from .trainer import Dataset, Trainer

__version__ = lib.peft_version().decode()


def features():
    """What this build and this machine can do."""
    return decoded_json("peft_features")


def list_methods():
    """The adapter methods: {peft_type: {"layers", "options" (with PEFT's defaults), "default_targets"}}."""
    return {method.pop("peft_type"): method for method in decoded_json("peft_adapter_list_methods")["methods"]}


__all__ = ["ArrowConfig", "Average", "BatchSplit", "Cancelled", "Context", "ContextFullError", "Dataset", "Fuse", "LoraConfig", "Model", "Output", "Parallel", "PeftConfig", "PeftError",
           "PeftIOError", "PeftLookupError", "PeftMemoryError", "PeftModel", "PeftValueError", "Quantized", "Session", "Split", "Stack", "TaskType", "Tensors", "Tokenizer",
           "Trainer", "combine_adapters", "compare_adapters", "compose_cartridge_adapters", "create_arrow_model",
           "features", "get_peft_model", "list_methods", "mam", "prune_adapter", "quantize", "resize_adapter", "scale_adapter", "unipelt"]
