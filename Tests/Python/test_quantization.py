"""Weight formats: arrays, models quantised on load and in place, folders of bitsandbytes (fixtures_bitsandbytes/make.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import peftswift
from conftest import GOLDEN, LORA
from peftswift import Model, PeftError, quantize
from peftswift._library import LEVELS

FOLDERS = Path(__file__).parent / "fixtures_bitsandbytes"
KINDS = ["nf4", "fp4_double", "int8"]
RNG = np.random.default_rng(1)


def tensors(folder):
    with peftswift.Context(threads=1) as context:
        return {k: np.array(v) for k, v in peftswift.Tensors.make("peft_tensors_load", context, str(folder / "model.safetensors").encode()).arrays().items()}


def save(folder, arrays):
    with peftswift.Context(threads=1) as context:
        peftswift._library.call("peft_tensors_save", peftswift.Tensors.from_arrays(context, arrays), str(folder / "model.safetensors").encode())


# ---- arrays

@pytest.mark.parametrize("scheme", [*peftswift.features()["weight_formats"]])
def test_every_scheme_holds_the_values(scheme):
    array = RNG.normal(size=(8, 512)).astype(np.float32)
    quantized = quantize(array, scheme)
    back = quantized.dequantize()
    assert back.shape == array.shape or scheme in ("f16", "bf16")
    error = np.linalg.norm(back.reshape(array.shape) - array) / np.linalg.norm(array)
    assert error < {"q2_K": 0.32, "q3_K": 0.18, "tq1_0": 0.9, "tq2_0": 0.9, "fp4": 0.16}.get(scheme, 0.12)


def test_parts_are_those_of_bitsandbytes():
    array = RNG.normal(size=(16, 96)).astype(np.float32)
    nf4 = quantize(array, "nf4", block_size=32, double_quant=True)
    assert nf4.data.dtype == np.uint8 and nf4.data.size == array.size // 2 and nf4.absmax.dtype == np.uint8 and nf4.absmax.size == array.size // 32
    scales = nf4.code2[nf4.absmax] * nf4.absmax2[0] + nf4.offset[0]
    codes = np.stack([nf4.data >> 4, nf4.data & 15], 1).reshape(-1)
    assert np.array_equal(nf4.dequantize(), (nf4.code[codes] * np.repeat(scales, 32)).reshape(array.shape).astype(np.float32))
    int8 = quantize(array, "int8")
    assert int8.data.dtype == np.int8 and np.allclose(int8.absmax, np.abs(array.astype(np.float16)).max(1))


@pytest.mark.parametrize("array, options, words", [
    (np.ones((2, 33)), {"scheme": "q4_K"}, "33"), (np.ones((2, 64)), {"scheme": "nf3"}, "nf3"), (np.ones((2, 64)), {"scheme": "nf4", "block_size": 48}, "48"),
    (np.ones((2, 64)), {"scheme": "nf4", "block_size": 0}, "block_size"), (np.ones((2, 64)), {"scheme": "q8_0", "double_quant": True}, "double_quant"),
    (np.full((2, 64), np.nan), {"scheme": "nf4"}, "finite"), (np.full((2, 64), np.inf), {"scheme": "fp4"}, "finite"), (np.ones((2, 64), np.int64), {"scheme": "nf4"}, "i64"),
])
def test_what_cannot_be_is_refused(array, options, words):
    with pytest.raises(PeftError, match=words):
        quantize(array.astype(np.float32) if array.dtype == np.float64 else array, **options)


# ---- models

def test_quantise_on_load_and_in_place(base_folder, ids):
    plain = Model.from_pretrained(base_folder, dtype="float32")
    before = plain(input_ids=ids).logits
    loaded = Model.from_pretrained(base_folder, dtype="float32", quantization={"scheme": "nf4", "block_size": 32})
    report = plain.quantize("nf4", block_size=32)
    assert np.array_equal(loaded(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert loaded.describe()["quantization"] == report == plain.describe()["quantization"]
    assert len(report["layers"]) == 14 and "lm_head" not in [layer["name"] for layer in report["layers"]]
    assert report["bytes"] < report["bytes_before"] / 4
    line = report["layers"][0]
    weight = Model.from_pretrained(base_folder, dtype="float32").get_parameter(line["name"] + ".weight")
    error = plain.get_parameter(line["name"] + ".weight") - weight
    assert np.isclose(line["rms"], np.sqrt((error.astype(np.float64) ** 2).mean())) and np.isclose(line["max"], np.abs(error).max())
    assert np.isclose(line["relative"], np.linalg.norm(error) / np.linalg.norm(weight))
    assert 0 < np.abs(plain(input_ids=ids).logits - before).max() < 1.5
    assert plain.describe()["formats"] == {"f32": 7, "nf4": 14}


def test_rules_and_skipped_modules(base_folder):
    report = Model.from_pretrained(base_folder, dtype="float32").quantize(
        "int8", skip=["o_proj"], rules=[{"modules": r"model\.layers\.0\..*", "scheme": None}, {"modules": ["embed_tokens", "down_proj"], "scheme": "q8_0"}])
    schemes = {layer["name"]: layer["scheme"] for layer in report["layers"]}
    assert schemes["model.embed_tokens"] == "q8_0" and schemes["model.layers.1.mlp.down_proj"] == "q8_0" and schemes["model.layers.1.mlp.up_proj"] == "int8"
    assert schemes["lm_head"] == "int8" and not any(name.startswith("model.layers.0.") or name.endswith("o_proj") for name in schemes)


@pytest.mark.parametrize("options, words", [
    ({"scheme": "q4_K"}, "model.layers.0.self_attn.q_proj"), ({"scheme": "nf4", "blocksize": 64}, "blocksize"), ({}, "scheme"), ({"scheme": 4}, "scheme"),
    ({"scheme": "nf4", "skip": 3}, "skip"), ({"scheme": "nf4", "skip": "("}, "regular expression"), ({"rules": [{"scheme": "nf4"}]}, "modules"),
    ({"rules": [{"modules": ["a"], "schem": "nf4"}]}, "schem"), ({"scheme": "nf4", "double_quant": "yes"}, "double_quant"),
])
def test_wrong_options_change_nothing(base_folder, options, words):
    with pytest.raises(PeftError, match=words):
        Model.from_pretrained(base_folder, quantization=options or {"skip": []})
    model = Model.from_pretrained(base_folder)
    with pytest.raises(PeftError, match=words):
        model.quantize(**options)
    assert model.describe()["formats"] == {"f32": 21} and model.describe()["quantization"] is None


def test_in_place_only_without_adapters_and_cancelled(base_folder):
    model = Model.from_pretrained(base_folder)
    with pytest.raises(peftswift.Cancelled):
        model.quantize("int8", progress=lambda done, total: True)
    assert model.describe()["formats"] == {"f32": 21}
    model.add_adapter("default", LORA)
    with pytest.raises(PeftError, match="adapters"):
        model.quantize("int8")
    model.delete_adapter("default")
    model.quantize("int8", progress=lambda done, total: False)
    assert model.describe()["formats"]["int8"] == 14


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8", "blockwise8", "q8_0", "iq4_nl", "f8_e4m3"])
def test_an_adapter_learns_on_it(base_folder, ids, scheme):
    size = {"block_size": 32} if scheme in ("nf4", "fp4", "blockwise8") else {}
    model = Model.from_pretrained(base_folder, dtype="float32", quantization={"scheme": scheme, **size})
    model.add_adapter("default", {**LORA, "target_modules": "all-linear"})
    trainer = model.trainer(lr=1e-2, lr_scheduler="constant")
    losses = [trainer.step(input_ids=ids, labels=ids) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    state = model.adapter_state_dict()
    report = model.merge_adapter(dtype="f32")
    assert report["kept"] > 0.99
    model.unmerge_adapter()
    again = Model.from_pretrained(base_folder, dtype="float32", quantization={"scheme": scheme, **size})
    again.add_adapter("default", {**LORA, "target_modules": "all-linear"})
    again.load_adapter_state_dict("default", state)
    assert np.array_equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


# ---- folders of bitsandbytes

@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_bitsandbytes(kind, tmp_path):
    model, expected = Model.from_pretrained(FOLDERS / kind, dtype="float32"), np.load(FOLDERS / kind / "expected.npz")
    assert model.describe()["load_report"]["unused"] == []
    for name in expected.files:
        if name.endswith(".weight"):
            assert np.array_equal(model.get_parameter(name), expected[name]), name
    logits = model(input_ids=expected["ids"]).logits
    # (bitsandbytes multiplies in bf16, and rounds activations of LLM.int8 to 8 bits)
    assert np.abs(logits - expected["logits"]).max() < (0.05 if kind == "int8" else 0.02) * np.abs(expected["logits"]).max()
    model.export(tmp_path / "again")
    before, after = tensors(FOLDERS / kind), tensors(tmp_path / "again")
    assert sorted(before) == sorted(after)
    assert all(np.array_equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    config = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert config["load_in_8bit" if kind == "int8" else "load_in_4bit"] and config["llm_int8_skip_modules"] == ["lm_head"]
    again = Model.from_pretrained(tmp_path / "again", dtype="float32")
    assert np.array_equal(again(input_ids=expected["ids"]).logits, logits)
    model.export(tmp_path / "plain", dtype="float32")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert np.array_equal(Model.from_pretrained(tmp_path / "plain", dtype="float32")(input_ids=expected["ids"]).logits, logits)


def test_a_folder_has_one_of_them(base_folder, tmp_path):
    model = Model.from_pretrained(base_folder, quantization={"scheme": "int8", "rules": [{"modules": ["q_proj"], "scheme": "nf4"}]})
    with pytest.raises(PeftError, match="int8 and nf4"):
        model.export(tmp_path / "both")
    assert not (tmp_path / "both").exists()


WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def cut(name, change):
    def damage(arrays):
        arrays[name] = change(arrays[name])
    return damage


def state(**changes):
    def damage(arrays):
        key = WEIGHT + ".quant_state.bitsandbytes__nf4"
        text = arrays[key].tobytes().decode() if isinstance(changes.get("text"), type(None)) else changes["text"]
        if "text" not in changes:
            text = json.dumps({**json.loads(text), **changes})
        arrays[key] = np.frombuffer(text.encode(), np.uint8)
    return damage


@pytest.mark.parametrize("damage, words", [
    (lambda a: a.pop(WEIGHT + ".absmax"), "absmax"), (lambda a: a.pop(WEIGHT + ".quant_map"), "quant_map"), (lambda a: a.pop(WEIGHT), WEIGHT),
    (cut(WEIGHT, lambda x: x[:-1]), "codes"), (cut(WEIGHT + ".absmax", lambda x: x[1:]), "scales"), (cut(WEIGHT + ".absmax", lambda x: x * np.float32(np.nan)), "finite"),
    (cut(WEIGHT + ".absmax", lambda x: x.astype(np.int32)), "scales"), (cut(WEIGHT + ".quant_map", lambda x: x * 2), "table"),
    (state(blocksize=32), "scales"), (state(blocksize=63), "63"), (state(blocksize=-64), "-64"), (state(shape=[64, 128]), "codes"), (state(shape=[-64, -64]), "shape"),
    (state(shape=[2**40, 2**40]), "63"), (state(shape=None), "shape"), (state(text="[]"), "object"), (state(text="{"), "JSON"), (state(shape=[32, 128]), "shape"),
])
def test_damaged_folders_are_refused(damage, words, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(FOLDERS / "nf4", folder)
    arrays = tensors(folder)
    damage(arrays)
    save(folder, arrays)
    with pytest.raises(PeftError, match=words):
        Model.from_pretrained(folder)


@pytest.mark.parametrize("damage, words", [
    (cut("model.layers.0.mlp.up_proj.SCB", lambda x: x[1:]), "scales"), (cut("model.layers.0.mlp.up_proj.SCB", lambda x: x * np.float32(np.inf)), "finite"),
    (cut("model.layers.0.mlp.up_proj.weight_format", lambda x: np.array(1, np.uint8)), "layout"), (lambda a: a.pop("model.layers.0.mlp.up_proj.SCB"), "i8"),
])
def test_damaged_eight_bits_are_refused(damage, words, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(FOLDERS / "int8", folder)
    arrays = tensors(folder)
    damage(arrays)
    save(folder, arrays)
    with pytest.raises(PeftError, match=words):
        Model.from_pretrained(folder)


def test_other_libraries_are_named(tmp_path):
    shutil.copytree(FOLDERS / "nf4", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "hqq"
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PeftError, match="hqq"):
        Model.from_pretrained(tmp_path / "other")


def test_transformers_opens_what_is_exported(base_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    source = FOLDERS / "nf4"
    model = Model.from_pretrained(source, dtype="float32")
    for scheme, options in (("fp4", {"block_size": 32, "double_quant": True}), ("nf4", {}), ("int8", {})):
        model.quantize(scheme, **options)
        model.export(tmp_path / scheme)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / scheme)
        ids = np.array([[1, 5, 9, 30]])
        with torch.no_grad():
            logits = theirs(torch.tensor(ids)).logits.float().numpy()
        ours = model(input_ids=ids).logits
        assert np.abs(ours - logits).max() < (0.05 if scheme == "int8" else 0.03) * np.abs(logits).max()


def test_the_cpu_of_bitsandbytes_is_an_option(ids):
    base = GOLDEN / "bases" / "llama"
    errors = [Model.from_pretrained(base, quantization={"scheme": "nf4"}, bitsandbytes_cpu=cpu).describe()["quantization"]["layers"][0]["relative"] for cpu in (False, True)]
    assert errors[0] < 0.1 < errors[1]


@pytest.mark.parametrize("options", [{"block_size": 256}, {"rules": [{"modules": ["q_proj"], "scheme": "nf4", "block_size": 256}]}])
def test_large_blocks_keep_their_scales(options):
    """Rows shorter than a block are common there: by default each block has its own scale."""
    quantization = {"scheme": "nf4", **options}
    default, exact, cpu = (Model.from_pretrained(GOLDEN / "bases" / "llama", quantization=quantization, **more).describe()["quantization"]["layers"][0]["relative"]
                           for more in ({}, {"bitsandbytes_cpu": False}, {"bitsandbytes_cpu": True}))
    assert default == exact < cpu


# ---- LLM.int8: activations of eight bits beside outlier columns

def llm_int8(x, codes, scales, threshold):
    """bitsandbytes' formula (backends/default/ops.py) in numpy, f32."""
    outliers = np.abs(x) >= threshold
    small = np.where(outliers, 0, x)
    stats = np.abs(small).max(1)
    rounded = np.round(small * (127 / np.where(stats > 0, stats, 1))[:, None].astype(np.float32)).astype(np.int32)
    columns = outliers.any(0)
    rounded[:, columns] = 0
    whole = rounded @ codes.astype(np.int32).T
    y = whole * (stats[:, None].astype(np.float64) * scales[None] / 127**2)
    return y + x[:, columns].astype(np.float64) @ (codes[:, columns] * scales[:, None] / 127).T


