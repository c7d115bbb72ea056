"""Makes the folders here: a tiny Llama as transformers and bitsandbytes save it in 4 and 8 bits, and what it computes.

    pip install torch transformers accelerate bitsandbytes        (made with 2.13, 5.23, 1.15, 0.50.2)
    python make.py
"""
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

here = Path(__file__).parent
torch.manual_seed(0)
config = LlamaConfig(vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                     max_position_embeddings=32, initializer_range=0.1, tie_word_embeddings=False)
LlamaForCausalLM(config).save_pretrained(here / "plain")
kinds = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "fp4_double": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32),
    "int8": dict(load_in_8bit=True),
}
ids = torch.tensor([[1, 5, 9, 30, 2, 17]])
for name, options in kinds.items():
    model = AutoModelForCausalLM.from_pretrained(here / "plain", quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32)
    shutil.rmtree(here / name, ignore_errors=True)
    model.save_pretrained(here / name)
    (here / name / "generation_config.json").unlink(missing_ok=True)
    weights = {}
    for key, module in model.named_modules():
        if not key.endswith(("q_proj", "down_proj")):
            continue
        if "Linear4bit" in type(module).__name__:
            import bitsandbytes.functional as F
            weights[key + ".weight"] = F.dequantize_4bit(module.weight.data, module.weight.quant_state).float().numpy()
        elif "Linear8bit" in type(module).__name__:
            state = module.weight
            weights[key + ".weight"] = F.int8_vectorwise_dequant(state.data, state.SCB).float().numpy()
    with torch.no_grad():
        logits = model(ids).logits.float().numpy()
    np.savez_compressed(here / name / "expected.npz", ids=ids.numpy(), logits=logits, **weights)
shutil.rmtree(here / "plain")
