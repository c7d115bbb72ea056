"""Gates of UniPELT, and MAM and UniPELT as adapters that act together: against AdapterHub's `adapters` (scripts/check_with_adapters.py
--fixtures), gradients by differences, and sessions."""

from pathlib import Path

import numpy as np
import pytest

from conftest import GOLDEN, LORA
from peftswift import Model, PeftError, Session, Stack, mam, unipelt

FIXTURES = np.load(Path(__file__).parent / "fixtures_adapters" / "unions.npz")
IDS = FIXTURES["ids"]
TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}
EACH = "unipelt, a gate for each"


def configs(base, name):
    made = mam(prefix_length=3) if name == "mam" else unipelt(prefix_length=3, shared_gating=name != EACH)
    if name == "mam":
        made["prefix"]["prefix_projection"] = False
    else:
        made["lora"]["target_modules"] = TARGETS[base]
    return made


def opened(base, name):
    model = Model.from_pretrained(GOLDEN / "bases" / base, dtype="float32")
    for member, config in configs(base, name).items():
        model.add_adapter(member, config)
        start = f"{base}|{name}|{member}|"
        model.load_adapter_state_dict(member, {key[len(start):]: FIXTURES[key] for key in FIXTURES.files if key.startswith(start)})
    model.set_adapter(Stack(*configs(base, name)))
    return model


def close(ours, theirs):
    return np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("base", ["llama", "bert"])
@pytest.mark.parametrize("name", ["mam", "unipelt", EACH])
def test_unions_are_the_librarys(base, name):
    model, expected = opened(base, name), FIXTURES[f"{base}|{name}"]
    result = model(input_ids=IDS)
    assert close(result.logits if base == "llama" else result.last_hidden_state, expected)
    # Each row by itself, in a batch whose rows differ.
    model.add_adapter("plain", {**LORA, "target_modules": TARGETS[base]})
    model.set_adapter("plain")
    rows = model(input_ids=np.concatenate([IDS, IDS[:1]]), adapter_names=["prefix", "bottleneck", "plain"])
    rows = rows.logits if base == "llama" else rows.last_hidden_state
    for row, member in enumerate(["prefix", "bottleneck"]):
        model.set_adapter(member)
        alone = model(input_ids=IDS[row:row + 1])
        assert np.abs((alone.logits if base == "llama" else alone.last_hidden_state)[0] - rows[row]).max() < 1e-4


@pytest.mark.parametrize("name", ["mam", "unipelt", EACH])
def test_sessions_with_gates_over_calls_are_the_librarys_with_its_cache(name):
    expected = FIXTURES[f"llama|{name}|cached"]
    model = opened("llama", name)
    session = model.session(temperature=0, ignore_eos=True, gates="call").append(IDS[0].tolist())
    other = session.fork()
    for place, logits in enumerate(expected):
        assert close(session.logits(), logits), place
        assert next(session.tokens(1)) == logits.argmax()
    # Two step together, with a session that has none of it.
    plain = model.session(adapters=[], temperature=0, ignore_eos=True).append(IDS[0].tolist())
    for logits in expected:
        assert close(other.logits(), logits)
        assert Session.step([other, plain])[0][0] == logits.argmax()
    # Interrupted by a longer piece: its tokens share a gate.
    pieces = model.session(gates="call").append(IDS[0, :5].tolist()).append(IDS[0, 5:].tolist())
    assert name == "mam" or np.abs(pieces.logits() - expected[0]).max() > 1e-4