@pytest.mark.parametrize("rows, inputs, outputs", [(1, 64, 48), (7, 33, 5), (40, 130, 65), (3, 1, 1)])
@pytest.mark.parametrize("threshold", [6.0, 1.0, 1e9])
def test_outlier_columns(rows, inputs, outputs, threshold):
    weight, bias = RNG.normal(size=(outputs, inputs)).astype(np.float32), RNG.normal(size=outputs).astype(np.float32)
    x = RNG.normal(size=(rows, inputs)).astype(np.float32)
    x[:, :: 7] *= 12
    graph = {"model_type": "graph", "layers": [{"name": "up", "kind": "Linear"}]}
    parts = quantize(weight, "int8")
    want = llm_int8(x, parts.data, parts.absmax, np.float32(threshold)) + bias
    for level in LEVELS:
        results = []
        for threads in (1, 3):
            context = peftswift.Context(threads=threads, level=level)
            model = Model.from_arrays(graph, {"up.weight": weight, "up.bias": bias}, context=context)
            model.quantize("int8", llm_int8_threshold=threshold)
            assert model.describe()["quantization"]["layers"][0]["llm_int8_threshold"] == threshold
            results.append(np.array(model.layer("up")(x)))
        assert np.array_equal(*results), level
        assert np.allclose(results[0], want, rtol=1e-5, atol=1e-5 * np.abs(want).max()), level
    exact = x @ parts.dequantize().T + bias
    assert inputs == 1 or 1e-4 < np.abs(results[0] - exact).max() / np.abs(exact).max() < 0.05 or threshold == 1.0
    # Backwards the weights count as they are: dX = dY·W, as MatMul8bitLt has it.
    model.add_adapter("default", {"peft_type": "LORA", "r": 2, "target_modules": ["up"]})
    y, step = model.layer("up").forward(x, model.trainer(lr=0.1))
    assert np.array_equal(y, results[0])
    dy = RNG.normal(size=y.shape).astype(np.float32)
    assert np.allclose(step.backward(dy), dy @ parts.dequantize(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["one", "many"])
def test_outlier_columns_of_bitsandbytes(name):
    """fixtures_bitsandbytes/make_llm_int8.py: its own functions, forwards and backwards (which round to f16 on the way)."""
    given = np.load(FOLDERS / "llm_int8.npz")
    weight, bias, x, dy = (given[f"{name}.{key}"] for key in ("weight", "bias", "x", "dy"))
    model = Model.from_arrays({"model_type": "graph", "layers": [{"name": "up", "kind": "Linear"}]}, {"up.weight": weight, "up.bias": bias})
    for threshold in (6, 2):
        model.quantize("int8", llm_int8_threshold=threshold)
        want = given[f"{name}.{threshold}.y"]
        assert np.abs(model.layer("up")(x) - want).max() < 2e-4 * np.abs(want).max(), threshold
    model.add_adapter("default", {"peft_type": "LORA", "r": 2, "target_modules": ["up"]})
    _, step = model.layer("up").forward(x, model.trainer(lr=0.1))
    want = given[f"{name}.dx"]
    assert np.abs(step.backward(dy) - want).max() < 2e-3 * np.abs(want).max()


def test_a_folder_of_eight_bits_with_a_threshold(tmp_path):
    """The codes stay as the folder has them, and go into the next one; sessions see the same products."""
    ids = np.load(FOLDERS / "int8" / "expected.npz")["ids"]
    model = Model.from_pretrained(FOLDERS / "int8", dtype="float32", quantization={"scheme": "int8", "llm_int8_threshold": 4.0})
    assert all(layer["rms"] == 0 and layer["llm_int8_threshold"] == 4 for layer in model.describe()["quantization"]["layers"])
    logits = model(input_ids=ids).logits
    plain = Model.from_pretrained(FOLDERS / "int8", dtype="float32")(input_ids=ids).logits
    assert 0 < np.abs(logits - plain).max() < 0.03 * np.abs(plain).max()
    session = model.session(context_length=16).append(ids[0])
    assert np.abs(session.logits() - logits[0, -1]).max() < 1e-4 * np.abs(logits).max()
    model.export(tmp_path / "again")
    again = tensors(tmp_path / "again")
    assert all(np.array_equal(array, again[name]) for name, array in tensors(FOLDERS / "int8").items())
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]["llm_int8_threshold"] == 4


