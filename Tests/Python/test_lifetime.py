"""Objects freed in any order, collected anywhere, used from threads; processes that fork or end in the middle of things."""

import gc
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from conftest import LORA, ROOT, stir
from peftswift import Context, Dataset, Model, PeftError


def everything(folder):
    context = Context(threads=2)
    model = Model.from_pretrained(folder, dtype="float32", context=context)
    model.add_adapter("default", LORA)
    tokenizer = model.tokenizer
    dataset = Dataset.from_text(tokenizer, "words and words " * 20, max_length=16)
    trainer = model.trainer(lr=1e-3, max_steps=2)
    session = model.session(context_length=32).append("abc")
    del model.context  # Python must not keep more alive than C does
    return [context, model, tokenizer, dataset, trainer, session]


def test_any_order_of_frees(talking_folder):
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 7):
        objects = everything(talking_folder)
        for i in order:
            objects[i].close()
        assert objects[1].close.alive is False


def test_children_work_when_parents_are_gone(talking_folder):
    context, model, tokenizer, dataset, trainer, session = everything(talking_folder)
    context.close(), model.close(), tokenizer.close()
    trainer.run(dataset, progress=False)
    assert len(list(session.tokens(3))) > 0


def test_cycles_are_collected(talking_folder):
    context = Context(threads=1)
    for _ in range(20):
        objects = everything(talking_folder)
        objects[1].cycle = objects  # collected by the garbage collector, in its own order
        del objects
    gc.collect()
    model = Model.from_pretrained(talking_folder, dtype="float32", context=context)
    used = context.memory()["live"]
    del model
    gc.collect()
    assert context.memory()["live"] <= used


def test_memory_comes_back(talking_folder):
    context = Context(threads=1)
    for _ in range(30):
        model = Model.from_pretrained(talking_folder, dtype="float32", context=context)
        model.add_adapter("default", LORA)
        model.trainer(lr=1e-3).step(input_ids=np.ones((2, 16), np.int64), labels=np.ones((2, 16), np.int64))
        model.session(context_length=32).append("abc")
        del model
        gc.collect()
    assert context.memory()["live"] == 0


def test_freed_on_another_thread(talking_folder):
    objects = everything(talking_folder)
    thread = threading.Thread(target=lambda: [o.close() for o in objects])
    thread.start()
    thread.join()
    with pytest.raises(PeftError):
        objects[1].describe()


def test_sessions_in_parallel(talking, ids):
    """Different sessions over one model run at once and give what they give alone."""
    talking.add_adapter("default", LORA), talking.add_adapter("other", LORA, seed=1)
    stir(talking), stir(talking, "other", 1)

    def talk(adapter):
        session = talking.session(context_length=64, ignore_eos=True, adapters=[adapter] if adapter else [])
        return list(session.append(ids[0]).tokens(30))

    alone = {a: talk(a) for a in ("default", "other", None)}
    together, failures = [], []

    def work(adapter):
        try:
            together.append((adapter, talk(adapter)))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(a,)) for a in ("default", "other", None) * 4]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures and len(together) == 12 and all(tokens == alone[a] for a, tokens in together)


