#!/usr/bin/env python3
"""Writes reference.json: what transformers and PEFT (f32, CPU) compute with SmolLM2-135M-Instruct as its Q4_1 GGUF file holds it.

    python make_reference.py SmolLM2-135M-Instruct.Q4_1.gguf        # Python 3.11 with Benchmarks/peers/requirements.txt

The file is dequantised by the `gguf` package; rows of q and k are brought back from llama.cpp's order of rotary pairs. The result is
compared with what transformers' own GGUF loader makes of the file, so three programs agree on the weights before anything is computed.

reference.json:
  prompts   [{"text", "chat", "ids", "greedy" (48 ids, ends ignored), "gap" (smallest distance of the best two logits on the way),
              "top" ([id, logit] × 16 after the prompt), "columns" (logits at 0, 192, 384, …), "largest" (largest |logit|)}]
  loss      {"text", "ids", "loss" (mean cross-entropy of the next token), "loss_second_half" (labels of the first half ignored)}
  training  {"config", "ids", "optimizer", "losses", "gradient_norms"}: LoRA steps of PEFT; the adapter starts from `adapter_values` below
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PROMPTS = [
    (False, "Once upon a time, in a village by the sea,"),
    (False, "The capital of France is"),
    (False, "def fibonacci(n):\n    "),
    (False, "1, 1, 2, 3, 5, 8,"),
    (False, "Die Hauptstadt von Deutschland ist"),
    (True, "Why is the sky blue?"),
    (True, "Write a short poem about a blacksmith."),
    (True, "What is 7 times 8?"),
    (True, "Translate to French: The cat sleeps on the chair."),
    (True, "List three things to pack for a hike in the mountains."),
]
TEXT = (
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition, seemed to unite some of the best "
    "blessings of existence; and had lived nearly twenty-one years in the world with very little to distress or vex her.\n\n"
    "She was the youngest of the two daughters of a most affectionate, indulgent father; and had, in consequence of her sister's "
    "marriage, been mistress of his house from a very early period. Her mother had died too long ago for her to have more than an "
    "indistinct remembrance of her caresses; and her place had been supplied by an excellent woman as governess, who had fallen "
    "little short of a mother in affection.\n"
)
STEPS = 5
CONFIG = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "task_type": "CAUSAL_LM"}
OPTIMIZER = {"lr": 2e-3, "betas": [0.9, 0.999], "eps": 1e-3, "weight_decay": 0.01}


def adapter_values(key, shape):
    """Small numbers anybody can make again: A is 0.02·sin(0.37·i + number of the layer), B is 0.01·cos(0.53·i) for the i-th value."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    layer = int(key.split(".layers.")[1].split(".")[0])
    values = 0.02 * np.sin(0.37 * i + layer) if "lora_A" in key else 0.01 * np.cos(0.53 * i)
    return values.astype(np.float32).reshape(shape)


def open_model(path):
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)).eval()
    state = {}
    for t in GGUFReader(str(path)).tensors:
        w = np.array(dequantize(t.data, t.tensor_type), dtype=np.float32)
        part = t.name.split(".")
        if part[0] == "token_embd":
            key = "model.embed_tokens.weight"
        elif part[0] == "output_norm":
            key = "model.norm.weight"
        else:
            key = f"model.layers.{part[1]}.{names[part[2]]}.weight"
            if part[2] in ("attn_q", "attn_k"):
                heads = 9 if part[2] == "attn_q" else 3
                w = w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        state[key] = torch.tensor(w)
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"]), missing
    model.tie_weights()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    for key, w in model.state_dict().items():
        assert torch.allclose(w, theirs[key], atol=1e-6), f"transformers' GGUF loader disagrees about {key}"
    return model


def greedy(model, ids, count):
    """Ids, and the smallest gap between the best two logits."""
    new, gap, cache, x = [], float("inf"), None, torch.tensor([ids])
    for _ in range(count):
        out = model(x, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].topk(2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        new.append(int(best.indices[0]))
        x = best.indices[:1][None]
    return new, gap


def rounded(values):
    return [float(f"{v:.7g}") for v in values]


def train(model, ids):
    model = get_peft_model(model, LoraConfig(**CONFIG)).train()
    state = {k: torch.tensor(adapter_values(k, v.shape)) for k, v in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, state)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **OPTIMIZER)
    losses, norms, x = [], [], torch.tensor([ids])
    for _ in range(STEPS):
        loss = model(input_ids=x, labels=x).loss
        loss.backward()
        norms.append(float(torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters))))
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


def main():
    path = Path(sys.argv[1]).resolve()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = open_model(path)
    result = {"prompts": []}
    with torch.no_grad():
        for chat, text in PROMPTS:
            full = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False) if chat else text
            ids = tokenizer.encode(full, add_special_tokens=False)
            logits = model(torch.tensor([ids])).logits[0, -1]
            new, gap = greedy(model, ids, 48)
            assert gap > 2e-3, f"{text!r}: two continuations are as good as each other ({gap}); take another prompt"
            top = logits.topk(16)
            result["prompts"].append({"text": text, "chat": chat, "ids": ids, "greedy": new, "gap": float(f"{gap:.3g}"),
                                      "top": [[int(i), float(f"{v:.7g}")] for i, v in zip(top.indices, top.values)],
                                      "columns": rounded(logits[::192].tolist()), "largest": float(f"{logits.abs().max():.7g}")})
            print(repr(tokenizer.decode(new)), gap)
        ids = tokenizer.encode(TEXT, add_special_tokens=False)
        x = torch.tensor([ids])
        half = x.clone()
        half[:, : len(ids) // 2] = -100
        result["loss"] = {"text": TEXT, "ids": ids, "loss": float(model(x, labels=x).loss), "loss_second_half": float(model(x, labels=half).loss)}
    losses, norms = train(model, ids)
    result["training"] = {"config": {"peft_type": "LORA", **CONFIG}, "optimizer": OPTIMIZER, "losses": rounded(losses), "gradient_norms": rounded(norms)}
    print(result["training"])
    with open(Path(__file__).with_name("reference.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=None, separators=(",", ":"), ensure_ascii=False)
        f.write("\n")


if __name__ == "__main__":
    main()
