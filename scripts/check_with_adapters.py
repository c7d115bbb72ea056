#!/usr/bin/env python3
"""Bottleneck adapters go both ways between this library and AdapterHub's `adapters` with the same outputs.

    python scripts/check_with_adapters.py [--fixtures FOLDER]

Needs `pip install adapters torch` in an environment of its own, and build/libpeftswift.so.1; not part of `make test`. Bases: the golden
kit's tiny models. --fixtures also keeps what the library wrote for BERT, with its outputs, and outputs of MAM and UniPELT:
Tests/Python/fixtures_adapters.
"""
import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import adapters
import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bindings" / "python"))
import peftswift  # noqa: E402

IDS = np.array([[1, 5, 9, 2, 20, 7, 3, 4]])
# ln_before is not here: the library gives its norm two names, and safetensors refuses to save that.
CONFIGS = {
    "double_seq_bn": "double_seq_bn", "seq_bn": "seq_bn", "par_bn": "par_bn", "scaled_par_bn": "scaled_par_bn",
    "gated": adapters.BnConfig(mh_adapter=True, output_adapter=True, reduction_factor=4, non_linearity="gelu", use_gating=True),
    "norms": adapters.BnConfig(mh_adapter=False, output_adapter=True, reduction_factor={"default": 2, "1": 4}, non_linearity="tanh", ln_after=True,
                               original_ln_before=True),
    "compacter": adapters.CompacterConfig(reduction_factor=8), "compacter++": adapters.CompacterPlusPlusConfig(reduction_factor=4),
    "phm": adapters.BnConfig(mh_adapter=True, output_adapter=True, reduction_factor=4, non_linearity="gelu", phm_layer=True, phm_dim=2, phm_rank=2, shared_phm_rule=False,
                             factorized_phm_rule=True, phm_bias=False),
    "phm shared": adapters.BnConfig(mh_adapter=True, output_adapter=True, reduction_factor=4, non_linearity="gelu", phm_layer=True, shared_W_phm=True,
                                    factorized_phm_rule=True, learn_phm=False),
    "phm whole": adapters.BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=4, non_linearity="gelu", phm_layer=True, factorized_phm_W=False),
    "adapter_plus": adapters.AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0),
    "post_add": adapters.SeqBnConfig(reduction_factor=4, residual_before_ln="post_add"),
    "seq_bn_inv": adapters.SeqBnInvConfig(reduction_factor=4),
}
# The library fails on these by itself: it has no sum before a norm that is not there, nothing undoes an inversion before T5's head, and
# what layers share is not in its files where the base model is the whole model.
MISSING = {(base, name) for base in ("bert", "t5") for name in ("compacter", "compacter++", "phm shared", "phm whole")} | {("llama", "post_add"), ("mistral", "post_add"), ("gpt2", "post_add"), ("t5", "post_add"), ("t5", "seq_bn_inv"), ("vit", "post_add"), ("vit", "seq_bn_inv")}
# Members of compositions. The library's Average divides by their number once more (its `mean` takes torch.mean of what is weighed
# already); its weights are therefore given so many times as large.
MEMBERS = {"a": "double_seq_bn", "a2": "double_seq_bn", "b": "double_seq_bn", "c": "seq_bn", "d": "seq_bn"}
FUSED = {"a,b": "dynamic", "c,d": adapters.StaticAdapterFusionConfig(query_before_ln=True, residual_before=True),
         "a2,b": adapters.DynamicAdapterFusionConfig(temperature=True, value_before_softmax=False, regularization=False, query=False),
         "a,a2": adapters.DynamicAdapterFusionConfig(key=False, value_initialized=False, residual_before=True)}
