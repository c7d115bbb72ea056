"""P-tuning as in its paper (arXiv:2103.10385): prompt tokens anywhere in a text, between words of it that are anchors."""

import numpy as np
import pytest

from conftest import GOLDEN
from peftswift import Model, Session

PLACES = [90, 91, 92]
# "[P0] anchor [P1] word [P2]", and one with all behind each other.
TEXTS = np.array([[90, 7, 91, 20, 92, 5], [3, 90, 91, 92, 8, 9]])


def opened(base="llama", kind="MLP"):
    model = Model.from_pretrained(GOLDEN / "bases" / base, dtype="float32")
    model.add_adapter("p", {"peft_type": "P_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "encoder_hidden_size": 16,
                            "encoder_reparameterization_type": kind, "prompt_token_ids": PLACES})
    return model


@pytest.mark.parametrize("base, kind", [("llama", "MLP"), ("llama", "LSTM"), ("gpt2", "MLP")])
def test_anchors_and_slots_learn_together(base, kind, tmp_path):
    model = opened(base, kind)
    labels = np.where(np.isin(TEXTS, PLACES), -100, TEXTS)
    trainer = model.trainer(lr=1e-2)
    losses = [trainer.step(input_ids=TEXTS, labels=labels) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1
    expected = model(input_ids=TEXTS).logits
    assert expected.shape[1] == TEXTS.shape[1]  # nothing stands in front
    # Texts without places for it are the base model's.
    plain = np.array([[1, 2, 3, 4]])
    with_it = model(input_ids=plain).logits
    model.save_pretrained(tmp_path / "p", "p")
    model.set_adapter([])
    assert np.array_equal(model(input_ids=plain).logits, with_it)
    assert np.abs(model(input_ids=TEXTS).logits - expected).max() > 1e-3
    again = Model.from_pretrained(GOLDEN / "bases" / base, dtype="float32")
    again.load_adapter(tmp_path / "p", "p")
    assert np.abs(again(input_ids=TEXTS).logits - expected).max() < 1e-5


def test_sessions_read_them_where_they_stand():
    model = opened()
    sessions = [model.session(temperature=0, ignore_eos=True).append(text[:3].tolist()).append(text[3:].tolist()) for text in TEXTS]
    rows = [text.tolist() for text in TEXTS]
    for _ in range(4):
        for session, row in zip(sessions, rows):
            assert np.abs(session.logits() - model(input_ids=np.array([row])).logits[0, -1]).max() < 1e-4
        for row, (token, _) in zip(rows, Session.step(sessions)):
            row.append(token)
