"""Damages files of one family and opens them: every attempt must end in an exception with words, or in a model that works.

    python bad_files.py FAMILY FOLDER [SEED]

Runs as a process of its own (test_bad_files.py), so that a crash is one failure. Prints how many attempts were refused and accepted.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from conftest import CHARACTERS, GOLDEN, LORA, make_talking_model, np, peftswift, stir  # noqa: E402

sys.path.insert(0, str(GOLDEN.parent))
from run import st_load  # noqa: E402
import tiny_gguf  # noqa: E402

IDS = np.array([[1, 2, 3]])
COUNTS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]


class Attempts:
    def __init__(self, folder):
        self.folder, self.refused, self.accepted = folder, 0, 0
        self.context = peftswift.Context(threads=2, memory_budget=256 << 20, log=lambda *_: None)

    def __call__(self, action, what):
        try:
            action()
            self.accepted += 1
        except peftswift.PeftError as error:
            words = str(error)
            assert len(words) > 10 and error.code < 0, f"{what}: no words: {words!r}"
            assert error.code != -99, f"{what}: {words}"
            self.refused += 1

    def must_fail(self, action, what):
        before = self.refused
        self(action, what)
        assert self.refused == before + 1, f"{what} was accepted"

    def model(self, path):
        model = peftswift.Model.from_pretrained(path, dtype="float32", context=self.context)
        model(input_ids=IDS)
        model.generate(IDS, max_new_tokens=2)
        model.tokenizer.decode(model.tokenizer.encode("some words")) if Path(path).suffix == ".gguf" else None


def cuts(size):
    """Lengths to cut a file to: every one of the first bytes, then a thinning selection."""
    return sorted({*range(0, min(size, 64)), *range(64, size, max(1, size // 150)), size - 1})


def flips(data, random, count, most=None):
    """Copies with one byte changed, most of them in the first `most` bytes (where headers are)."""
    for _ in range(count):
        copy = bytearray(data)
        where = int(random.integers(0, most if most and random.random() < 0.9 else len(copy)))
        copy[where] ^= int(random.integers(1, 256))
        yield bytes(copy), where


def attack(attempts, path, data, open_it, random, count, most):
    for size in cuts(len(data)):
        path.write_bytes(data[:size])
        attempts.must_fail(open_it, f"{path.name} cut to {size} of {len(data)} bytes")
    for copy, where in flips(data, random, count, most):
        path.write_bytes(copy)
        attempts(open_it, f"{path.name} with byte {where} changed")


def gguf(attempts, folder, random):
    config, tensors = json.loads((GOLDEN / "bases/llama/config.json").read_text()), st_load(GOLDEN / "bases/llama/model.safetensors")
    tokens = ["Ġ" if c == " " else "ab" if c == "~" else c for c in CHARACTERS] + ["<|end|>"]
    path, bad = folder / "good.gguf", folder / "bad.gguf"
    tiny_gguf.write(path, config, tensors, tokens)
    attempts.model(path)
    data = path.read_bytes()
    attack(attempts, bad, data, lambda: attempts.model(bad), random, 1500, 6000)
    for offset, name in ((8, "tensors"), (16, "metadata")):
        for n in COUNTS:
            bad.write_bytes(data[:offset] + struct.pack("<Q", n) + data[offset + 8:])
            attempts.must_fail(lambda: attempts.model(bad), f"{n} {name}")
    position = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    for n in COUNTS:
        bad.write_bytes(data[:position] + struct.pack("<Q", n) + data[position + 8:])
        attempts(lambda: attempts.model(bad), f"{n} tokens")
    position = data.index(b"token_embd.weight") + len("token_embd.weight") + 4
    for n in COUNTS:
        for at in (position, position + 8, position + 20):  # two dimensions and the offset
            bad.write_bytes(data[:at] + struct.pack("<Q", n) + data[at + 8:])
            attempts.must_fail(lambda: attempts.model(bad), f"token_embd.weight with {n}") if n != 0 or at != position + 20 else None
    changes = [dict(general__architecture="mamba"), dict(llama__attention__head_count=3), dict(llama__attention__head_count=0), dict(llama__block_count=3),
               dict(llama__block_count=0), dict(llama__embedding_length=64), dict(llama__embedding_length=2**31), dict(llama__attention__head_count_kv=3),
               dict(llama__attention__head_count_kv=0), dict(llama__feed_forward_length=32), dict(llama__context_length=0), dict(general__alignment=0),
               dict(general__alignment=3), dict(llama__rope__freq_base=0.0), dict(llama__rope__freq_base=float("nan")), dict(llama__rope__scaling__type="dynamic"), dict(llama__rope__scaling__type="yarn", llama__rope__scaling__factor=0.0),
               dict(llama__rope__scaling__type="yarn", llama__rope__scaling__factor=4.0, llama__rope__scaling__attn_factor=1.5),
               dict(llama__attention__layer_norm_rms_epsilon=float("nan")), dict(llama__block_count=None), dict(llama__attention__head_count=None),
               dict(general__architecture=None), dict(llama__block_count="two"), dict(general__architecture=7), dict(llama__expert_count=4)]
    for change in changes:
        tiny_gguf.write(bad, config, tensors, tokens, **change)
        attempts.must_fail(lambda: attempts.model(bad), str(change))
    for left_out in tensors:
        if left_out != "lm_head.weight":  # without it the head is the embedding
            tiny_gguf.write(bad, config, {k: v for k, v in tensors.items() if k != left_out}, tokens)
            attempts.must_fail(lambda: attempts.model(bad), f"without {left_out}")
        tiny_gguf.write(bad, config, {**tensors, left_out: tensors[left_out][..., :-8] if tensors[left_out].ndim == 1 else tensors[left_out][:-8]}, tokens)
        attempts.must_fail(lambda: attempts.model(bad), f"{left_out} too small")
    tiny_gguf.write(bad, config, tensors, tokens, tokenizer__ggml__tokens=tokens[:50])
    attempts(lambda: attempts.model(bad), "fewer tokens than rows")
    tiny_gguf.write(bad, config, tensors, tokens, tokenizer__ggml__merges=["no such merge"])
    attempts(lambda: attempts.model(bad), "odd merges")


def raw_safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors(attempts, folder, random):
    shutil.copytree(GOLDEN / "bases/llama", folder / "m")
    path = folder / "m/model.safetensors"
    data = path.read_bytes()
    header_size = struct.unpack("<Q", data[:8])[0]
    open_it = lambda: attempts.model(folder / "m")  # noqa: E731
    attack(attempts, path, data, open_it, random, 1200, header_size + 8)
    for n in COUNTS:
        path.write_bytes(struct.pack("<Q", n) + data[8:])
        attempts.must_fail(open_it, f"a header of {n} bytes")
    header = json.loads(data[8 : 8 + header_size])
    payload = data[8 + header_size:]
    name = "model.embed_tokens.weight"
    entry = header[name]
    for key, values in {"data_offsets": [[0, 2**63], [-1, 4], [4, 0], [0], "x", None, [2**62, 2**62 + 12288], [0.5, 1], [1, 12289]],
                        "shape": [[2**62, 4], [-1, 32], [96, -32], [96, 2**64], "x", [], [0, 0], [96.5, 32], [1] * 40],
                        "dtype": ["F33", "", 7, None, "I64", "F16", "f32"]}.items():
        for v in values:
            path.write_bytes(raw_safetensors({**header, name: {**entry, key: v}}, payload))
            attempts.must_fail(open_it, f"{key} {v}")
    for text in (b"", b"[]", b"{", b"null", b'{"a": 1}', b'{"a": {}}', b"\xff\xfe", b"{" * 100_000, b'{"a":' * 50_000, json.dumps(header).encode()[:-1] + b',"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'):
        path.write_bytes(raw_safetensors(text, payload))
        attempts.must_fail(open_it, f"header {text[:40]}")
    for left_out in header:
        if left_out not in ("__metadata__",):
            path.write_bytes(raw_safetensors({k: v for k, v in header.items() if k != left_out}, payload))
            attempts.must_fail(open_it, f"without {left_out}")


def config(attempts, folder, random):
    shutil.copytree(GOLDEN / "bases/llama", folder / "m")
    path = folder / "m/config.json"
    data = path.read_bytes()
    good = json.loads(data)
    open_it = lambda: attempts.model(folder / "m")  # noqa: E731
    for size in cuts(len(data))[:-2]:
        path.write_bytes(data[:size])
        attempts.must_fail(open_it, f"config.json cut to {size}")
    for copy, where in flips(data, random, 600):
        path.write_bytes(copy)
        attempts(open_it, f"config.json with byte {where} changed")
    odd = [0, -1, 1, 3, 2**31, 2**62, 2**63, 10**30, 1.5, "8", None, [], {}, True, -0.0, 1e308]
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "head_dim"):
        for v in odd:
            fine = (None, good.get(key), 1) if key == "num_hidden_layers" else (None, good.get(key))
            if v in fine and v is not True:
                continue
            path.write_text(json.dumps({**good, key: v}))
            attempts.must_fail(open_it, f"{key} {v!r}")
    for change in ({"model_type": "rwkv"}, {"model_type": None}, {"model_type": 7}, {"hidden_act": "swishy"}, {"hidden_act": 3}, {"rms_norm_eps": -1}, {"rms_norm_eps": "x"},
                   {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1, "factor": 4.0}},
                   {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 1e999}}, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": "x"}},
                   {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}},
                   {"rope_parameters": []}, {"rope_parameters": {"rope_theta": -1, "rope_type": "default"}}, {"max_position_embeddings": 0}, {"tie_word_embeddings": "yes"},
                   {"attention_bias": True}, {"eos_token_id": "end"}, {"eos_token_id": [[]]}):
        path.write_text(json.dumps({**good, **change}))
        (attempts if "eos_token_id" in change else attempts.must_fail)(open_it, str(change))
    for text in ("", "null", "[]", "7", "{}", '{"a":1,"a":2}', '"' + "x" * 10_000_000 + '"', "[" * 200_000, "\ufeff{}", '{"model_type": "\\ud800"}'):
        path.write_text(text)
        attempts.must_fail(open_it, text[:20])
    path.write_bytes(b'{"model_type": "\xff"}')
    attempts.must_fail(open_it, "invalid UTF-8")
    path.unlink()
    attempts.must_fail(open_it, "no config.json")


def index(attempts, folder, random):
    shutil.copytree(GOLDEN / "bases/llama_sharded", folder / "m")
    path = folder / "m/model.safetensors.index.json"
    data, open_it = path.read_bytes(), lambda: attempts.model(folder / "m")
    open_it()
    good = json.loads(data)
    name = next(iter(good["weight_map"]))
    for file in ("../secret.safetensors", "/etc/passwd", "nowhere.safetensors", "", 7, None, ".", "a\0b"):
        path.write_text(json.dumps({**good, "weight_map": {**good["weight_map"], name: file}}))
        attempts.must_fail(open_it, f"shard {file!r}")
    for text in ("{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{"):
        path.write_text(text)
        attempts.must_fail(open_it, text)
    path.write_bytes(data)
    (folder / "m" / sorted(set(good["weight_map"].values()))[0]).unlink()
    attempts.must_fail(open_it, "a missing shard")


def adapter(attempts, folder, random):
    model = peftswift.Model.from_pretrained(GOLDEN / "bases/llama", dtype="float32", context=attempts.context)
    shutil.copytree(GOLDEN / "cases/lora_basic/adapter", folder / "a")
    before = model(input_ids=IDS).logits

    def open_it():
        try:
            model.load_adapter(folder / "a", "x", is_trainable=True)
            model(input_ids=IDS)
            model.delete_adapter("x")
        except peftswift.PeftError:
            assert model.adapter_status()["adapters"] == {}
            raise

    path = folder / "a/adapter_model.safetensors"
    data = path.read_bytes()
    attack(attempts, path, data, open_it, random, 600, struct.unpack("<Q", data[:8])[0] + 8)
    header_size = struct.unpack("<Q", data[:8])[0]
    header, payload = json.loads(data[8 : 8 + header_size]), data[8 + header_size:]
    for key in [k for k in header if k != "__metadata__"]:
        path.write_bytes(raw_safetensors({k: v for k, v in header.items() if k != key}, payload))
        attempts.must_fail(open_it, f"without {key}")
        path.write_bytes(raw_safetensors({k.replace(key, key.replace("layers.0", "layers.9").replace("layers.1", "layers.9")): v for k, v in header.items()}, payload))
        attempts.must_fail(open_it, f"{key} under another name")
        path.write_bytes(raw_safetensors({**header, key: {**header[key], "shape": header[key]["shape"][::-1]}}, payload))
        attempts(open_it, f"{key} transposed") if header[key]["shape"] == header[key]["shape"][::-1] else attempts.must_fail(open_it, f"{key} transposed")
    path.write_bytes(data)
    path = folder / "a/adapter_config.json"
    data = path.read_bytes()
    good = json.loads(data)
    for size in cuts(len(data))[:-2]:
        path.write_bytes(data[:size])
        attempts.must_fail(open_it, f"adapter_config.json cut to {size}")
    for copy, where in flips(data, random, 600):
        path.write_bytes(copy)
        attempts(open_it, f"adapter_config.json with byte {where} changed")
    for change in ({"peft_type": "SORCERY"}, {"peft_type": None}, {"r": 0}, {"r": 5}, {"r": 2**62}, {"r": 2**63}, {"r": -4}, {"r": "4"}, {"target_modules": ["q_proj"]},
                   {"target_modules": ["no_such"]}, {"target_modules": 7}, {"target_modules": "(((("}, {"target_modules": "(a+)+$" * 20}, {"lora_alpha": "x"},
                   {"lora_alpha": 1e400}, {"rank_pattern": []}, {"rank_pattern": {"q_proj": 99}}, {"rank_pattern": {"q_proj": -1}}, {"layers_to_transform": [99]},
                   {"layers_to_transform": "all"}, {"bias": "perhaps"}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"task_type": "X"}, {"lora_dropout": 2},
                   {"target_parameters": "experts.gate_up_proj"}, {"target_parameters": ["q_proj.weight"]},
                   {"target_parameters": ["experts.gate_up_proj"], "use_dora": True}, {"alora_invocation_tokens": "x"}, {"trainable_token_indices": [1000]}):
        path.write_text(json.dumps({**good, **change}))
        attempts.must_fail(open_it, str(change))
    path.unlink()
    attempts.must_fail(open_it, "no adapter_config.json")
    for other in ("lora_mlp", "lora_gpt2_conv1d", "lora_bert_feature", "lokr_conv_flat", "prefix_t5", "lora_layers_to_transform", "lora_all_linear"):
        source = GOLDEN / f"cases/{other}/adapter"
        attempts.must_fail(lambda: model.load_adapter(source, "x"), f"the adapter of {other}")
        assert model.adapter_status()["adapters"] == {}
    assert np.array_equal(model(input_ids=IDS).logits, before)


def hdf5(attempts, folder, random):
    """A checkpoint of a training run, and an adapter in one file."""
    model = peftswift.Model.from_pretrained(GOLDEN / "bases/llama", dtype="float32", context=attempts.context)
    model.add_adapter("default", {**LORA, "r": 2, "target_modules": ["q_proj"]})
    trainer = model.trainer(lr=1e-3)
    trainer.step(input_ids=IDS, labels=IDS)
    trainer.save(folder / "run.h5")
    stir(model)
    model.save_pretrained(folder / "adapter.h5")
    state = {k: v.copy() for k, v in model.adapter_state_dict().items()}

    def resume(path):
        trainer.resume(path)
        assert all(np.isfinite(v).all() or True for v in model.adapter_state_dict().values())

    def load(path):
        model.load_adapter(path, "x")
        model.delete_adapter("x")

    for name, action in (("run.h5", resume), ("adapter.h5", load)):
        data, bad = (folder / name).read_bytes(), folder / ("bad_" + name)
        for size in cuts(len(data))[::4]:
            bad.write_bytes(data[:size])
            attempts.must_fail(lambda: action(bad), f"{name} cut to {size} of {len(data)}")
        for copy, where in flips(data, random, 700, min(len(data), 20_000)):
            bad.write_bytes(copy)
            attempts(lambda: action(bad), f"{name} with byte {where} changed")
    for other in Path(__file__).parents[1].glob("CheckpointsTests/Fixtures/refused_*.h5"):
        attempts.must_fail(lambda: resume(other), other.name)
        attempts.must_fail(lambda: load(other), other.name)
    attempts.must_fail(lambda: resume(folder / "adapter.h5"), "an adapter is no checkpoint")
    attempts.must_fail(lambda: load(GOLDEN / "bases/llama/model.safetensors"), "no HDF5 file")
    model.load_adapter_state_dict("default", state)


def tokenizer(attempts, folder, random):
    make_talking_model(folder / "m")
    path = folder / "m/tokenizer.json"
    data = path.read_bytes()

    def open_it():
        t = peftswift.Tokenizer.from_pretrained(folder / "m", context=attempts.context)
        t.decode(t.encode("some words <|end|>"))
        t.apply_chat_template([{"role": "user", "content": "x"}])

    open_it()
    for size in cuts(len(data))[:-1]:
        path.write_bytes(data[:size])
        attempts.must_fail(open_it, f"tokenizer.json cut to {size}")
    for copy, where in flips(data, random, 1500):
        path.write_bytes(copy)
        attempts(open_it, f"tokenizer.json with byte {where} changed")
    good = json.loads(data)
    for change in ({"model": None}, {"model": {"type": "Sorcery"}}, {"model": {**good["model"], "vocab": {"a": -1}}}, {"model": {**good["model"], "vocab": {"a": 2**62}}},
                   {"model": {**good["model"], "merges": ["a"]}}, {"model": {**good["model"], "merges": [["a", "zz"]]}}, {"added_tokens": [{"id": 2**40, "content": "x"}]},
                   {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}}, {"pre_tokenizer": {"type": "Sorcery"}},
                   {"normalizer": {"type": "Sorcery"}}, {"decoder": {"type": "Sorcery"}}, {"post_processor": {"type": "Sorcery"}}):
        path.write_text(json.dumps({**good, **change}))
        attempts.must_fail(open_it, str(change)[:80])
    path.write_text(json.dumps({**good, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}}))
    attempts(lambda: peftswift.Tokenizer.from_pretrained(path).encode("a" * 40 + "b"), "a pattern without end")
    path.write_bytes(data)
    for template in ("{% for x in messages %}", "{{ messages[99].role }}", "{{ 'x' * 10**9 }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ " + "(" * 10_000, "{% sorcery %}",
                     "{{ messages | sorcery }}", "{{ 1 / 0 }}", "{{ 1 % 0 }}", "{{ (-9223372036854775807 - 2) // -1 }}", "{{ [][0] }}", "{{ raise_exception('stop') }}"):
        t = peftswift.Tokenizer.from_pretrained(folder / "m", context=attempts.context)
        attempts(lambda: t.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template), template[:40])


def data(attempts, folder, random):
    make_talking_model(folder / "m")
    model = peftswift.Model.from_pretrained(folder / "m", dtype="float32", context=attempts.context)
    model.add_adapter("default", LORA)
    t, path = model.tokenizer, folder / "d.jsonl"

    def all_of(**options):
        def action():
            batches = list(peftswift.Dataset.open(t, path, max_length=32, **options))
            assert all(b["input_ids"].max() < 96 for b in batches)
        return action

    good = "\n".join(json.dumps({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}) for i in range(8)).encode()
    for copy, where in flips(good, random, 500):
        path.write_bytes(copy)
        attempts(all_of(), f"byte {where} changed")
        attempts(all_of(on_bad_line="skip"), f"byte {where} changed")
    for what, content in {"empty": b"", "newlines": b"\n" * 100_000, "NULs": b"\0" * 10_000}.items():
        path.write_bytes(content)
        attempts.must_fail(all_of(), what)
    for what, content in {"invalid UTF-8": b'{"text": "\xff\xfe\x80 fine"}\n' * 3, "lone surrogate": b'{"text": "\\ud800 x"}\n' * 3,
                          "10 MB line": b'{"text": "' + b"x" * 10_000_000 + b'"}\n', "10 MB without an end": b"x" * 10_000_000, "deep": b"[" * 1_000_000 + b"\n",
                          "CRLF and BOM": b'\xef\xbb\xbf{"text": "a b c"}\r\n{"text": "d e f"}\r\n'}.items():
        path.write_bytes(content)
        attempts(all_of(), what)
        attempts(all_of(on_bad_line="skip"), what)
    for name, content in {"d.csv": b'text\n"' + b"x" * 10_000_000, "e.csv": b"\xff\xfe,\x00\n1,2\n", "f.txt": bytes(range(256)) * 100, "g.txt": b""}.items():
        path = folder / name
        path.write_bytes(content)
        attempts(all_of(), name)
    path = folder / "gone.jsonl"
    attempts.must_fail(all_of(), "no file")
    path = folder
    attempts.must_fail(all_of(), "a folder")


def host(attempts, folder, random):
    """A full disk, an unwritable folder, a budget too small: nothing lost."""
    model = peftswift.Model.from_pretrained(GOLDEN / "bases/llama", dtype="float32", context=attempts.context)
    model.add_adapter("default", {**LORA, "r": 16, "target_modules": "all-linear"})
    trainer = model.trainer(lr=1e-3)
    trainer.step(input_ids=IDS, labels=IDS)
    small = folder / "full"  # test_bad_files.py mounts a tmpfs of 64 kB here when it may
    if small.is_mount():
        attempts.must_fail(lambda: model.save_pretrained(small / "a"), "a full disk")
        attempts.must_fail(lambda: model.save_pretrained(small / "a.h5"), "a full disk")
        attempts.must_fail(lambda: trainer.save(small / "run.h5"), "a full disk")
        attempts.must_fail(lambda: model.export(small / "m"), "a full disk")
        assert sum(f.stat().st_size for f in small.rglob("*") if f.is_file()) == 0, f"left behind: {list(small.rglob('*'))}"
    for place in ("/proc/a", "/sys/a", "/dev/null/a"):
        attempts.must_fail(lambda: model.save_pretrained(place), place)
        attempts.must_fail(lambda: trainer.save(place + ".h5"), place)
        attempts.must_fail(lambda: model.export(place), place)
    model.save_pretrained(folder / "kept")
    kept = {p.name: p.read_bytes() for p in (folder / "kept").iterdir()}
    (folder / "kept.h5").write_bytes(b"here first")
    attempts.must_fail(lambda: model.save_pretrained(folder / "kept.h5" / "x"), "a file where a folder should be")
    assert {p.name: p.read_bytes() for p in (folder / "kept").iterdir()} == kept
    for budget in (1, 1000, 30_000, 100_000, 300_000):
        context = peftswift.Context(threads=2, memory_budget=budget)

        def work():
            m = peftswift.Model.from_pretrained(GOLDEN / "bases/llama", dtype="float32", context=context)
            m.add_adapter("default", LORA)
            m.trainer(lr=1e-3).step(input_ids=np.ones((8, 64), np.int64), labels=np.ones((8, 64), np.int64))

        attempts(work, f"a budget of {budget}")
        assert peftswift._library.decoded_json("peft_context_memory", context)["live"] == 0, f"budget {budget}: memory was lost"
    context = peftswift.Context(threads=1, memory_budget=1000)
    attempts.must_fail(lambda: peftswift.Tensors.from_arrays(context, {"x": np.zeros(1 << 20)}), "a budget of 1000")


FAMILIES = {f.__name__: f for f in (gguf, safetensors, config, index, adapter, hdf5, tokenizer, data, host)}

if __name__ == "__main__":
    family, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
    attempts = Attempts(folder)
    FAMILIES[family](attempts, folder, np.random.default_rng(seed))
    print(f"{family}: {attempts.refused} refused, {attempts.accepted} accepted")
    assert attempts.refused > 5