COMPOSITIONS = {
    "Stack": lambda p, n: p.Stack("a", "c"), "Fuse": lambda p, n: p.Fuse("a", "b"), "Fuse of seq_bn": lambda p, n: p.Fuse("c", "d"),
    "Fuse, temperature": lambda p, n: p.Fuse("a2", "b"), "Fuse without key": lambda p, n: p.Fuse("a", "a2"),
    "Stack of Fuse": lambda p, n: p.Stack("c", p.Fuse("a", "b")), "Fuse of Stack": lambda p, n: p.Fuse(p.Stack("c", "a"), "b"),
    "Average": lambda p, n: p.Average("a", "b", weights=[0.3 * n, 0.7 * n], normalize_weights=False),
    "Average of Stack": lambda p, n: p.Average(p.Stack("a", "b"), "a2", weights=[0.4 * n, 0.6 * n], normalize_weights=False),
    "Split": lambda p, n: p.Split("a", "b", splits=[3, 5]), "BatchSplit": lambda p, n: p.BatchSplit("a", "b", batch_sizes=[2, 1]),
    "BatchSplit of blocks": lambda p, n: p.BatchSplit(p.Stack("a", "b"), p.Stack("b", "a2"), batch_sizes=[1, 2]),
    "Parallel": lambda p, n: p.Parallel("a", "b", p.Stack("a2", "b")), "Stack of Parallel": lambda p, n: p.Stack("a2", p.Parallel("a", "b")),
}
HEADS = {"vit": transformers.AutoModelForImageClassification, "bert": transformers.AutoModel, "t5": transformers.AutoModelForSeq2SeqLM}


def theirs(base):
    model = HEADS.get(base, transformers.AutoModelForCausalLM).from_pretrained(ROOT / "Tests/Golden/data/bases" / base, dtype=torch.float32)
    adapters.init(model)
    return model.eval()


def output(model, base, ids=IDS):
    ids = np.array(ids) if isinstance(model, peftswift.Model) else torch.tensor(np.array(ids))
    if base == "vit":
        picture = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
        result = model(pixel_values=picture if isinstance(model, peftswift.Model) else torch.tensor(picture))
        return result.logits if isinstance(model, peftswift.Model) else result.logits.detach().numpy()
    if hasattr(model, "lm_head") and len(getattr(model.base_model, "invertible_adapters", [])) and base != "t5":
        # Heads of transformers' classes do not undo it; those of the library's own classes do.
        hidden = model.base_model(input_ids=ids).last_hidden_state
        return model.lm_head(next(iter(model.base_model.invertible_adapters.values()))(hidden, rev=True)).detach().numpy()
    result = model(input_ids=ids, **({"decoder_input_ids": ids[:, :4]} if base == "t5" else {}))
    values = getattr(result, "logits", None)
    values = result.last_hidden_state if values is None else values
    return values if isinstance(values, np.ndarray) else values.detach().numpy()


def compositions(base, report, fixtures):
    """Composed adapters, theirs in ours; the fusion both ways."""
    folder, ids = Path(tempfile.mkdtemp()), np.concatenate([IDS, IDS[:, ::-1], IDS + 3])
    model = theirs(base)
    for name, config in MEMBERS.items():
        model.add_adapter(name, config=config)
    for name, config in FUSED.items():
        model.add_adapter_fusion(name.split(","), config)
    torch.manual_seed(7)
    for key, parameter in model.named_parameters():
        if "adapter" in key:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.eval()
    ours = peftswift.Model.from_pretrained(ROOT / "Tests/Golden/data/bases" / base, dtype="float32")
    for name in MEMBERS:
        model.save_adapter(str(folder / name), name, use_safetensors=True)
        ours.load_adapter(folder / name, name)
    for name in FUSED:
        model.save_adapter_fusion(str(folder / name), name.split(","), use_safetensors=True)
        ours.load_adapter(folder / name, name)
    outputs = {}
    for what, make in COMPOSITIONS.items():
        model.set_active_adapters(make(adapters.composition, 2))
        ours.set_adapter(make(peftswift, 1))
        outputs[what] = output(model, base, ids)
        report(f"{base}, {what}", output(ours, base, ids), outputs[what])
    for name in FUSED:
        ours.save_pretrained(folder / "again" / name, name)
        again = theirs(base)
        for member in name.split(","):
            again.load_adapter(str(folder / member), use_safetensors=True)
        again.load_adapter_fusion(str(folder / "again" / name), use_safetensors=True)
        for one in (model, again.eval()):
            one.set_active_adapters(adapters.composition.Fuse(*name.split(",")))
        report(f"{base}, fusion {name}, ours in theirs", output(again, base, ids), output(model, base, ids))
    if fixtures and base == "bert":
        shutil.copytree(folder, fixtures / "composed", dirs_exist_ok=True, ignore=shutil.ignore_patterns("again", "head_config.json", "*head*"))
        np.savez(fixtures / "composed" / "outputs.npz", ids=ids, **outputs)


