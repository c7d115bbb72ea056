"""PEFT's vocabulary: what a PEFT user types works and means the same."""

import json

import numpy as np
import pytest

import peftswift
from conftest import LORA, stir
from peftswift import LoraConfig, Model, PeftConfig, PeftModel, get_peft_model


def changed(model, ids, since):
    return not np.array_equal(model(input_ids=ids).logits, since)


def test_get_peft_model(model, ids, capsys):
    base = model(input_ids=ids).logits
    peft_model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    assert isinstance(peft_model, PeftModel) and peft_model.active_adapter == "default" and peft_model.active_adapters == ["default"]
    assert np.array_equal(peft_model(input_ids=ids).logits, base), "B is zero: a fresh LoRA changes nothing"
    trainable, total = peft_model.get_nb_trainable_parameters()
    assert trainable == sum(v.size for v in peft_model.adapter_state_dict().values())
    assert total == trainable + sum(v.size for v in model.state_dict().values())
    peft_model.print_trainable_parameters()
    assert capsys.readouterr().out == f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}\n"
    assert peft_model.peft_config["default"].r == 4 and peft_model.get_base_model() is model


def test_not_a_config(model):
    with pytest.raises(TypeError, match="str"):
        get_peft_model(model, "lora")


def test_save_and_load_several(model, ids, tmp_path):
    peft_model = get_peft_model(model, LORA)
    peft_model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"), seed=1)
    stir(model, "default"), stir(model, "second", 1)
    outputs = {}
    for name in ("default", "second"):
        peft_model.set_adapter(name)
        outputs[name] = peft_model(input_ids=ids).logits
    peft_model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "second"]
    again = PeftModel.from_pretrained(Model.from_pretrained(model.path, dtype="float32"), tmp_path)
    again.load_adapter(tmp_path / "second", "second")
    for name, expected in outputs.items():
        again.set_adapter(name)
        assert np.array_equal(again(input_ids=ids).logits, expected)
    config = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["inference_mode"] is True and list(config) == sorted(config)
    peft_model.save_pretrained(tmp_path / "only", selected_adapters=["second"])
    assert [p.name for p in (tmp_path / "only").iterdir()] == ["second"]
    with pytest.raises(ValueError, match="third"):
        peft_model.save_pretrained(tmp_path, selected_adapters=["third"])
    assert isinstance(PeftConfig.from_pretrained(tmp_path), LoraConfig)


def test_loaded_for_inference_or_training(model, adapter_folder):
    frozen = PeftModel.from_pretrained(model, adapter_folder)
    assert frozen.get_nb_trainable_parameters()[0] == 0 and frozen.trainable_parameters() == {}
    model.set_requires_grad("default")
    assert set(frozen.trainable_parameters()) == set(frozen.adapter_state_dict())
    model.load_adapter(adapter_folder, "other", is_trainable=True)
    model.set_adapter("other")
    assert frozen.get_nb_trainable_parameters()[0] > 0


def test_several_active_with_weights(model, ids):
    for name, seed in (("a", 0), ("b", 1)):
        model.add_adapter(name, LORA, seed=seed)
        stir(model, name, seed)
    base = (model.set_adapter([]), model(input_ids=ids).logits)[1]
    model.set_adapter("a", weights=[0.0])
    assert np.allclose(model(input_ids=ids).logits, base, atol=1e-6), "weight 0 is as good as none"
    model.set_adapter(["a", "b"])
    assert [a["name"] for a in model.adapter_status()["active"]] == ["a", "b"]
    both = model(input_ids=ids).logits
    model.set_adapter(["b", "a"])
    assert np.allclose(model(input_ids=ids).logits, both, atol=1e-5)
    model.set_adapter(["a", "b"], weights=[1, 0])
    one = model(input_ids=ids).logits
    model.set_adapter("a")
    assert np.allclose(model(input_ids=ids).logits, one, atol=1e-6)
    with pytest.raises(ValueError, match="1 weights for 2"):
        model.set_adapter(["a", "b"], weights=[1])
    with pytest.raises(LookupError, match="nobody"):
        model.set_adapter(["a", "nobody"])
    assert PeftModel(model).active_adapter == "a", "a refused call changes nothing"


