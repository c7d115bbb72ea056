#!/usr/bin/env python3
"""Variants of the conformance cases: other sizes, targets, bases and options, for PEFT itself to answer (generate.py).

usage: python vary.py CASES.json OUT.json SEED [COUNT of each case]

What a variant changes is drawn from the configuration's own fields: numbers, flags, the choices of a Literal, `bias`, targets (lists, patterns,
all-linear, an embedding, the head), modules_to_save, layers_to_transform, exclude_modules, rank_pattern and alpha_pattern; some bases are quantised to four bits. PEFT refuses some; generate.py
leaves those out. See README.md for what else is no defect of an engine that fails one.
"""
import copy
import dataclasses
import json
import random
import sys
import typing

from peft import PEFT_TYPE_TO_CONFIG_MAPPING

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERNS = [r".*\.1\..*(q|v|down)_proj", r".*layers\.0\.self_attn\.(k|o)_proj", r".*(gate|up)_proj", r".*\.(q|k|v)_proj"]
ALIKE = [["llama", "llama_tied", "mistral", "qwen2", "qwen3", "llama3l"], ["mlp", "mlp_sq"], ["bert_cls", "roberta_cls"], ["t5", "t5_gated"]]
DECODERS = ALIKE[0] + ["llama_sharded", "llama_bf16", "llama_cls"]
ADAPTS_EMBEDDINGS = ["LORA", "OFT", "HIRA", "LOHA", "HRA"]
KEPT = {  # what a case is about, or what makes another kind of file of it
    "inference_mode", "fan_in_fan_out", "progressbar", "use_qalora", "qalora_group_size", "megatron_config", "ephemeral_gpu_offload", "monarch", "peft_type",
    "task_type", "save_precomputed_indices", "save_indices", "save_projection", "use_bdlora", "runtime_config", "base_model_name_or_path", "revision",
    "init_weights", "init_lora_weights", "hidden_size", "num_tasks", "n_tasks", "adapter_layers", "total_step", "num_frozen_tokens", "num_ranks",
}
SIZES = {"r": [1, 2, 3, 4, 5, 6, 8, 12], "init_r": [1, 2, 3, 4, 5, 6, 8, 12], "n_frequency": [7, 33, 64, 100], "num_virtual_tokens": [1, 2, 5, 7], "topk": [1, 2, 3]}
LEFT_OUT = ["init_eva"]  # PEFT waits for ever for more tokens than a batch has
FIXED_BASE = ["lora_layer_replication", "lora_ensure_tying", "xlora"]


def literals(hint):
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [value for part in typing.get_args(hint) for value in literals(part)]


