"""Conversations: pull and push, stop, sampling, adapters, forks, full contexts, cancelling."""

import threading

import numpy as np
import pytest

from conftest import LORA, stir
from peftswift import ContextFullError, Model, PeftError


def greedy(model, ids, count):
    """Without a cache, by forward passes."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(input_ids=np.array([ids])).logits[0, -1].argmax()))
    return ids


def test_generate_is_greedy_forward(model, ids):
    out = model.generate(ids, max_new_tokens=10, eos_token_id=None)
    assert out.shape == (2, 22) and out.dtype == np.int64
    for row, start in zip(out, ids):
        assert row.tolist() == greedy(model, start, 10)


def test_cache_gives_the_same_logits(model, ids):
    session = model.session(context_length=64)
    for part in (ids[0][:5], ids[0][5:6], ids[0][6:]):
        session.append(part)
    expected = model(input_ids=ids[:1]).logits[0, -1]
    assert np.abs(session.logits() - expected).max() < 2e-5 * np.abs(expected).max()
    assert session.token_ids() == ids[0].tolist()


def test_pull_and_push_agree(talking):
    first, second, third = (talking.session(context_length=64, ignore_eos=True).append("hammer") for _ in range(3))
    pieces = []
    pushed = first.generate(20, on_text=pieces.append)
    assert pushed == "".join(pieces) == "".join(second.stream(20)) == talking.tokenizer.decode(list(third.tokens(20)))
    assert first.describe()["generated"] == 20


def test_callback_stops_and_raises(talking):
    session = talking.session(context_length=64, ignore_eos=True).append("a")
    seen = []
    session.generate(20, on_text=lambda piece: seen.append(piece) or len(seen) < 3)
    assert len(seen) == 3

    def fail(piece):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        session.generate(20, on_text=fail)
    assert isinstance(session.generate(2), str)


def test_callback_may_not_reenter(talking):
    session, codes = talking.session(context_length=64, ignore_eos=True).append("a"), []

    def nested(piece):
        try:
            session.append("b")
        except PeftError as error:
            codes.append(error.code)

    session.generate(3, on_text=nested)
    assert codes == [-8] * 3


def test_sampling(model, ids):
    def sample(seed, **options):
        return model.generate(ids[:1], max_new_tokens=12, do_sample=True, temperature=1.5, seed=seed, eos_token_id=None, **options).tolist()

    assert sample(1) == sample(1) != sample(2)
    assert sample(1, top_k=1) == model.generate(ids[:1], max_new_tokens=12, eos_token_id=None).tolist()
    assert sample(1, top_p=1e-6) == sample(2, min_p=1.0)


def test_end_tokens(model, ids):
    free = model.generate(ids[:1], max_new_tokens=8, eos_token_id=None)[0, ids.shape[1]:].tolist()
    stopped = model.generate(ids, max_new_tokens=8, eos_token_id=free[3])
    first = stopped[0, ids.shape[1]:].tolist()
    assert first[: free.index(free[3]) + 1] == free[: free.index(free[3]) + 1] and set(first[free.index(free[3]):]) == {free[3]}


def test_stop_strings(talking):
    text = talking.session(context_length=64, ignore_eos=True).append("iron").generate(24)
    stop = text[5:7]
    assert talking.session(context_length=64, ignore_eos=True, stop=[stop]).append("iron").generate(24) == text[: text.index(stop)]


def test_adapters_of_its_own(talking):
    talking.add_adapter("a", LORA), talking.add_adapter("b", LORA, seed=1)
    stir(talking, "a"), stir(talking, "b", 1)
    logits = {}
    for name in ("a", "b"):
        talking.set_adapter(name)
        logits[name] = talking(input_ids=np.array([[40, 41, 42]])).logits[0, -1]
    session = talking.session(context_length=32, adapters=["a"]).append([40, 41, 42])
    assert np.allclose(session.logits(), logits["a"], atol=1e-4)
    follower = talking.session(context_length=32).append([40, 41])
    assert session.describe()["adapters"] and session.tokens(1)
    other = talking.session(context_length=32)
    other.set_adapters("b")
    assert np.allclose(other.append([40, 41, 42]).logits(), logits["b"], atol=1e-4)
    other.set_adapters([])
    assert other.describe()["adapters"] == []
    follower.append([42])
    with pytest.raises(LookupError, match="ghost"):
        other.set_adapters(["ghost"])


def test_fork_and_rewind(model, ids):
    session = model.session(context_length=64, ignore_eos=True).append(ids[0])
    copy = session.fork()
    first = list(session.tokens(6))
    assert list(copy.tokens(6)) == first
    session.rewind(len(ids[0]))
    assert session.token_ids() == ids[0].tolist()
    session.rewind(0)
    assert session.append(ids[0]).token_ids() == ids[0].tolist() and list(session.tokens(6)) == first
    with pytest.raises(PeftError):
        session.rewind(1000)
    with pytest.raises(ValueError):
        session.rewind(-1)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}, {"repetition_penalty": 1.1}, {"kv_cache_type": "q8_0"}])
def test_prompt_lookup_changes_nothing(model, ids, sampling):
    """Guessed tokens are the same text and the same bits of logits, adapters that change in between included."""
    options = dict(context_length=60, ignore_eos=True, **sampling)
    read = (ids[0].tolist() * 3)[:20]
    model.add_adapter("lookup", {"peft_type": "LORA", "r": 2, "target_modules": "all-linear", "init_lora_weights": False})
    plain, guessing = model.session(**options), model.session(prompt_lookup_num_tokens=7, **options)
    for session in (plain, guessing):
        session.append(read)
    for step, adapters in enumerate([[], ["lookup"], [], ["lookup"]]):
        for session in (plain, guessing):
            session.set_adapters(adapters)
        for _ in range(8):
            assert list(plain.tokens(1)) == list(guessing.tokens(1))
            assert np.array_equal(plain.logits(), guessing.logits()), f"adapters {adapters}, step {step}"
    for session in (plain, guessing):
        with pytest.raises(ContextFullError):  # up to the last place, and not beyond
            list(session.tokens(60))
        assert len(session.token_ids()) == 60
        session.rewind(30)
    assert guessing.fork().token_ids() == plain.token_ids() and np.array_equal(plain.logits(), guessing.logits())
    assert list(plain.tokens(5)) == list(guessing.tokens(5))
    model.delete_adapter("lookup")
    for bad in (-1, 8, "many"):
        with pytest.raises(ValueError, match="prompt_lookup_num_tokens"):
            model.session(prompt_lookup_num_tokens=bad)


def test_full_context(model, ids):
    session = model.session(context_length=16, ignore_eos=True).append(ids[0])
    with pytest.raises(ContextFullError, match="16"):
        session.append(ids[0])
    assert session.token_ids() == ids[0].tolist(), "nothing was read"
    with pytest.raises(ContextFullError):
        list(session.tokens(10))
    shifting = model.session(context_length=16, ignore_eos=True, on_full="shift", keep=2).append(ids[0])
    assert len(list(shifting.tokens(30))) == 30 and len(shifting.token_ids()) <= 16
    assert shifting.token_ids()[:2] == ids[0][:2].tolist()


@pytest.mark.parametrize("bad", [[96], [-1], [2**31], [2**63], [0.5], ["a"], [[1]]])
def test_ids_out_of_range(model, bad):
    session = model.session(context_length=16)
    with pytest.raises(ValueError):
        session.append(bad)
    assert session.token_ids() == []


def test_nothing_read_yet(model):
    session = model.session(context_length=16)
    with pytest.raises(PeftError):
        list(session.tokens(1))
    with pytest.raises(PeftError):
        session.logits()


def test_chat(talking):
    session = talking.session(context_length=60)
    messages = [{"role": "user", "content": "hi"}]
    answer = session.chat(messages, max_new_tokens=5)
    assert isinstance(answer, str)
    read = len(session.token_ids())
    session.append_chat(messages + [{"role": "assistant", "content": answer}, {"role": "user", "content": "so"}])
    assert len(session.token_ids()) > read
    with pytest.raises(PeftError):
        session.append_chat("not a conversation")


def test_cancel_from_a_thread(talking):
    session = talking.session(context_length=60, ignore_eos=True, on_full="shift").append("a")
    timer = threading.Timer(0.2, session.cancel)
    timer.start()
    text = session.generate(10**7)
    timer.join()
    assert len(text) < 10**7 and isinstance(session.generate(2), str)


def test_configure(model, ids):
    session = model.session(context_length=64, ignore_eos=True, temperature=5.0, seed=1).append(ids[0])
    session.configure(temperature=0)
    assert ids[0].tolist() + list(session.tokens(5)) == greedy(model, ids[0], 5)
    with pytest.raises(PeftError, match="context_length"):
        session.configure(context_length=8)


def test_sessions_step_together(talking):
    """One pass for all, whatever adapters each has, gives each what it gets alone."""
    for seed, name in enumerate("ab"):
        talking.add_adapter(name, LORA, seed=seed)
        stir(talking, name, seed)

    def fresh():
        return [talking.session(context_length=64, ignore_eos=True, adapters=a).append(text) for a, text in ((["a"], "iron"), (["b"], "steel rod"), ([], "x"))]

    alone = [list(s.tokens(12)) for s in fresh()]
    sessions = fresh()
    steps = [type(sessions[0]).step(sessions) for _ in range(12)]
    assert [[step[i][0] for step in steps] for i in range(3)] == alone
    assert all("".join(step[i][1] for step in steps) == talking.tokenizer.decode(alone[i], skip_special_tokens=True) for i in range(3))
    with pytest.raises(PeftError):
        type(sessions[0]).step([sessions[0], sessions[0]])
    with pytest.raises(PeftError):
        type(sessions[0]).step([])


PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}


def test_a_prefix_in_a_session_is_the_uncached_forward(model, ids):
    model.add_adapter("p", PREFIX)
    model.add_adapter("l", LORA)
    stir(model, "l")
    for active in ("p", ["l", "p"]):
        model.set_adapter(active)
        out = model.generate(ids, max_new_tokens=8, eos_token_id=None)
        for row, start in zip(out, ids):
            assert row.tolist() == greedy(model, start, 8)


def test_a_filled_prefix_stands_for_its_text(talking):
    text = "the smith of the village "
    talking.add_adapter("p", {**PREFIX, "num_virtual_tokens": len(text)})
    talking.fill_adapter("p", text)
    prefixed = talking.session(context_length=64, ignore_eos=True, temperature=0).append("hammer")
    talking.disable_adapter_layers()
    plain = talking.session(context_length=64, ignore_eos=True, temperature=0).append(text + "hammer")
    expected = plain.logits()
    talking.enable_adapter_layers()
    assert np.abs(prefixed.logits() - expected).max() < 1e-3 * np.abs(expected).max()
    with pytest.raises(PeftError, match="virtual tokens"):
        talking.fill_adapter("p", "iron")


def test_tasks_of_a_multitask_prompt(model, ids):
    model.add_adapter("t", {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 3, "num_tasks": 2})
    state = {key: np.random.default_rng(1).normal(size=value.shape).astype(np.float32) for key, value in model.adapter_state_dict("t").items()}
    model.load_adapter_state_dict("t", state)
    both = model(input_ids=ids, task_ids=np.array([0, 1])).logits
    for row in range(2):
        assert np.abs(model(input_ids=ids[row:row + 1], task_ids=np.array([row])).logits - both[row:row + 1]).max() < 1e-4
    assert np.abs(model(input_ids=ids[:1], task_ids=np.array([1])).logits - both[:1]).max() > 1e-3
    out = model.generate(ids, max_new_tokens=4, eos_token_id=None, task_ids=[0, 1])
    assert out[0, ids.shape[1]] == both[0, -1].argmax() and out[1, ids.shape[1]] == both[1, -1].argmax()
    with pytest.raises(PeftError, match="task_ids"):
        model(input_ids=ids)


@pytest.mark.parametrize("kind, error", [("f32", 2e-5), ("bf16", 2e-2), ("q8_0", 3e-2)])
def test_keys_and_values_of_other_types(model, ids, kind, error):
    """Logits stay near the uncached ones; forks, rewinding, prefixes and steps of several sessions work on what is kept."""
    session = model.session(context_length=60, ignore_eos=True, kv_cache_type=kind)
    assert session.describe()["kv_cache_type"] == kind
    for part in (ids[0][:5], ids[0][5:6], ids[0][6:]):
        session.append(part)
    expected = model(input_ids=ids[:1]).logits[0, -1]
    difference = np.abs(session.logits() - expected).max() / np.abs(expected).max()
    assert difference < error and (kind == "f32") == (difference < 2e-5)
    fork, logits = session.fork(), session.logits()
    assert fork.describe()["kv_cache_type"] == kind and np.array_equal(fork.logits(), logits)
    first = list(session.tokens(8))
    session.rewind(len(ids[0]))
    assert np.array_equal(session.logits(), logits) or kind != "q8_0" and np.allclose(session.logits(), logits, atol=1e-5)
    assert list(session.tokens(8)) == first == list(fork.tokens(8))
    alone = [model.session(context_length=60, ignore_eos=True, kv_cache_type=k).append(ids[0]) for k in (kind, "f32")]
    together = [model.session(context_length=60, ignore_eos=True, kv_cache_type=k).append(ids[0]) for k in (kind, "f32")]
    for _ in range(4):
        type(session).step(together)
    assert [s.token_ids()[len(ids[0]):] for s in together] == [list(s.tokens(4)) for s in alone]
    model.add_adapter("p", PREFIX)
    prefixed = model.session(context_length=60, kv_cache_type=kind, adapters=["p"]).append(ids[0])
    model.set_adapter("p")
    expected = model(input_ids=ids[:1]).logits[0, -1]
    model.delete_adapter("p")
    assert np.abs(prefixed.logits() - expected).max() < error * np.abs(expected).max()


def test_the_memory_of_keys_and_values(model, ids):
    """64 tokens are allocated at first; a head of q8_0 is whole blocks of 34 bytes."""
    config = model.config
    head = config["hidden_size"] // config["num_attention_heads"]
    heads = 2 * 64 * config["num_hidden_layers"] * config["num_key_value_heads"]
    for kind, bytes_of_head in (("f32", 4 * head), ("bf16", 2 * head), ("q8_0", -(-head // 32) * 34)):
        assert model.session(context_length=64, kv_cache_type=kind).append(ids[0]).describe()["cache_bytes"] == heads * bytes_of_head


def test_a_full_context_of_q8_0_moves_up(model, ids):
    """Keys are turned back in f32 and rounded anew: the logits stay near those of f32 keys."""
    logits = []
    for kind in ("f32", "q8_0"):
        session = model.session(context_length=16, ignore_eos=True, on_full="shift", keep=2, kv_cache_type=kind).append(ids[0])
        session.append(ids[1][:8])
        logits.append(session.logits())
    assert 0 < np.abs(logits[0] - logits[1]).max() < 3e-2 * np.abs(logits[0]).max()


@pytest.mark.parametrize("bad", ["q4_0", "int8", "", 8, True, ["q8_0"]])
def test_types_of_keys_and_values_that_there_are_not(model, bad):
    with pytest.raises(ValueError, match="kv_cache_type"):
        model.session(kv_cache_type=bad)
    with pytest.raises(ValueError, match="kv_cache_type"):
        model.session().configure(kv_cache_type="q8_0")


@pytest.mark.parametrize("method", [{"peft_type": "HIRA"}, {"peft_type": "LOKR", "r": 4}, {"peft_type": "OFT", "oft_block_size": 8}])
def test_folded_adapters_write_the_same_text(model, ids, method):
    targets = ["q_proj", "v_proj", "down_proj"]
    for seed, name in enumerate(("one", "two")):
        model.add_adapter(name, {**method, "target_modules": targets})
        stir(model, name, seed=seed)
    plain, folded, other = (model.session(context_length=64, ignore_eos=True, adapters=["one"], fold_adapters=folds) for folds in (False, True, True))
    in_use = model.context.memory()["categories"]["adapters"]["live"]
    texts = [list(session.append(ids[0]).tokens(12)) for session in (plain, folded, other)]
    assert texts[0] == texts[1] == texts[2]
    assert np.abs(plain.logits() - folded.logits()).max() < 1e-4 * np.abs(plain.logits()).max()
    weights = sum(4 * value.size for name, value in model.state_dict().items() if any(f"{target}.weight" in name for target in targets))
    grown = model.context.memory()["categories"]["adapters"]["live"] - in_use
    assert weights <= grown < 1.3 * weights, "one copy for both"
    # What is written into the adapter is seen; other adapters and none too.
    stir(model, "one", seed=7)
    for adapters in (["one"], ["two"], [], ["one", "two"]):
        for session in (plain, folded):
            session.rewind(0)
            session.set_adapters(adapters)
        texts = [list(session.append(ids[1]).tokens(12)) for session in (plain, folded)]
        assert texts[0] == texts[1], adapters
    # Together, and each by itself.
    sessions = [model.session(context_length=64, adapters=[name], fold_adapters=folds).append(ids[0]) for name, folds in (("one", True), ("two", True), ("one", False))]
    alone = [session.fork() for session in sessions]
    expected = [type(plain).step([session])[0] for session in alone]
    assert type(plain).step(sessions) == expected
    for session, same in zip(sessions, alone):
        assert np.abs(session.logits() - same.logits()).max() < 1e-4 * np.abs(same.logits()).max()
    # A fork with other adapters has copies of its own, and both keep theirs.
    del other, sessions, session, alone, same
    folded.set_adapters(["one"])
    fork = folded.fork()
    fork.set_adapters(["two"])
    for session in (folded, fork):
        session.append([5])
    assert model.context.memory()["categories"]["adapters"]["live"] - in_use >= 2 * weights
    del plain, folded, session, fork
    assert model.context.memory()["categories"]["adapters"]["live"] < in_use + weights, "they went with the sessions"
    with pytest.raises(PeftError, match="fold_adapters"):
        model.session(fold_adapters="yes")


def test_folding_without_room_is_refused_and_leaves_the_session(base_folder, ids):
    config = {"peft_type": "HIRA", "r": 2, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    for budget in range(100_000, 2_000_000, 20_000):
        try:
            model = Model.from_pretrained(base_folder, dtype="float32", memory_budget=budget)
            model.add_adapter("one", config)
            session = model.session(context_length=32, adapters=["one"])
            expected = list(session.append(ids[0]).tokens(4))
        except MemoryError:
            continue
        break
    session.configure(fold_adapters=True)
    session.rewind(0)
    with pytest.raises(MemoryError, match="budget"):
        list(session.append(ids[0]).tokens(4))
    session.configure(fold_adapters=False)
    session.rewind(0)
    assert list(session.append(ids[0]).tokens(4)) == expected
