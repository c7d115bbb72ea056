"""Architectures that the conformance kit has no base for, against transformers' numbers (Tests/Fixtures/Models)."""

import json
from pathlib import Path

import numpy as np
import pytest

import peftswift
from conftest import GOLDEN, ROOT

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
        if want.ndim == 3 and want.shape[1] == inputs.get("input_ids", want[..., 0]).shape[1]:
            got, want = got[inputs["attention_mask"] == 1], want[inputs["attention_mask"] == 1]  # padding is nobody's
        assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max(), key
    if "generated" in expected:
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