class Variation:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def chance(self, p):
        return self.random.random() < p

    def targets(self, kind):
        if self.chance(0.15):
            return "all-linear"
        if self.chance(0.2):
            return self.random.choice(PATTERNS)
        names = self.random.sample(LINEARS, self.random.randint(1, 4))
        if kind in ADAPTS_EMBEDDINGS and self.chance(0.12):
            names.append("embed_tokens")
        return names + (["lm_head"] if self.chance(0.08) else [])

    def number(self, key, value, kind):
        if isinstance(value, bool):
            return value != self.chance(0.3)
        if isinstance(value, float):
            return round(min(0.95, max(1e-5, value * self.random.choice([0.5, 0.8, 1, 1.1]))), 6) if 0 < value < 1 else value * self.random.choice([0.5, 1, 2])
        if value == 0 or self.chance(0.3):
            return value
        if "block" in key or "group" in key or key in ("vector_length", "gralora_k", "nblocks"):
            return self.random.choice([2, 4, 8, 16])
        if key == "r" and kind == "OFT":
            return self.random.choice([2, 4, 8])
        if key in SIZES:
            return self.random.choice(SIZES[key])
        if "alpha" in key:
            return self.random.choice([1, 3, 7, 16])
        if "seed" in key or "key" in key:
            return self.random.randint(0, 1000)
        return max(1, value + self.random.choice([-1, 1, 2]))

    def configuration(self, config, base):
        config, kind = copy.deepcopy(config), config["peft_type"]
        kind_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
        if kind_class is None:
            return config
        hints = typing.get_type_hints(kind_class)
        fields = {field.name: field.default for field in dataclasses.fields(kind_class)}
        if base in DECODERS and isinstance(config.get("target_modules"), list) and config["target_modules"] and self.chance(0.75):
            config["target_modules"] = self.targets(kind)
            if "feedforward_modules" in config:
                config["feedforward_modules"] = [name for name in config["target_modules"] if name in ("down_proj", "up_proj")]
        for key, value in list(config.items()):
            if key not in KEPT and isinstance(value, (bool, int, float)):
                config[key] = self.number(key, value, kind)
        for key, default in fields.items():
            if key in KEPT or key in config:
                continue
            choices = literals(hints.get(key))
            if key == "bias":
                if self.chance(0.2):
                    config[key] = self.random.choice(["all", kind.lower() + "_only"])
            elif choices and self.chance(0.4):
                config[key] = self.random.choice(choices)
            elif isinstance(default, bool) and self.chance(0.15):
                config[key] = not default
            elif isinstance(default, int) and not isinstance(default, bool) and default and key != "r" and self.chance(0.15):
                config[key] = max(1, default + self.random.choice([-1, 1, 2]))
        if base in DECODERS and "target_modules" in fields:
            for key, choices in {
                "modules_to_save": [["lm_head"], ["norm"], ["input_layernorm"]], "exclude_modules": [["k_proj"], r".*\.0\..*v_proj", ["layers.1.mlp.up_proj"]],
                "layers_to_transform": [[0], [1], 1, [0, 1]] if isinstance(config.get("target_modules"), list) else [],
                "rank_pattern": [{name: rank} for name in ["q_proj", "layers.1.self_attn.v_proj", "down_proj", ".*mlp.*"] for rank in [1, 2, 3, 6]],
                "alpha_pattern": [{name: alpha} for name in ["q_proj", "layers.1.self_attn.v_proj", "down_proj"] for alpha in [1, 2, 12]],
            }.items():
                if key in fields and key not in config and choices and self.chance(0.15):
                    config[key] = self.random.choice(choices)
        return config

    def case(self, case, name):
        case = copy.deepcopy(case)
        case.update(name=name, seed=self.random.randint(1, 10**6), description="a variant")
        for bases in ALIKE:
            if case["base"] in bases and not name.startswith(tuple(FIXED_BASE)) and self.chance(0.6):
                case["base"] = self.random.choice(bases)
                break
        sizes = case.setdefault("input", {"batch": 2, "len": 7})
        if not any(key in sizes for key in ("lens", "left_pad", "plant", "extra")) and case.get("adapter_names") is None:
            sizes.update(batch=self.random.randint(1, 3), len=self.random.randint(4, 11))
        if "config" in case:
            case["config"] = self.configuration(case["config"], case["base"])
        for adapter, config in (case.get("adapters") or {}).items():
            case["adapters"][adapter] = self.configuration(config, case["base"])
        if self.chance(0.3) and "steps" in (case.get("train") or {}):
            case["train"]["steps"] = self.random.choice([1, 3])
        if case.get("kind") == "qlora" or (case.get("kind", "adapter") == "adapter" and case["base"] in DECODERS and "config" in case and self.chance(0.15)):
            self.quantise(case)
        for array in case.get("arrays", []):
            self.array(array)
        return case

    def quantise(self, case):
        """The linear layers in four bits; what merging leaves is quantised again."""
        case.update(kind="qlora", quantization=self.four_bits(self.random.choice(["nf4", "fp4"])))
        merges = {"merge", "unmerge", "unload", "requantise"}
        case["checks"] = [check for check in case["checks"] if check not in merges] + ["requantise"] * bool(merges & set(case["checks"]))

    def four_bits(self, scheme):
        # Not 64: the kit's rows are shorter, and what bitsandbytes reads then depends on the processor.
        return {"scheme": scheme, "block_size": self.random.choice([32, 128, 256]), "double_quant": self.chance(0.4)}

    def array(self, array):
        array.update(shape=[self.random.randint(1, 70), self.random.randint(1, 90)], std=self.random.choice([1e-6, 0.05, 30]))
        if array["scheme"] in ("nf4", "fp4"):
            array.update(self.four_bits(array["scheme"]), zero_block=self.chance(0.2))
        elif array["scheme"] == "blockwise8":
            array["block_size"] = self.random.choice([64, 128, 256, 1024])


def main():
    source, out, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    spec, variation = json.load(open(source)), Variation(seed)
    cases = [case for case in spec["cases"] if case.get("kind") != "errors"]
    variants = [variation.case(case, f"{case['name']}__{seed}_{n}") for case in cases for n in range(count) if not case["name"].startswith(tuple(LEFT_OUT))]
    json.dump({"bases": spec["bases"], "cases": variants}, open(out, "w"))
    print(len(variants), "variants")


if __name__ == "__main__":
    main()
