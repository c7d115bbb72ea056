"""SmolLM2-135M-Instruct from its GGUF file against transformers and PEFT (Tests/Fixtures/SmolLM2/reference.json)."""

import json

import numpy as np
import pytest

from conftest import ROOT
from peftswift import Context, Dataset, Model, PeftError, PeftModel, features

REFERENCE = json.loads((ROOT / "Tests/Fixtures/SmolLM2/reference.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def smollm(real_model_path):
    return Model.from_pretrained(real_model_path, dtype="float32")


@pytest.fixture(scope="module", params=range(len(REFERENCE["prompts"])), ids=lambda i: REFERENCE["prompts"][i]["text"][:20])
def prompt(request):
    return REFERENCE["prompts"][request.param]


def test_ids(smollm, prompt):
    tokenizer, text = smollm.tokenizer, prompt["text"]
    if prompt["chat"]:
        text = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    assert tokenizer.encode(text, add_special_tokens=False) == prompt["ids"]


def test_logits(smollm, prompt):
    logits = smollm(input_ids=np.array([prompt["ids"]])).logits[0, -1]
    limit = 2e-4 * prompt["largest"]
    assert np.abs(logits[::192] - np.array(prompt["columns"])).max() < limit
    assert [i for i, _ in prompt["top"]][:3] == np.argsort(-logits)[:3].tolist()
    assert np.abs(logits[[i for i, _ in prompt["top"]]] - np.array([v for _, v in prompt["top"]])).max() < limit


def test_greedy(smollm, prompt):
    out = smollm.generate(np.array([prompt["ids"]]), max_new_tokens=48, eos_token_id=None)
    assert out[0, len(prompt["ids"]):].tolist() == prompt["greedy"]


def test_loss(smollm):
    expected = REFERENCE["loss"]
    ids = np.array([expected["ids"]])
    assert smollm.tokenizer.encode(expected["text"], add_special_tokens=False) == expected["ids"]
    assert smollm(input_ids=ids, labels=ids).loss == pytest.approx(expected["loss"], rel=1e-4)
    half = np.where(np.arange(ids.shape[1]) < ids.shape[1] // 2, -100, ids)
    assert smollm(input_ids=ids, labels=half).loss == pytest.approx(expected["loss_second_half"], rel=1e-4)


def adapter_values(key, shape):
    """As in make_reference.py."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    layer = int(key.split(".layers.")[1].split(".")[0])
    values = 0.02 * np.sin(0.37 * i + layer) if "lora_A" in key else 0.01 * np.cos(0.53 * i)
    return values.astype(np.float32).reshape(shape)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-4), ("bfloat16", 1e-2)])
def test_training_like_peft(real_model_path, dtype, tolerance):
    """The losses of five LoRA steps on the quantised blocks are PEFT's on the dequantised weights."""
    expected = REFERENCE["training"]
    model = Model.from_pretrained(real_model_path, dtype=dtype)
    model.add_adapter("default", expected["config"])
    model.load_adapter_state_dict("default", {k: adapter_values(k, v.shape) for k, v in model.adapter_state_dict().items()})
    trainer = model.trainer(optimizer="adamw", **expected["optimizer"])
    ids = np.array([REFERENCE["loss"]["ids"]])
    for loss, norm in zip(expected["losses"], expected["gradient_norms"]):
        assert trainer.step(input_ids=ids, labels=ids) == pytest.approx(loss, rel=tolerance)
        assert trainer.last_step.gradient_norm == pytest.approx(norm, rel=10 * tolerance)


def test_training_with_int8_activations(real_model_path):
    """Close to bf16's losses on a text of 512 tokens (untrained 0.75 % above them here); not its bits, but the same for any number of threads.
    With AMX bf16 is faster, and taken: bf16's bits."""
    expected, text, runs = REFERENCE["training"], (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), []
    has_amx = "amx" in features()["processor"]["levels"]
    for threads, rounds, level in ((2, False, "avx512_bf16"), (2, True, "avx512_bf16"), (1, True, "avx512_bf16"), (2, False, "amx"), (2, True, "amx"))[: 5 if has_amx else 3]:
        model = Model.from_pretrained(real_model_path, dtype="bfloat16", context=Context(threads=threads, level=level))
        ids = np.array([model.tokenizer.encode(text)[:512]])
        model.add_adapter("default", expected["config"])
        model.load_adapter_state_dict("default", {k: adapter_values(k, v.shape) for k, v in model.adapter_state_dict().items()})
        try:
            trainer = model.trainer(optimizer="adamw", int8_activations=rounds, **expected["optimizer"])
        except PeftError as error:
            pytest.skip(str(error))
        runs.append([trainer.step(input_ids=ids, labels=ids) for _ in range(3)])
    assert runs[1] == runs[2] != runs[0]
    assert runs[1] == pytest.approx(runs[0], rel=2e-2)
    if has_amx:
        assert runs[3] == runs[4] == pytest.approx(runs[0], rel=2e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "auto"])
def test_other_arithmetic_stays_close(smollm, real_model_path, dtype):
    ids = np.array([REFERENCE["loss"]["ids"]])
    model = Model.from_pretrained(real_model_path, dtype=dtype)
    assert model(input_ids=ids, labels=ids).loss == pytest.approx(REFERENCE["loss"]["loss"], rel=1e-2)
    prompt = REFERENCE["prompts"][1]
    out = model.generate(np.array([prompt["ids"]]), max_new_tokens=4, eos_token_id=None)
    assert out[0, len(prompt["ids"]):].tolist()[:1] == prompt["greedy"][:1]


def test_a_character_is_learned_saved_and_reopened(real_model_path, tmp_path):
    """The whole slice: QLoRA on the file's blocks, a PEFT folder, another model object, another answer."""
    question = [{"role": "user", "content": "What is your name?"}]
    conversation = question + [{"role": "assistant", "content": "Brunhild, and this is my forge."}]

    def answer(model):
        return model.session(context_length=128).chat(question, max_new_tokens=12)

    model = Model.from_pretrained(real_model_path)
    before = answer(model)
    model.add_adapter("default", {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"})
    dataset = Dataset.from_messages(model.tokenizer, [conversation], max_length=128)
    model.trainer(lr=1e-3, epochs=25).run(dataset, progress=False)
    model.save_pretrained(tmp_path / "smith")
    again = PeftModel.from_pretrained(Model.from_pretrained(real_model_path), tmp_path / "smith")
    assert answer(again).startswith("Brunhild, and this is my forge") and not before.startswith("Brunhild")
    with again.disable_adapter():
        assert answer(again) == before
