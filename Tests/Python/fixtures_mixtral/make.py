"""A LoRA of a mixture with factors for each expert by itself, as transformers 4 had them, and what PEFT 0.21.2 computes with it on transformers 5
(Tests/Golden/data/bases/mixtral).

    pip install -r Tests/Golden/requirements.txt && python make.py
"""
import json
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
BASE = HERE.parents[1] / "Golden/data/bases/mixtral"


def main():
    config, random, tensors = json.loads((BASE / "config.json").read_text()), torch.Generator().manual_seed(5), {}
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]

    def add(name, outputs, inputs):
        tensors[f"base_model.model.model.layers.{name}.lora_A.weight"] = torch.randn(2, inputs, generator=random) * 0.3
        tensors[f"base_model.model.model.layers.{name}.lora_B.weight"] = torch.randn(outputs, 2, generator=random) * 0.3

    for layer in range(config["num_hidden_layers"]):
        add(f"{layer}.self_attn.q_proj", hidden, hidden)
        add(f"{layer}.block_sparse_moe.gate", experts, hidden)
        for expert in range(experts):
            for matrix, outputs, inputs in (("w1", inner, hidden), ("w3", inner, hidden), ("w2", hidden, inner)):
                add(f"{layer}.block_sparse_moe.experts.{expert}.{matrix}", outputs, inputs)
    save_file(tensors, HERE / "adapter_model.safetensors")
    (HERE / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["w1", "w2", "w3", "gate", "q_proj"], "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none",
        "lora_dropout": 0.0}, indent=1))
    model = AutoModelForCausalLM.from_pretrained(BASE, attn_implementation="eager", dtype=torch.float32)
    ids = torch.randint(3, config["vocab_size"], (2, 9), generator=random)
    with torch.no_grad():
        save_file({"input_ids": ids, "logits": peft.PeftModel.from_pretrained(model, HERE).eval()(input_ids=ids).logits.contiguous()}, HERE / "expected.safetensors")


if __name__ == "__main__":
    main()
