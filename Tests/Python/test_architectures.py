"""Architectures that the conformance kit has no base for, against transformers' numbers (Tests/Fixtures/Models)."""

import json
from pathlib import Path

import numpy as np
import pytest

import peftswift
from conftest import GOLDEN, ROOT, character_tokenizer

FIXTURES = ROOT / "Tests" / "Fixtures" / "Models"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))


def arrays(path):
    """A safetensors file of i64 and f32."""
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    types = {"I64": np.int64, "F32": np.float32}
    return {name: np.frombuffer(data[8 + size:][slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize("name", NAMES)
def test_same_numbers(name):
    model = peftswift.Model.from_pretrained(FIXTURES / name, dtype="float32")
    inputs, expected = arrays(FIXTURES / name / "inputs.safetensors"), arrays(FIXTURES / name / "expected.safetensors")
    assert model.describe()["load_report"]["unused"] == []
    out = model(**inputs)
    for key, want in expected.items():
        if key == "generated":
            continue
        got = np.asarray(getattr(out, key), dtype=np.float64)
        assert got.shape == want.shape, key
        if "attention_mask" in inputs and want.ndim == 3 and want.shape[1] == inputs.get("input_ids", want[..., 0]).shape[1]:
            got, want = got[inputs["attention_mask"] == 1], want[inputs["attention_mask"] == 1]  # padding is nobody's
        assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max(), key
    if "input_features" in inputs:
        session = model.session(ignore_eos=True).read_source(input_features=inputs["input_features"][:1])
        list(session.tokens(12))
        assert session.token_ids() == expected["generated"][0].tolist()
    elif "generated" in expected:
        prompt = inputs["input_ids"][:1, :expected["generated"].shape[1] - 12]
        assert model.generate(prompt, max_new_tokens=12, eos_token_id=None).tolist() == expected["generated"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss(name):
    """LoRA on everything linear: gradients go through every block."""
    model = peftswift.Model.from_pretrained(FIXTURES / name, dtype="float32")
    inputs = arrays(FIXTURES / name / "inputs.safetensors")
    if not {"labels", "start_positions"} & set(inputs):
        pytest.skip("a model without a head")
    model.add_adapter("default", {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"})
    _, gradients = model.loss_and_gradients(**inputs)
    assert all(np.abs(g).max() > 0 for key, g in gradients.items() if "lora_B" in key)
    trainer = model.trainer(lr=1e-2, gradient_checkpointing=True)
    losses = [trainer.step(**inputs) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]


def test_encoder_decoder_inputs():
    model = peftswift.Model.from_pretrained(GOLDEN / "bases" / "t5", dtype="float32")
    ids, labels = np.array([[5, 6, 7, 8]]), np.array([[9, 10, 11]])
    shifted = model(input_ids=ids, labels=labels)
    given = model(input_ids=ids, decoder_input_ids=np.array([[0, 9, 10]]), labels=labels)
    assert shifted.loss == given.loss and np.array_equal(shifted.logits, given.logits)
    with pytest.raises(ValueError, match="labels"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(input_ids=ids, decoder_attention_mask=np.ones((1, 3), dtype=np.int64), labels=labels)
    with pytest.raises(ValueError, match="2 rows"):
        model(input_ids=ids, decoder_input_ids=np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="position_ids"):
        model(input_ids=ids, position_ids=ids, labels=labels)
    with pytest.raises(ValueError, match="reads no source|has no"):
        peftswift.Model.from_pretrained(GOLDEN / "bases" / "llama")(input_ids=ids, decoder_input_ids=ids)


LINES = [{"prompt": "how are you", "completion": "very well"}, {"prompt": "yes?", "completion": "no, not at all"}, {"prompt": "a", "completion": "b"}]


def test_encoder_decoder_data_sets(tmp_path):
    """Batches are what the host would hand in, and runs learn from them."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(character_tokenizer()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "<|end|>"}))
    tokenizer = peftswift.Tokenizer.from_pretrained(tmp_path)
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    options = dict(format="jsonl", encoder_decoder=True, batch_size=2, shuffle=False, max_length=12)
    first, second = list(peftswift.Dataset.from_text(tokenizer, text, **options))
    want = [tokenizer.encode(line["prompt"], False) + [95] for line in LINES]
    assert first["input_ids"].tolist() == [want[0], want[1] + [95] * (len(want[0]) - len(want[1]))]
    assert first["attention_mask"].sum(1).tolist() == [len(want[0]), len(want[1])]
    answer = tokenizer.encode(LINES[0]["completion"], False) + [95]
    assert first["labels"][0].tolist() == answer + [-100] * (12 - len(answer)) and first["labels"].shape == (2, 12)  # cut at max_length
    assert second["labels"].tolist() == [tokenizer.encode("b", False) + [95]]

    model = peftswift.Model.from_pretrained(GOLDEN / "bases" / "t5", dtype="float32")
    model.add_adapter("default", {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"})
    handed, own = [], peftswift.Dataset.from_text(tokenizer, text, **options)
    for batch in peftswift.Dataset.from_text(tokenizer, text, **options):
        handed.append(model(**batch).loss * (batch["labels"] >= 0).sum())
    trainer = model.trainer(lr=1e-2, epochs=20)
    before = trainer.evaluate(own)
    assert abs(before - sum(handed) / (12 + len(answer) + 2)) < 1e-5
    trainer.run(own, progress=False)
    assert trainer.evaluate(own) < 0.7 * before
    with pytest.raises(ValueError, match="packing"):
        peftswift.Dataset.from_text(tokenizer, text, **options, packing=True)
    with pytest.raises(peftswift.PeftError, match="prompt"):
        list(peftswift.Dataset.from_text(tokenizer, '{"text": "abc"}\n', **options))
    with pytest.raises(ValueError, match="reads no source"):
        other = peftswift.Model.from_pretrained(GOLDEN / "bases" / "llama", dtype="float32")
        other.add_adapter("default", {"peft_type": "LORA", "target_modules": ["q_proj"]})
        other.trainer(max_steps=1).run(peftswift.Dataset.from_text(tokenizer, text, **options), progress=False)


@pytest.mark.parametrize("recomputes", [False, True])
def test_distances_of_t5_train(recomputes):
    """The gradient of the tables of relative positions is what small changes of them do to the loss."""
    model = peftswift.Model.from_pretrained(FIXTURES / "t5_seqcls", dtype="float32")
    inputs = arrays(FIXTURES / "t5_seqcls" / "inputs.safetensors")
    model.add_adapter("default", {"peft_type": "LORA", "r": 2, "target_modules": ["q"], "modules_to_save": ["relative_attention_bias"]})
    _, gradients = model.loss_and_gradients(**inputs)
    tables = [key for key in gradients if "relative_attention_bias" in key]
    assert len(tables) == 2
    state = model.adapter_state_dict("default")
    for key in tables:
        for place in [(0, 0), (1, 2), (3, 1), (5, 3)]:
            losses = []
            for step in (1e-2, -1e-2):
                moved = state[key].copy()
                moved[place] += step
                model.load_adapter_state_dict("default", {key: moved})
                losses.append(model(**inputs).loss)
            model.load_adapter_state_dict("default", {key: state[key]})
            numeric, exact = (losses[0] - losses[1]) / 2e-2, gradients[key][place]
            assert abs(numeric - exact) < 2e-3 + 0.03 * abs(exact), (key, place)
    trainer = model.trainer(lr=1e-2, gradient_checkpointing=recomputes)
    losses = [trainer.step(**inputs) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.abs(model.adapter_state_dict("default")[key] - state[key]).max() > 1e-3 for key in tables)


def test_encoder_decoder_sessions():
    """The source is read once; the decoder can be rewound, forked and stepped with others."""
    model = peftswift.Model.from_pretrained(GOLDEN / "bases" / "t5_gated", dtype="float32")
    sources = [np.array([[5, 6, 7, 8]]), np.array([[30, 2, 71]])]
    want = [model.generate(ids, max_new_tokens=6, eos_token_id=None)[0].tolist() for ids in sources]
    sessions = [model.session(ignore_eos=True).append(ids[0].tolist()) for ids in sources]
    for _ in range(6):
        peftswift.Session.step(sessions)
    assert [session.token_ids() for session in sessions] == want
    fork = sessions[0].fork()
    fork.rewind(3)
    assert fork.token_ids() == want[0][:3]
    assert want[0][3:] == list(fork.tokens(4))
    fork.rewind(0)
    fork.append(sources[1][0].tolist())
    assert want[1][1:] == list(fork.tokens(6))
    with pytest.raises(ValueError, match="token id 500"):
        model.session().append([500])


@pytest.mark.parametrize("name, key, value, word", [
    ("t5_seqcls", "relative_attention_num_buckets", 6, "buckets"), ("t5_seqcls", "relative_attention_max_distance", 2, "buckets"),
    ("t5_seqcls", "num_heads", 0, "num_heads"), ("t5_seqcls", "d_kv", 7, "SelfAttention.q.weight"), ("t5_seqcls", "num_decoder_layers", 3, "decoder.block.2"),
    ("t5_seqcls", "feed_forward_proj", "gated-mish", "mish"), ("t5_seqcls", "architectures", ["T5ForMaskedLM"], "architectures"),
    ("gemma2", "layer_types", ["full_attention"], "layer_types"), ("gemma2", "layer_types", ["chunked", "chunked"], "layer_types"),
    ("gemma2", "query_pre_attn_scalar", -1, "query_pre_attn_scalar"), ("gemma", "use_bidirectional_attention", True, "use_bidirectional_attention"),
    ("gemma3", "rope_parameters", {"full_attention": 3}, "full_attention"), ("gemma3", "sliding_window", "x", "sliding_window"),
    ("phi3", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 4}, "partial_rotary_factor"),
    ("whisper", "encoder_attention_heads", 5, "heads"), ("whisper", "decoder_layerdrop", 0.1, "decoder_layerdrop"), ("whisper", "max_source_positions", 13, "embed_positions"),
    ("whisper", "activation_function", "mish", "mish"), ("whisper", "architectures", ["WhisperForAudioClassification"], "architectures"),
    ("dinov2", "use_swiglu_ffn", True, "use_swiglu_ffn"), ("dinov2", "image_size", 24, "position_embeddings"), ("dinov2", "mlp_ratio", -1, "mlp_ratio"),
    ("phi3", "num_key_value_heads", 4, "qkv_proj"), ("phi3_long", "rope_parameters", {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}, "short_factor"),
])
def test_bad_configurations(name, key, value, word, tmp_path):
    config = json.loads((FIXTURES / name / "config.json").read_text())
    config[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((FIXTURES / name / "model.safetensors").read_bytes())
    with pytest.raises(peftswift.PeftError, match=word):
        peftswift.Model.from_pretrained(tmp_path)


def test_sessions_do_not_cross_the_border_of_longrope():
    model = peftswift.Model.from_pretrained(FIXTURES / "phi3_long", dtype="float32")
    session = model.session(ignore_eos=True).append([5, 6, 7])
    with pytest.raises(peftswift.PeftError, match="longrope"):
        list(session.tokens(20))
    assert len(session.token_ids()) == 16