def test_forwards_in_parallel(talking, ids):
    expected = talking(input_ids=ids).logits
    results = []
    threads = [threading.Thread(target=lambda: results.extend(np.array_equal(talking(input_ids=ids).logits, expected) for _ in range(10))) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == [True] * 40


def test_one_session_in_two_threads_is_an_error_not_a_crash(talking):
    session = talking.session(context_length=60, ignore_eos=True, on_full="shift").append("a")
    codes = []

    def work():
        for _ in range(50):
            try:
                list(session.tokens(1))
            except PeftError as error:
                codes.append(error.code)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert set(codes) <= {-8} and isinstance(session.generate(2), str)


def test_training_while_talking(talking):
    """A trainer and sessions share a model; nothing crashes, everything ends."""
    talking.add_adapter("default", LORA)
    session = talking.session(context_length=64, ignore_eos=True, on_full="shift").append("abc")
    trainer = talking.trainer(lr=1e-3, max_steps=30)
    dataset = Dataset.from_text(talking.tokenizer, "words and words " * 60, max_length=32)
    thread = threading.Thread(target=lambda: trainer.run(dataset, progress=False))
    thread.start()
    count = 0
    while thread.is_alive() and count < 2000:
        count += len(list(session.tokens(1)))
    thread.join()
    assert count > 0


def test_contexts_do_not_see_each_other(talking_folder):
    one, two = Context(threads=1), Context(threads=1)
    model = Model.from_pretrained(talking_folder, dtype="float32", context=one)
    model.session(context_length=64).append("abc")
    assert one.memory()["live"] > 0 and two.memory()["live"] == 0


def test_log(talking_folder, caplog):
    lines = []
    context = Context(threads=1, log=lambda severity, text: lines.append((severity, text)))
    model = Model.from_pretrained(talking_folder, dtype="float32", context=context)
    model.add_adapter("default", {**LORA, "a_key_from_the_future": 1})
    assert any(s == "warning" and "a_key_from_the_future" in t for s, t in lines)
    quiet = Model.from_pretrained(talking_folder, dtype="float32")
    quiet.add_adapter("default", {**LORA, "a_key_from_the_future": 1})
    assert "a_key_from_the_future" in caplog.text and caplog.records[0].name == "peftswift"


def run_program(text, *arguments):
    return subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT / 'Tests/Python')!r}]\nfrom conftest import *\n" + text, *map(str, arguments)],
                          capture_output=True, text=True, timeout=120)


def test_interpreter_exit_with_everything_alive(talking_folder):
    result = run_program("""
import test_lifetime
objects = test_lifetime.everything(sys.argv[1])
gen = objects[-1].tokens(5); next(gen)
print("end")
""", talking_folder)
    assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")


def test_exit_while_threads_work(talking_folder):
    result = run_program("""
import threading, time, os
m = peftswift.Model.from_pretrained(sys.argv[1], dtype="float32")
s = m.session(context_length=60, ignore_eos=True, on_full="shift").append("a")
threading.Thread(target=lambda: s.generate(10**8), daemon=True).start()
time.sleep(0.3); print("end")
""", talking_folder)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr


def test_signals_and_output_are_the_host_s(talking_folder):
    """Loading and using the library installs no signal handler and prints nothing."""
    result = run_program("""
def caught():
    return [l for l in open("/proc/self/status") if l.startswith("SigCgt")]
import subprocess
bare = subprocess.run([sys.executable, "-c", "import numpy; print([l for l in open('/proc/self/status') if l.startswith('SigCgt')])"], capture_output=True, text=True).stdout.strip()
m = peftswift.Model.from_pretrained(sys.argv[1], dtype="float32")
m.generate(np.array([[1, 2, 3]]), max_new_tokens=3)
print(str(caught()) == bare)
""", talking_folder)
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_fork(talking_folder):
    """A child made by fork() without exec may use objects made in the child; the parent is unharmed."""
    result = run_program("""
import os, warnings
warnings.simplefilter("ignore")
m = peftswift.Model.from_pretrained(sys.argv[1], dtype="float32")
first = m.generate(np.array([[1, 2, 3]]), max_new_tokens=4).tolist()
child = os.fork()
if child == 0:
    mine = peftswift.Model.from_pretrained(sys.argv[1], dtype="float32")
    os._exit(0 if mine.generate(np.array([[1, 2, 3]]), max_new_tokens=4).tolist() == first else 1)
status = os.waitpid(child, 0)[1]
print(status, m.generate(np.array([[1, 2, 3]]), max_new_tokens=4).tolist() == first)
""", talking_folder)
    assert result.stdout == "0 True\n", result.stderr