# Configurations that are several: the library's, and ours, which are adapters that act together. A prefix of the library takes no places,
# so its models are told positions behind it.
PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}
UNIONS = {
    "mam": (adapters.MAMConfig(adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=16)), {"prefix": PREFIX, "bottleneck": {"peft_type": "BOTTLENECK", "config": "par_bn"}}),
    "unipelt": (adapters.UniPELTConfig(adapters.PrefixTuningConfig(prefix_length=3, flat=True)), {
        "prefix": {**PREFIX, "use_gating": True}, "bottleneck": {"peft_type": "BOTTLENECK", "config": "seq_bn", "use_gating": True},
        "lora": {"peft_type": "LORA", "r": 8, "lora_alpha": 2, "use_gating": True}}),
    "unipelt, a gate for each": (adapters.UniPELTConfig(adapters.PrefixTuningConfig(prefix_length=3, flat=True, shared_gating=False)), {
        "prefix": {**PREFIX, "use_gating": True, "shared_gating": False}, "bottleneck": {"peft_type": "BOTTLENECK", "config": "seq_bn", "use_gating": True},
        "lora": {"peft_type": "LORA", "r": 8, "lora_alpha": 2, "use_gating": True}}),
}
TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}


def parts(model, base, members):
    """The library's parameters of "own" under our names, by adapter."""
    own = {key: value.detach().numpy() for key, value in model.named_parameters() if ".own." in key}
    found = {name: {} for name in members}
    with torch.no_grad():
        # What its network makes: for each layer keys and values [2, 1, heads, length, size].
        layers = model.base_model.prefix_tuning.prefix_tunings["own"]["self_prefix"](1)
        found["prefix"]["prompt_embeddings"] = torch.cat([part[0].transpose(0, 1).flatten(1) for layer in layers for part in layer], 1).numpy()
    for key, value in own.items():
        name = key.replace(".own", "")
        if "prefix_tunings" in key:
            continue
        if "prefix_gates" in key:
            layer = next(part for part in key.split(".") if part.isdigit())
            found["prefix"][f"prefix_gates.{layer}.{key.split('.')[-1]}"] = value
        elif ".loras." in key:
            name = name.replace("loras.lora_A", "lora_A.weight").replace("loras.lora_B", "lora_B.weight").replace("loras.gate", "lora_gate")
            found["lora"]["base_model.model." + name] = value
        else:
            found["bottleneck"][name] = value
    return found