def test_enable_disable(trained, ids):
    active = trained(input_ids=ids).logits
    peft_model = PeftModel(trained)
    with peft_model.disable_adapter():
        assert changed(trained, ids, active) and trained.adapter_status()["enabled"] is False
    assert np.array_equal(trained(input_ids=ids).logits, active)
    with pytest.raises(RuntimeError, match="inside"):
        with peft_model.disable_adapter():
            raise RuntimeError("inside")
    assert trained.adapter_status()["enabled"] is True


def test_scale(trained, ids):
    active = trained(input_ids=ids).logits
    trained.set_scale("default", 0)
    off = trained(input_ids=ids).logits
    trained.disable_adapter_layers()
    assert np.allclose(off, trained(input_ids=ids).logits, atol=1e-6)
    trained.enable_adapter_layers()
    trained.set_scale("default", 1)
    assert np.array_equal(trained(input_ids=ids).logits, active)


def test_merge_and_unmerge(trained, ids):
    active, before = trained(input_ids=ids).logits, {k: v.copy() for k, v in trained.state_dict().items()}
    report = trained.merge_adapter()
    assert report["kept"] == pytest.approx(1, abs=1e-3) and {l["name"].split(".")[-1] for l in report["layers"]} == {"q_proj", "v_proj"}
    assert np.allclose(trained(input_ids=ids).logits, active, rtol=0, atol=2e-5 * np.abs(active).max())
    assert not np.array_equal(trained.state_dict()["model.layers.0.self_attn.q_proj.weight"], before["model.layers.0.self_attn.q_proj.weight"])
    trained.unmerge_adapter()
    after = trained.state_dict()
    assert all(np.array_equal(after[k], v) for k, v in before.items()), "the exact weights come back"
    with pytest.raises(peftswift.PeftError, match="merge"):
        trained.unmerge_adapter()


def test_merge_and_unload(trained, ids, tmp_path):
    active = trained(input_ids=ids).logits
    base = PeftModel(trained).merge_and_unload()
    assert base is trained and base.adapter_status()["adapters"] == {}
    assert np.allclose(base(input_ids=ids).logits, active, rtol=0, atol=2e-5 * np.abs(active).max())
    base.export(tmp_path / "merged")
    assert np.allclose(Model.from_pretrained(tmp_path / "merged", dtype="float32")(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-6)


def test_unload(model, ids):
    before = model(input_ids=ids).logits
    peft_model = get_peft_model(model, LORA)
    stir(model)
    assert changed(model, ids, before)
    assert peft_model.unload() is model and not changed(model, ids, before) and model.adapter_status()["adapters"] == {}


def test_rename_and_delete(trained, ids):
    active = trained(input_ids=ids).logits
    trained.rename_adapter("default", "smith")
    assert PeftModel(trained).active_adapter == "smith" and np.array_equal(trained(input_ids=ids).logits, active)
    trained.add_adapter("other", LORA)
    with pytest.raises(peftswift.PeftError, match="other"):
        trained.rename_adapter("smith", "other")
    trained.delete_adapter("smith")
    assert list(trained.adapter_status()["adapters"]) == ["other"] and changed(trained, ids, active)
    with pytest.raises(LookupError, match="smith"):
        trained.delete_adapter("smith")


def test_seed_decides_the_start(model):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model.add_adapter(name, LORA, seed=seed)
    a, b, c = (model.adapter_state_dict(n) for n in "abc")
    key = next(k for k in a if "lora_A" in k)
    assert np.array_equal(a[key], b[key]) and not np.array_equal(a[key], c[key])


def test_one_adapter_per_row(trained, ids):
    trained.add_adapter("other", LORA, seed=5)
    stir(trained, "other", 5)
    rows = []
    for name in ("default", "other"):
        trained.set_adapter(name)
        rows.append(trained(input_ids=ids).logits)
    with PeftModel(trained).disable_adapter():
        base = trained(input_ids=ids).logits
    mixed = trained(input_ids=np.concatenate([ids, ids[:1]]), adapter_names=["other", "__base__", "default"]).logits
    for got, expected in zip(mixed, (rows[1][0], base[1], rows[0][0])):
        assert np.allclose(got, expected, atol=1e-5)


def test_describe(model):
    d = model.describe()
    assert d["config"]["hidden_size"] == 32 and model.config["vocab_size"] == 96
    json.dumps(d)
