"""Refusals: the right exception, the library's own words, nothing changed, the process alive."""

import numpy as np
import pytest

import peftswift
from conftest import LORA
from peftswift import Context, Model, PeftError, PeftValueError, Tokenizer


@pytest.mark.parametrize("config, words", [
    ({"r": 4}, "peft_type"),
    ({**LORA, "peft_type": "NOT_A_METHOD"}, "NOT_A_METHOD"),
    ({**LORA, "r": 0}, "r"),
    ({**LORA, "r": -1}, "r"),
    ({**LORA, "r": "four"}, "r"),
    ({**LORA, "r": 10**30}, "r"),
    ({**LORA, "lora_dropout": 1.5}, "lora_dropout"),
    ({**LORA, "lora_alpha": float("nan")}, "NaN|lora_alpha"),
    ({**LORA, "bias": "some"}, "bias"),
    ({**LORA, "target_modules": ["no_such_layer"]}, "no_such_layer"),
    ({**LORA, "target_modules": "([unclosed"}, "target_modules|pattern|regular"),
    ({**LORA, "target_modules": []}, "target_modules"),
    ({**LORA, "init_lora_weights": "magic"}, "magic|init_lora_weights"),
    ({**LORA, "layers_to_transform": [7]}, "layers_to_transform|q_proj"),
    ({**LORA, "task_type": "JUGGLING"}, "JUGGLING"),
], ids=lambda value: None if isinstance(value, str) else ",".join(k for k, v in value.items() if LORA.get(k) != v) or "no type")
def test_configurations(model, ids, config, words):
    before = model(input_ids=ids).logits
    with pytest.raises(PeftError, match=words) as failure:
        model.add_adapter("default", config)
    assert isinstance(failure.value, ValueError) and len(str(failure.value)) > 15
    assert model.adapter_status()["adapters"] == {} and np.array_equal(model(input_ids=ids).logits, before)


def test_names(model):
    model.add_adapter("default", LORA)
    with pytest.raises(PeftError, match="default"):
        model.add_adapter("default", LORA)
    with pytest.raises(PeftValueError, match="name"):
        model.add_adapter("", LORA)
    with pytest.raises(ValueError, match="NUL"):
        model.add_adapter("a\0b", LORA)
    with pytest.raises(TypeError):
        model.add_adapter(7, LORA)
    with pytest.raises(LookupError, match="ghost"):
        model.adapter_state_dict("ghost")


@pytest.mark.parametrize("inputs, words", [
    (dict(), "input_ids"),
    (dict(input_ids=np.array([[1, 96]])), "96"),
    (dict(input_ids=np.array([[1, -1]])), "-1"),
    (dict(input_ids=np.array([[1, 2**40]])), str(2**40)),
    (dict(input_ids=np.zeros((1, 0), np.int64)), "empty|input_ids"),
    (dict(input_ids=np.zeros((2, 2, 2), np.int64)), "input_ids"),
    (dict(input_ids=np.ones((1, 4), np.float32)), "input_ids"),
    (dict(input_ids=np.ones((1, 4), np.int64), attention_mask=np.ones((1, 5), np.int64)), "attention_mask"),
    (dict(input_ids=np.ones((1, 4), np.int64), labels=np.full((1, 4), 96)), "96"),
    (dict(input_ids=np.ones((1, 4), np.int64), labels=np.full((1, 4), -7)), "-7"),
    (dict(input_ids=np.ones((1, 4), np.int64), labels=np.ones((1, 3), np.int64)), "labels"),
    (dict(input_ids=np.ones((1, 4), np.int64), colour=np.ones(1)), "colour"),
], ids=lambda value: None if isinstance(value, str) else "-".join(value) or "nothing")
def test_inputs(model, ids, inputs, words):
    with pytest.raises(PeftError, match=words):
        model(**inputs)
    with pytest.raises(PeftError):
        model.gradients(**inputs)
    assert np.isfinite(model(input_ids=ids).logits).all()


def test_adapter_names_per_row(trained, ids):
    with pytest.raises(PeftError, match="nobody"):
        trained(input_ids=ids, adapter_names=["default", "nobody"])
    with pytest.raises(PeftError, match="3"):
        trained(input_ids=ids, adapter_names=["default"] * 3)


def test_states(trained):
    state = trained.adapter_state_dict()
    key = next(iter(state))
    for bad, words in (({"no.such.key": state[key]}, "no.such.key"), ({key: state[key][:1]}, "shape|" + str(state[key].shape[0])), ({key: state[key].astype(np.int64)}, key)):
        with pytest.raises(PeftError, match=words):
            trained.load_adapter_state_dict("default", {**state, **bad})
    assert all(np.array_equal(v, state[k]) for k, v in trained.adapter_state_dict().items())