def unions(base, report, fixtures):
    """MAM and UniPELT, and how the library writes with its cache: a gate is the mean of what one call reads."""
    ids, kept = np.concatenate([IDS, IDS[:, ::-1]]), {}
    places = torch.arange(3, 3 + ids.shape[1])[None].expand(2, -1)
    for name, (config, members) in UNIONS.items():
        model = HEADS.get(base, transformers.AutoModelForCausalLM).from_pretrained(ROOT / "Tests/Golden/data/bases" / base, dtype=torch.float32, attn_implementation="eager")
        adapters.init(model)
        model.add_adapter("own", config=config)
        torch.manual_seed(11)
        for key, parameter in model.named_parameters():
            if ".own." in key:
                parameter.data.add_(torch.randn_like(parameter) * (1 if "gate" in key else 0.2))
        model.set_active_adapters("own")
        model.eval()
        state = parts(model, base, members)
        ours = peftswift.Model.from_pretrained(ROOT / "Tests/Golden/data/bases" / base, dtype="float32")
        for member, own in members.items():
            ours.add_adapter(member, {**own, "target_modules": TARGETS[base]} if member == "lora" else own)
            ours.load_adapter_state_dict(member, state[member])
        ours.set_adapter(list(members))
        with torch.no_grad():
            result = model(input_ids=torch.tensor(ids), position_ids=places)
            expected = (result.logits if base == "llama" else result.last_hidden_state).numpy()
        report(f"{base}, {name}", output(ours, base, ids), expected)
        kept |= {f"{base}|{name}|{member}|{key}": value for member in state for key, value in state[member].items()} | {f"{base}|{name}": expected}
        if base != "llama":
            continue
        for layer in model.model.layers:
            # Its Llama knows the cache by the name it had in transformers before 4.56, and else does without.
            layer.register_forward_pre_hook(lambda layer, args, given: (args, {**given, "past_key_value": given.get("past_key_values")}), with_kwargs=True)
        cache, read, steps = transformers.DynamicCache(), IDS, []
        session = ours.session(temperature=0, ignore_eos=True, gates="call")
        with torch.no_grad():
            for place in range(6):
                start = 3 + cache.get_seq_length()
                logits = model(input_ids=torch.tensor(read), position_ids=torch.arange(start, start + read.shape[1])[None], past_key_values=cache, use_cache=True).logits[0, -1]
                session.append(read[0].tolist())
                report(f"{base}, {name}, token {place} with a cache", session.logits(), logits.numpy())
                read, steps = np.array([[int(logits.argmax())]]), steps + [logits.numpy()]
        kept[f"{base}|{name}|cached"] = np.array(steps)
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path)
    fixtures = parser.parse_args().fixtures
    failures = 0

    def report(what, a, b):
        nonlocal failures
        error = float(np.abs(a - b).max() / np.abs(b).max())
        failures += not error < 1e-5
        print("PASS" if error < 1e-5 else "FAIL", f"{what}: {error:.1e}", flush=True)

    kept = unions("llama", report, fixtures) | unions("bert", report, fixtures)
    if fixtures:
        np.savez_compressed(fixtures / "unions.npz", ids=np.concatenate([IDS, IDS[:, ::-1]]), **kept)
    for base in ("llama", "mistral", "gpt2", "bert", "t5", "vit"):
        if base not in ("t5", "vit"):
            compositions(base, report, fixtures)
        for number, (name, config) in enumerate(CONFIGS.items()):
            if (base, name) in MISSING:
                continue
            folder = Path(tempfile.mkdtemp())
            model = theirs(base)
            model.add_adapter("own", config=config)
            model.set_active_adapters("own")
            torch.manual_seed(number)
            for key, parameter in model.named_parameters():
                if "adapters" in key or "shared_parameters" in key:
                    parameter.data.add_(torch.randn_like(parameter) * 0.1)
            expected = output(model, base)
            model.save_adapter(str(folder / "theirs"), "own", use_safetensors=True)

            ours = peftswift.Model.from_pretrained(ROOT / "Tests/Golden/data/bases" / base, dtype="float32")
            ours.load_adapter(folder / "theirs", "own")
            report(f"{base}, {name}, theirs in ours", output(ours, base), expected)
            ours.save_pretrained(folder / "ours", "own")
            model = theirs(base)
            model.set_active_adapters(model.load_adapter(str(folder / "ours"), use_safetensors=True))
            report(f"{base}, {name}, ours in theirs", output(model, base), expected)

            if fixtures and base == "bert":
                target = fixtures / name
                target.mkdir(parents=True, exist_ok=True)
                for file in ("adapter_config.json", "adapter.safetensors"):
                    shutil.copy(folder / "theirs" / file, target / file)
                np.save(target / "output.npy", expected)
    print(f"{failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