@pytest.mark.parametrize("options, words", [
    ({"scheme": "int8", "llm_int8_threshold": -1}, "-1"), ({"scheme": "int8", "llm_int8_threshold": "six"}, "llm_int8_threshold"), ({"scheme": "nf4", "llm_int8_threshold": 6}, "nf4"),
    ({"scheme": "int8", "llm_int8_threshold": 6, "block_size": 64}, "block_size"),
])
def test_thresholds_that_cannot_be(base_folder, options, words):
    with pytest.raises((PeftError, ValueError), match=words):
        Model.from_pretrained(base_folder).quantize(**options)


def test_nan_stays_visible():
    model = Model.from_arrays({"model_type": "graph", "layers": [{"name": "up", "kind": "Linear"}]}, {"up.weight": np.ones((4, 32), np.float32)})
    model.quantize("int8", llm_int8_threshold=6.0)
    x = np.ones((3, 32), np.float32)
    x[1, 5] = np.nan
    assert np.isnan(model.layer("up")(x)).all(1).tolist() == [False, True, False]


# ---- what outputs lose, and memory

@pytest.mark.parametrize("scheme, most", [("q8_0", 0.02), ("nf4", 0.3), ("int8", 0.03)])
def test_output_errors_on_a_text(talking, scheme, most):
    """Against products in numpy of what a graph of the same layer sees."""
    text = "the smith of the village makes a hammer of iron " * 4
    report = talking.quantize(scheme, calibration_text=text, **({"block_size": 32} if scheme == "nf4" else {}))
    assert len(report["layers"]) == 14 and all(0 < layer["output"] < most for layer in report["layers"])
    assert np.corrcoef([layer["output"] for layer in report["layers"]], [layer["relative"] for layer in report["layers"]])[0, 1] > -1


