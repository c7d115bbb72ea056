"""Adapters that act from their invocation tokens on: in passes, packed rows, sessions, and sessions that step together."""

import numpy as np
import pytest

from conftest import LORA, stir
from peftswift import PeftError

INVOCATION = [11, 12]
TEXT = [5, 11, 12, 7, 11, 12, 40, 41, 9]


@pytest.fixture
def activated(model):
    model.add_adapter("a", {**LORA, "alora_invocation_tokens": INVOCATION})
    stir(model, "a")
    model.add_adapter("plain", LORA)
    model.load_adapter_state_dict("plain", model.adapter_state_dict("a"))
    model.set_adapter("a")
    return model


def logits(model, text, **more):
    return model(input_ids=np.array([text]), **more).logits[0]


def test_before_is_the_base_and_behind_is_not(activated):
    ours = logits(activated, TEXT)
    assert np.allclose(ours[:4], logits(activated, TEXT, adapter_names=["__base__"])[:4], atol=1e-5)
    assert np.abs(ours[4:] - logits(activated, TEXT, adapter_names=["__base__"])[4:]).max(-1).min() > 1e-3
    without = [5, 11, 13, 12, 7]
    assert np.allclose(logits(activated, without), logits(activated, without, adapter_names=["__base__"]), atol=1e-5)
    # From the first token on it is plain LoRA.
    first = INVOCATION + [7, 8]
    assert np.allclose(logits(activated, first), logits(activated, first, adapter_names=["plain"]), atol=1e-5)


def test_rows_have_places_of_their_own(activated):
    rows = np.array([TEXT, TEXT[::-1], INVOCATION + TEXT[2:]])
    together = activated(input_ids=rows).logits
    for row, got in zip(rows, together):
        assert np.allclose(got, logits(activated, row.tolist()), atol=1e-5)
    mixed = activated(input_ids=rows, adapter_names=["a", "plain", "__base__"]).logits
    assert np.allclose(mixed[0], together[0], atol=1e-5)
    assert np.allclose(mixed[1], logits(activated, rows[1].tolist(), adapter_names=["plain"]), atol=1e-5)


@pytest.mark.parametrize("cut", [1, 4, 5, 8])
def test_sessions(activated, cut):
    """What was read before the tokens came stays the base's, whatever was read in one go."""
    session = activated.session(temperature=0)
    session.append(TEXT[:cut])
    session.append(TEXT[cut:])
    if cut <= 4:  # (behind a first invocation, which is the last one yet, reading piece by piece has acted already)
        whole = activated.session(temperature=0)
        whole.append(TEXT)
        if cut == 1:
            assert np.allclose(session.logits(), whole.logits(), atol=1e-4)
            assert np.allclose(whole.logits(), logits(activated, TEXT)[-1], atol=1e-4)
    first = next(session.tokens(1))
    assert 0 <= first < 96


def test_generation_goes_on_with_it(activated):
    """A generated token is adapted when the invocation is behind it: as if all had been read at once."""
    out = activated.generate([TEXT], max_new_tokens=6, eos_token_id=None)[0].tolist()
    text = list(TEXT)
    for token in out[len(TEXT):]:
        assert token == int(logits(activated, text)[-1].argmax())
        text.append(token)


def test_merging_and_wrong_settings(activated):
    with pytest.raises(PeftError, match="alora_invocation_tokens"):
        activated.merge_adapter()
    for tokens in ("hello", [1.5], [-1], ["a"]):
        with pytest.raises(PeftError, match="alora_invocation_tokens"):
            activated.add_adapter("b", {**LORA, "alora_invocation_tokens": tokens})
    with pytest.raises(PeftError, match="lm_head"):
        activated.add_adapter("b", {**LORA, "target_modules": ["lm_head"], "alora_invocation_tokens": INVOCATION})


def test_the_cache_from_before_is_kept(activated):
    """A conversation of the base model's: the adapter is chosen in the middle, and reads its invocation and what follows, nothing else."""
    session = activated.session(adapters=[], temperature=0)
    session.append(TEXT[:4])
    base = session.fork()
    session.set_adapters(["a"])
    session.append(TEXT[4:])
    assert np.abs(session.logits() - logits(activated, TEXT)[-1]).max() < 1e-4
    # What was read before is not read again, and is no other than the base model's: without the adapter it goes on as if nothing had been.
    session.set_adapters([])
    session.rewind(4)
    assert np.array_equal(session.append(TEXT[4:]).logits(), base.append(TEXT[4:]).logits())
    assert np.abs(session.logits() - logits(activated, TEXT)[-1]).max() > 1e-3
