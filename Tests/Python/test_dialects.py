"""Adapter files of kohya's scripts, LyCORIS and diffusers: read by the formulas they were published with, written and read again."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from conftest import LORA, stir
from peftswift import Model, PeftError

IDS = np.array([[1, 5, 9, 2, 20, 7, 3, 4]])
LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


def write(path, tensors, metadata=None):
    """A safetensors file with nothing but numpy."""
    header, offset = ({"__metadata__": metadata} if metadata else {}), 0
    arrays = {k: np.ascontiguousarray(v, np.int64 if np.asarray(v).dtype == np.int64 else np.float32) for k, v in tensors.items()}
    for name, array in arrays.items():
        header[name] = {"dtype": "I64" if array.dtype == np.int64 else "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values()))
    return path


def read(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    metadata = header.pop("__metadata__", {})
    kinds = {"F32": np.float32, "I64": np.int64}
    return {k: np.frombuffer(data[8 + size + v["data_offsets"][0]:8 + size + v["data_offsets"][1]], kinds[v["dtype"]]).reshape(v["shape"]) for k, v in header.items()}, metadata


def random(*shape, seed=[0]):
    seed[0] += 1
    return np.random.default_rng(seed[0]).normal(0, 0.3, shape).astype(np.float32)


def factors(kind, out, inputs, r=3):
    """The tensors of a module of a method, and the change of the weight they stand for, before alpha / rank."""
    if kind == "lora":
        up, down = random(out, r), random(r, inputs)
        return {"lora_up.weight": up, "lora_down.weight": down}, up @ down
    if kind == "loha":
        t = {k: random(out, r) if k.endswith("a") else random(r, inputs) for k in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
        return t, (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    if kind == "lokr":
        small = {32: 4, 64: 8, 16: 4}
        w1, a, b = random(small[out], small[inputs]), random(out // small[out], 2), random(2, inputs // small[inputs])
        return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, np.kron(w1, a @ b)
    return {"diff": (d := random(out, inputs) * 0.1)}, d


def expected(base_folder, changes, ids):
    """Logits of the base with these changes in its weights: set as a full change in PEFT's own form."""
    model = Model.from_pretrained(base_folder, dtype="float32")
    model.add_adapter("sum", {"peft_type": "FULL", "target_modules": list(changes)})
    model.load_adapter_state_dict("sum", {f"base_model.model.{name}.diff": change for name, change in changes.items()})
    return model(input_ids=ids).logits


@pytest.mark.parametrize("prefix", ["lora_te_", "lora_unet_", "lycoris_"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "full"])
def test_read(base_folder, ids, tmp_path, kind, prefix):
    model = Model.from_pretrained(base_folder, dtype="float32")
    state, tensors, changes = model.state_dict(), {}, {}
    for index, name in enumerate(LAYERS):
        parts, change = factors(kind, *state[name + ".weight"].shape)
        rank = {"lora": 3, "loha": 3, "lokr": 2}.get(kind)
        alpha = (4.0, 1.5)[index]
        if rank:
            parts["alpha"], change = np.float32(alpha), change * alpha / rank
        changes[name] = change
        tensors |= {f"{prefix}{name.replace('.', '_')}.{part}": value for part, value in parts.items()}
    model.load_adapter(write(tmp_path / "a.safetensors", tensors), "a", is_trainable=True)
    got = model(input_ids=ids).logits
    assert np.abs(got - expected(base_folder, changes, ids)).max() < 2e-4
    assert np.abs(got - expected(base_folder, {k: v * 0 for k, v in changes.items()}, ids)).max() > 1e-2
    # Written under the same names, and read again: the same bits.
    model.save_pretrained(tmp_path / "b.safetensors", "a", format="kohya", prefix=prefix)
    written, _ = read(tmp_path / "b.safetensors")
    assert set(written) == set(tensors)
    for name, value in tensors.items():
        assert written[name].shape == np.shape(value) and np.allclose(written[name], value, rtol=1e-6), name
    again = Model.from_pretrained(base_folder, dtype="float32")
    again.load_adapter(tmp_path / "b.safetensors", "a")
    assert np.array_equal(again(input_ids=ids).logits, got)
    assert model.trainable_parameters() and again.adapter_config("a")["peft_type"] == ("FULL" if kind == "full" else kind.upper())


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_dora(base_folder, ids, tmp_path, kind):
    model = Model.from_pretrained(base_folder, dtype="float32")
    name = LAYERS[0]
    w = model.state_dict()[name + ".weight"]
    parts, change = factors(kind, *w.shape)
    rank = 2 if kind == "lokr" else 3
    scale = np.abs(random(w.shape[0], 1)) + 0.5
    merged = w + change * 2 / rank
    target = merged / np.linalg.norm(merged, axis=1, keepdims=True) * scale
    key = "lora_te_" + name.replace(".", "_")
    tensors = {f"{key}.{part}": value for part, value in parts.items()} | {f"{key}.alpha": np.float32(2), f"{key}.dora_scale": scale}
    model.load_adapter(write(tmp_path / "a.safetensors", tensors), "a")
    assert np.abs(model(input_ids=ids).logits - expected(base_folder, {name: target - w}, ids)).max() < 2e-4
    model.save_pretrained(tmp_path / "b.safetensors", "a", format="kohya", prefix="lora_te_")
    written, _ = read(tmp_path / "b.safetensors")
    assert np.array_equal(written[f"{key}.dora_scale"], scale)
    bad = tensors | {f"{key}.dora_scale": random(1, w.shape[1])}
    with pytest.raises(PeftError, match="dora_scale"):
        model.load_adapter(write(tmp_path / "bad.safetensors", bad), "bad")