@pytest.mark.parametrize("name", ["unipelt", EACH])
def test_sessions_by_themselves_are_the_uncached(name):
    model = opened("llama", name)
    for active in ("prefix", "lora", "bottleneck", Stack("prefix", "bottleneck", "lora")):
        model.set_adapter(active)
        session = model.session(temperature=0, ignore_eos=True).append(IDS[0, :4].tolist()).append(IDS[0, 4:].tolist())
        text = IDS[0].tolist()
        for _ in range(4):
            assert np.abs(session.logits() - model(input_ids=np.array([text])).logits[0, -1]).max() < 1e-4, active
            text.append(next(session.tokens(1)))
        session.rewind(6)
        assert np.abs(session.logits() - model(input_ids=np.array([text[:6]])).logits[0, -1]).max() < 1e-4, active
    both = [model.session(temperature=0).append(IDS[0].tolist()) for _ in range(2)]
    with pytest.raises(PeftError, match="gates"):
        Session.step(both)
    with pytest.raises(PeftError, match="gates"):
        model.session(gates="sometimes")
    model.add_adapter("words", {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "task_type": "CAUSAL_LM"})
    with pytest.raises(PeftError, match="virtual tokens"):
        model.session(adapters=["words", "lora"]).append([1, 2])
    assert model.session(adapters=["words", "lora"], gates="call").append([1, 2]).logits().shape == (96,)


@pytest.mark.parametrize("base", ["llama", "gpt2", "bert_cls"])
@pytest.mark.parametrize("member", ["prefix", "lora"])
def test_derivatives_are_those_of_differences(base, member):
    model, random = Model.from_pretrained(GOLDEN / "bases" / base, dtype="float32"), np.random.default_rng(3)
    config = unipelt(prefix_length=3, shared_gating=False)[member]
    model.add_adapter(member, config)
    state = {key: (value + random.normal(0, 0.3, value.shape)).astype(np.float32) for key, value in model.adapter_state_dict(member).items()}
    model.load_adapter_state_dict(member, state)
    inputs = {"input_ids": IDS, "labels": np.array([0, 1]) if base == "bert_cls" else IDS}
    gradients = model.gradients(**inputs)
    assert any("gate" in key for key in gradients)
    for key, gradient in gradients.items():
        saved = next(name for name in state if key.endswith(name) or name == "prompt_embeddings" and "embedding" in key)
        direction, losses = np.sign(gradient) * random.uniform(0.5, 1, gradient.shape), []
        for sign in (1, -1):
            model.load_adapter_state_dict(member, {saved: (state[saved] + sign * 2e-3 * direction).astype(np.float32)})
            losses.append(model(**inputs).loss)
        model.load_adapter_state_dict(member, {saved: state[saved]})
        exact = (gradient * direction).sum()
        assert abs(exact - (losses[0] - losses[1]) / 4e-3) < 0.01 * abs(exact) + 3e-4, key


def test_a_union_trains_and_is_saved(tmp_path):
    model = Model.from_pretrained(GOLDEN / "bases" / "llama", dtype="float32")
    for member, config in configs("llama", "unipelt").items():
        model.add_adapter(member, config)
    model.set_adapter(Stack("prefix", "bottleneck", "lora"))
    trainer = model.trainer(lr=1e-2)
    losses = [trainer.step(input_ids=IDS, labels=IDS) for _ in range(8)]
    assert losses[-1] < losses[0]
    expected = model(input_ids=IDS).logits
    other = Model.from_pretrained(GOLDEN / "bases" / "llama", dtype="float32")
    for member in ("prefix", "bottleneck", "lora"):
        model.save_pretrained(tmp_path / member, member)
        other.load_adapter(tmp_path / member, member)
    other.set_adapter(["prefix", "bottleneck", "lora"])
    assert np.abs(other(input_ids=IDS).logits - expected).max() == 0
    with pytest.raises(PeftError, match="use_gating"):
        model.merge_adapter(["lora"])


def test_wrong_settings_are_named():
    model = Model.from_pretrained(GOLDEN / "bases" / "llama", dtype="float32")
    with pytest.raises(PeftError, match="use_gating"):
        model.add_adapter("a", {**LORA, "use_gating": True, "use_dora": True})
    with pytest.raises(PeftError, match="use_gating"):
        model.add_adapter("a", {**LORA, "use_gating": "yes"})
    model.add_adapter("a", LORA)
    assert "use_gating" not in model.adapter_config("a")