def test_context_options():
    for options in (dict(threads=-1), dict(threads=257), dict(threads=2**40), dict(memory_budget=-1), dict(level="neon")):
        with pytest.raises(ValueError):
            Context(**options)
    with pytest.raises(TypeError):
        Context(threads=1.5)


def test_options_are_named(talking, talking_folder):
    with pytest.raises(ValueError, match="dtype"):
        Model.from_pretrained(talking_folder, dtype="float8")
    talking.add_adapter("default", LORA)
    for bad in (dict(learning_rate=1), dict(lr=-1), dict(lr="fast"), dict(optimizer="adamax"), dict(betas=(0.9, 1.5)), dict(lr_scheduler="zigzag"),
                dict(gradient_accumulation_steps=0), dict(max_grad_norm=-1.0), dict(lr=float("inf")), dict(adapter="ghost")):
        with pytest.raises(PeftError, match=next(iter(bad)) + "|ghost|Infinity"):
            talking.trainer(**bad)
    for bad in (dict(temperature=-1), dict(top_p=0), dict(top_p=2), dict(context_length=0), dict(context_length=10**9), dict(warmth=1), dict(on_full="burst"),
                dict(stop=[1]), dict(top_k=-1), dict(repetition_penalty=0), dict(adapters=["ghost"])):
        with pytest.raises(PeftError, match=next(iter(bad)) + "|ghost"):
            talking.session(**bad)
    for bad in (dict(max_length=1), dict(batch_size=0), dict(format="xml"), dict(shade=1), dict(holdout=1.5), dict(split="north"), dict(loss_on="nobody")):
        with pytest.raises(PeftError, match=next(iter(bad))):
            peftswift.Dataset.from_text(talking.tokenizer, "words", **bad)


def test_closed_handles(talking):
    session, tokenizer = talking.session(), talking.tokenizer
    talking.close()
    talking.close()
    with pytest.raises(PeftError, match="model|handle|freed"):
        talking.describe()
    with pytest.raises(PeftError):
        talking.session()
    session.append("still here")  # what a child needs of its parent lives on
    assert tokenizer.decode(tokenizer.encode("as am I")) == "as am I"
    with session:
        pass
    with pytest.raises(PeftError):
        session.append("gone")


def test_wrong_kinds(talking):
    from peftswift._library import call

    for handle in (None, talking.tokenizer, talking.context, 12345, 2**63):
        with pytest.raises(PeftError) as failure:
            call("peft_model_unmerge", handle)
        assert failure.value.code == -2


def test_no_training_without_an_adapter(model, ids):
    with pytest.raises(PeftError, match="adapter"):
        model.trainer(lr=1e-3)
    with pytest.raises(PeftError, match="adapter|trainable"):
        model.gradients(input_ids=ids, labels=ids)


def test_frozen_adapters_are_not_trained(model, ids, adapter_folder):
    model.load_adapter(adapter_folder)
    model.set_adapter("default")
    with pytest.raises(PeftError, match="train"):
        model.trainer(lr=1e-3)


def test_budget(base_folder, talking_folder):
    with pytest.raises(MemoryError, match="budget"):
        model = Model.from_pretrained(talking_folder, dtype="float32", memory_budget=200_000)
        model.add_adapter("default", LORA)
        model.trainer(lr=1e-3).step(input_ids=np.ones((4, 64), np.int64), labels=np.ones((4, 64), np.int64))
    model = Model.from_pretrained(base_folder, dtype="float32", memory_budget=1)
    with pytest.raises(MemoryError) as failure:
        model(input_ids=np.ones((4, 64), np.int64))
    assert failure.value.detail > 0


def test_paths(tmp_path, model, trained):
    for path in (tmp_path / "nowhere", tmp_path, "/dev/null", "", "a\0b"):
        with pytest.raises(ValueError if path in ("", "a\0b") else (PeftError, OSError)):
            Model.from_pretrained(path)
        with pytest.raises((PeftError, ValueError)):
            model.load_adapter(path)
        with pytest.raises((PeftError, ValueError)):
            Tokenizer.from_pretrained(path)
    with pytest.raises((PeftError, ValueError)):
        trained.save_pretrained("/proc/no/such/place")
    (tmp_path / "file").write_text("here first")
    with pytest.raises(PeftError):
        trained.save_pretrained(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "here first"
    with pytest.raises(TypeError):
        Model.from_pretrained(None)