@pytest.mark.parametrize("file", sorted((Path(__file__).parent / "fixtures_lycoris").glob("*.safetensors")), ids=lambda file: file.stem)
def test_files_of_lycoris(base_folder, tmp_path, file):
    """What LyCORIS wrote, with the outputs it has with it (scripts/check_with_lycoris.py); written by us it is the same file."""
    model = Model.from_pretrained(base_folder.parent / ("gpt2" if file.stem == "norm" else "llama"), dtype="float32")
    tensors, _ = read(file)
    logits = tensors.pop("logits")
    plain = model(input_ids=IDS).logits
    model.load_adapter(write(tmp_path / "a.safetensors", tensors), "a", is_trainable=True)
    assert np.abs(model(input_ids=IDS).logits - logits).max() < 2e-4
    assert np.abs(plain - logits).max() > 1e-2
    model.save_pretrained(tmp_path / "b.safetensors", "a", format="kohya")
    written, _ = read(tmp_path / "b.safetensors")
    assert set(written) == set(tensors)
    for name, value in tensors.items():
        if file.stem == "lokr_full" and name.endswith(".alpha"):
            continue  # of whole factors it means nothing, and is 1
        assert written[name].shape == value.shape and np.allclose(written[name], value, rtol=1e-5, atol=1e-6), name


def test_lycoris_refusals(base_folder, tmp_path):
    """What has no place in this library's, or in LyCORIS', form is refused, by name."""
    model = Model.from_pretrained(base_folder.parent / "gpt2", dtype="float32")
    key = "lycoris_transformer_h_0_"
    with pytest.raises(PeftError, match="bias"):  # scaled by PEFT's (IA)³ and not by LyCORIS'
        model.load_adapter(write(tmp_path / "i.safetensors", {key + "attn_c_attn.weight": random(96), key + "attn_c_attn.on_input": np.float32(0)}), "i")
    with pytest.raises(PeftError, match="w_norm|shape"):
        model.load_adapter(write(tmp_path / "n.safetensors", {key + "ln_1.w_norm": random(31)}), "n")
    with pytest.raises(PeftError, match="oft_blocks"):
        model.load_adapter(write(tmp_path / "o.safetensors", {key + "attn_c_attn.oft_blocks": random(3, 5, 5), key + "attn_c_attn.alpha": np.float32(0)}), "o")
    with pytest.raises(PeftError, match="on_input"):
        model.load_adapter(write(tmp_path / "f.safetensors", {key + "attn_c_attn.weight": random(96)}), "f")