def test_the_output_error_of_the_first_layer(base_folder, talking):
    """q_proj of layer 0 sees the normed embedding: computed here in numpy."""
    text = "the smith of the village makes a hammer of iron"
    ids = np.array(talking.tokenizer.encode(text))
    state = {name: np.array(value, np.float64) for name, value in talking.state_dict().items() if "layers.1" not in name}
    x = state["model.embed_tokens.weight"][ids]
    x = x / np.sqrt((x**2).mean(1, keepdims=True) + talking.config["rms_norm_eps"]) * state["model.layers.0.input_layernorm.weight"]
    before = state["model.layers.0.self_attn.q_proj.weight"]
    line = talking.quantize("q4_0", calibration_text=text)["layers"][0]
    after = np.array(talking.get_parameter("model.layers.0.self_attn.q_proj.weight"), np.float64)
    assert line["name"].endswith("layers.0.self_attn.q_proj")
    assert np.isclose(line["output"], np.linalg.norm(x @ (after - before).T) / np.linalg.norm(x @ before.T), rtol=1e-3)


def test_calibration_texts_that_cannot_be(base_folder, talking):
    with pytest.raises(PeftError, match="calibration_text"):
        Model.from_pretrained(base_folder, quantization={"scheme": "int8", "calibration_text": "abc"})
    for text in ("", "a"):
        with pytest.raises((PeftError, ValueError), match="calibration_text"):
            talking.quantize("int8", calibration_text=text)
    with pytest.raises((PeftError, ValueError), match="calibration_text"):
        talking.quantize("int8", calibration_text=3)
    assert talking.describe()["quantization"] is None


