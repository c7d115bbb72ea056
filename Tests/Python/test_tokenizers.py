"""Text and ids through the binding (identity with HF tokenizers is TokenizersTests' and test_real_model's affair)."""

import numpy as np
import pytest

from peftswift import PeftError, Tokenizer


def test_round_trip(talking):
    tokenizer = talking.tokenizer
    ids = tokenizer.encode("Hello, world!")
    assert ids == [ord(c) - 32 for c in "Hello, world!"] and tokenizer.decode(ids) == "Hello, world!"
    assert tokenizer.decode(np.array(ids)) == "Hello, world!" and tokenizer("ab")["input_ids"] == [65, 66]
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.vocabulary_size == 96 and tokenizer.eos_token_id == 95
    assert tokenizer.encode("a<|end|>b") == [65, 95, 66]
    assert tokenizer.decode([65, 95, 66], skip_special_tokens=True) == "ab"


def test_from_files(talking_folder):
    for path in (talking_folder, talking_folder / "tokenizer.json", str(talking_folder)):
        assert Tokenizer.from_pretrained(path).encode("x") == [88]


def test_chat(talking):
    tokenizer, messages = talking.tokenizer, [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages) == "u:hi<|end|>"
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True) == "u:hi<|end|>a:"
    assert tokenizer.apply_chat_template(messages, tokenize=True)[-1] == 95
    assert tokenizer.apply_chat_template(messages, chat_template="{{ messages[0].content }}{{ mood }}", mood="!") == "hi!"
    with pytest.raises(PeftError, match="macro|nosuch"):
        tokenizer.apply_chat_template(messages, chat_template="{% macro f() %}{% endmacro %}{{ nosuch(1) }}")
    with pytest.raises(PeftError):
        tokenizer.apply_chat_template("not messages")


@pytest.mark.parametrize("ids", [[96], [-1], [2**31 - 1]])
def test_ids_out_of_range(talking, ids):
    with pytest.raises(PeftError, match=str(ids[0])):
        talking.tokenizer.decode(ids)


@pytest.mark.parametrize("ids", [[2**31], [2**64], [1.5], [[1]], ["a"]])
def test_not_ids(talking, ids):
    with pytest.raises(ValueError):
        talking.tokenizer.decode(ids)


def test_strange_text(talking):
    tokenizer = talking.tokenizer
    assert len(tokenizer.encode("a\0b")) == 3
    assert tokenizer.encode("lone \ud800 surrogate")[:5] == tokenizer.encode("lone ")
    assert len(tokenizer.encode("x" * 1_000_000)) == 1_000_000
    with pytest.raises(AttributeError):
        tokenizer.colour
    with pytest.raises(AttributeError):
        tokenizer.encode(7)