def test_diffusers(base_folder, ids, tmp_path):
    model = Model.from_pretrained(base_folder, dtype="float32")
    changes, plain, old = {}, {}, {}
    for name in LAYERS:
        parts, changes[name] = factors("lora", *model.state_dict()[name + ".weight"].shape)
        plain |= {f"transformer.{name}.lora_A.weight": parts["lora_down.weight"], f"transformer.{name}.lora_B.weight": parts["lora_up.weight"]}
        old |= {f"unet.{name}.lora_linear_layer.down.weight": parts["lora_down.weight"], f"unet.{name}.lora_linear_layer.up.weight": parts["lora_up.weight"]}
    wanted = expected(base_folder, changes, ids)
    for index, tensors in enumerate((plain, old)):
        model.load_adapter(write(tmp_path / f"{index}.safetensors", tensors), str(index))
        model.set_adapter(str(index))
        assert np.abs(model(input_ids=ids).logits - wanted).max() < 2e-4, "without alpha factors act as they are"
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6, "transformer.r": 3})}
    model.load_adapter(write(tmp_path / "m.safetensors", plain, metadata), "m")
    model.set_adapter("m")
    assert np.abs(model(input_ids=ids).logits - expected(base_folder, {k: 2 * v for k, v in changes.items()}, ids)).max() < 2e-4
    got = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "w.safetensors", "m", format="diffusers")
    written, metadata = read(tmp_path / "w.safetensors")
    assert set(written) == set(plain) and json.loads(metadata["lora_adapter_metadata"])["transformer.lora_alpha"] == 6
    again = Model.from_pretrained(base_folder, dtype="float32")
    again.load_adapter(tmp_path / "w.safetensors", "w")
    assert np.array_equal(again(input_ids=ids).logits, got)


def test_nothing_is_guessed(model, adapter_folder, tmp_path):
    name = "lora_te_" + LAYERS[0].replace(".", "_")
    good, _ = factors("lora", 32, 32)
    tensors = {f"{name}.{part}": value for part, value in good.items()}

    def refused(tensors, *texts):
        before = model.adapter_status()
        with pytest.raises(PeftError) as error:
            model.load_adapter(write(tmp_path / "x.safetensors", tensors), "x")
        assert all(text in str(error.value) for text in texts), error.value
        assert model.adapter_status() == before

    refused(tensors | {"lora_te_model_layers_7_self_attn_q_proj.alpha": np.float32(1)}, "layers_7", "model.layers.0.self_attn.q_proj")
    refused(tensors | {f"{name}.lora_sideways.weight": random(2, 2)}, "lora_sideways")
    refused({f"{name}.lora_up.weight": good["lora_up.weight"]}, "lora_down", LAYERS[0])
    refused(tensors | {"lora_te_" + LAYERS[1].replace(".", "_") + ".diff": random(32, 64)}, "FULL", "LORA")
    refused({f"{name}.lora_up.weight": random(31, 3), f"{name}.lora_down.weight": good["lora_down.weight"]}, "q_proj.lora_B.weight", "31")
    refused(tensors | {f"{name}.alpha": random(2)}, "alpha")
    refused({"base_model.model." + LAYERS[0] + ".lora_A.weight": random(3, 32)}, "adapter_config.json")
    model.add_adapter("vera", {"peft_type": "VERA", "target_modules": ["q_proj"], "r": 4})
    with pytest.raises(PeftError, match="vera"):
        model.save_pretrained(tmp_path / "v.safetensors", "vera", format="kohya")
    with pytest.raises(PeftError, match="format"):
        model.save_pretrained(tmp_path / "v.safetensors", "vera", format="other")
    assert not (tmp_path / "v.safetensors").exists()


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_start_in_the_base_becomes_plain_lora(base_folder, ids, tmp_path, start, rslora):
    """PEFT's path_initial_model_for_weight_conversion: the same function over the base as it was."""
    model = Model.from_pretrained(base_folder, dtype="float32")
    model.add_adapter("default", {**LORA, "init_lora_weights": start, "use_rslora": rslora, **({} if rslora else {"rank_pattern": {"q_proj": 6}})})
    model.save_pretrained(tmp_path / "initial")
    stir(model)
    got = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "initial")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert config["r"] == 8 and config["init_lora_weights"] is True and config["lora_alpha"] == pytest.approx(8 * (2**0.5 if rslora else 2))
    again = Model.from_pretrained(base_folder, dtype="float32")
    again.load_adapter(tmp_path / "plain")
    assert np.abs(again(input_ids=ids).logits - got).max() < 2e-4
    with pytest.raises(PeftError, match="lora_A"):
        model.add_adapter("wide", {**LORA, "r": 5})
        model.save_pretrained(tmp_path / "wrong", "wide", path_initial_model_for_weight_conversion=tmp_path / "initial")