def test_one_layer_at_a_time():
    """Quantising needs room for one new layer and what is decoded of one, not for all new weights beside all old ones."""
    size, count = 512, 12
    layers = [{"name": f"l{i}", "kind": "Linear"} for i in range(count)]
    weights = {f"l{i}.weight": (RNG.normal(size=(size, size)) / size**0.5).astype(np.float32) for i in range(count)}
    held, one = 2 * size * size * count, 4 * size * size
    context = peftswift.Context(threads=1, memory_budget=held + 3 * one + one // 2)
    model = Model.from_arrays({"model_type": "graph", "layers": layers}, weights, context=context)
    model.quantize("bf16")  # from here on the weights are the context's own
    context.trim()
    assert context.memory()["categories"]["weights"]["live"] == held
    model.quantize("q8_0")
    memory = context.memory()["categories"]["weights"]
    assert memory["live"] < 1.1 * size * size // 32 * 34 * count and memory["peak"] < held + one


def test_cancelled_between_layers_goes_on(base_folder, ids):
    model, whole = Model.from_pretrained(base_folder, dtype="float32"), Model.from_pretrained(base_folder, dtype="float32", quantization={"scheme": "q8_0"})
    with pytest.raises(peftswift.Cancelled, match="14"):
        model.quantize("q8_0", progress=lambda done, total: done > total / 2)
    formats = model.describe()["formats"]
    assert 0 < formats["q8_0"] < 14 and model.describe()["quantization"] is None
    assert np.isfinite(model(input_ids=ids).logits).all()
    model.quantize("q8_0")
    assert np.array_equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
