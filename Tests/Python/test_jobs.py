"""Real jobs on real weights, each to a figure stated beforehand (Tests/Fixtures/Jobs/figures.json: PEFT's on the same data and split, from
the same start, or the base model's). What scripts/fetch_inputs.py has not fetched is skipped. Each takes less than three minutes on two processors
that multiply bf16, pictures up to ten where they do not."""

import json

import numpy as np
import pytest

from conftest import REAL_MODEL, ROOT
from peftswift import Model
from real_data import CACHE, TOPICS, batches, beginning, padded, recording, reuters, stamps, training_order, words

FIGURES = json.loads((ROOT / "Tests/Fixtures/Jobs/figures.json").read_text())


def needs(*names):
    missing = [name for name in names if not (CACHE / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not in .cache: scripts/fetch_inputs.py fetches it")


def learn(model, figure, count, batch):
    """Trains a new adapter on `count` samples as the figure's run did. `batch`: makes inputs of indices. Returns the losses."""
    model.add_adapter("default", figure["config"])
    model.load_adapter_state_dict("default", beginning(model.adapter_state_dict("default")))
    steps = list(training_order(count, figure["batch"], figure.get("epochs", 1)))
    trainer = model.trainer(lr=figure["lr"], lr_scheduler="linear", max_steps=len(steps))
    return np.array([trainer.step(**batch(some)) for some in steps])


def topics(model, figure, padding):
    """The share of test texts whose topic is found, and how far the losses of training were from PEFT's."""
    def rows(texts):
        return [model.tokenizer.encode(text)[:figure["length"]] for text in texts]

    (texts, labels), (tests, wanted) = reuters("train", figure["every"]), reuters("test", figure["every_test"])
    ids, tests = rows(texts), rows(tests)
    losses = learn(model, figure, len(ids), lambda some: next(batches(ids, labels, figure["batch"], padding, list(some))))
    right = sum(int((model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1) == batch["labels"]).sum())
                for batch in batches(tests, wanted, 32, padding))
    return right / len(tests), np.abs(losses - figure["losses"]).max()


# ---- MiniLM

MINILM = "all-MiniLM-L6-v2"


@needs(MINILM + "/model.safetensors")
def test_sentence_embeddings():
    """Those of sentence-transformers' pipeline over the package's model."""
    figures = FIGURES["embeddings"]
    model = Model.from_pretrained(CACHE / MINILM, dtype="float32")
    rows = [model.tokenizer.encode(text) for text in figures["texts"]]
    assert rows == figures["ids"]
    ids, mask = padded(rows, 0)
    got = model.embed(input_ids=ids, attention_mask=mask)
    assert np.abs(got[:, ::8] - np.array(figures["columns"])).max() < 2e-4 * np.abs(got).max()
    assert np.abs(got @ got.T - np.array(figures["similarity"])).max() < 1e-4
    assert np.abs((got * got).sum(1) - 1).max() < 1e-5


@needs(MINILM + "/model.safetensors", "reuters-r8-train.jsonl")
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_topics_with_minilm(method):
    figure = FIGURES[f"topics_minilm_{method}"]
    model = Model.from_pretrained(CACHE / MINILM, dtype="bfloat16", new_head={"type": "ForSequenceClassification", "num_labels": len(TOPICS)})
    share, distance = topics(model, figure, 0)
    print(f"Reuters R8, MiniLM with {method}: {share:.4f}; PEFT {figure['accuracy']:.4f}; losses within {distance:.4f}")
    assert share >= figure["accuracy"] - 0.01 and distance < 0.05


@needs(REAL_MODEL.name, "reuters-r8-train.jsonl")
def test_topics_with_smollm():
    """The quantised language model under a classifier's head; PEFT's run had the same weights in f32."""
    figure = FIGURES["topics_smollm"]
    model = Model.from_pretrained(REAL_MODEL, new_head={"type": "ForSequenceClassification", "num_labels": len(TOPICS)})
    share, distance = topics(model, figure, model.config["pad_token_id"])
    print(f"Reuters R8, SmolLM2 with LoRA: {share:.4f}; PEFT {figure['accuracy']:.4f}; losses within {distance:.4f}")
    assert share >= figure["accuracy"] - 0.01 and distance < 0.05


# ---- Whisper

WHISPER = "whisper-tiny.en"


@pytest.fixture(scope="module")
def whisper():
    return Model.from_pretrained(CACHE / WHISPER, dtype="float32")


def transcribed(model, features, suppressed):
    session = model.session(suppress_tokens=suppressed).read_source(input_features=features).append([50362])  # <|notimestamps|>
    return session.generate(120).strip()


@pytest.fixture(scope="module")
def suppressed():
    return json.loads((CACHE / WHISPER / "generation_config.json").read_text())["suppress_tokens"]


@needs(WHISPER + "/model.safetensors", "speech/Front_Center.wav", "speech/agent-pass.wav")
def test_transcribing(whisper, suppressed):
    """The same words as CTranslate2's and transformers' own runs over the same clips."""
    for clip, text in FIGURES["transcripts"].items():
        features = whisper.preprocess(recording(CACHE / "speech" / clip))["input_features"]
        assert transcribed(whisper, features, suppressed) == text.strip(), clip


@needs(WHISPER + "/model.safetensors", "speech/agent-pass.wav")
def test_learning_names(suppressed):
    """LoRA on eight prompts whose words the model misspells, among eight that it hears right; six others stay as they were."""
    figure = FIGURES["prompts"]
    model = Model.from_pretrained(CACHE / WHISPER, dtype="float32")
    texts = figure["learned"] | figure["rehearsed"]
    clips = {clip: model.preprocess(recording(CACHE / "speech" / clip))["input_features"] for clip in [*texts, *figure["kept"]]}
    before = {clip: transcribed(model, clips[clip], suppressed) for clip in figure["learned"]}
    assert all(before[clip] != text for clip, text in figure["learned"].items())
    names = sorted(texts)
    rows = [[50362, *model.tokenizer.encode(" " + texts[clip], add_special_tokens=False), 50256] for clip in names]
    losses = learn(model, figure, len(names), lambda some: {
        "input_features": np.concatenate([clips[names[i]] for i in some]), "labels": padded([rows[i] for i in some], -100)[0]})
    print(f"prompts: losses within {np.abs(losses - figure['losses']).max():.4f} of PEFT's")
    assert np.abs(losses - figure["losses"]).max() < 0.1
    for clip, text in figure["learned"].items():
        assert transcribed(model, clips[clip], suppressed) == text, clip
    for clip, text in figure["kept"].items():
        assert words(transcribed(model, clips[clip], suppressed)) == words(text), clip


# ---- ViT-S/14


@needs("vit-s14/model.safetensors", "stamps.npz")
def test_picture_features():
    """A real DINOv2 network over a real picture, as transformers computes it, at positions between those it learned."""
    figure = FIGURES["picture"]
    model = Model.from_pretrained(CACHE / "vit-s14", dtype="float32")
    pictures, _, _ = stamps()
    pixels = model.preprocess(pictures[figure["index"]])["pixel_values"]
    assert np.abs(pixels[0, :, ::16, ::16] - np.array(figure["pixels"])).max() < 0.02
    states = model(pixel_values=pixels).last_hidden_state[0]
    want = np.array(figure["states"])
    assert np.abs(states[::32, ::32] - want).max() < 2e-3 * np.abs(want).max()


@pytest.mark.parametrize("name", ["stamps_oft", "stamps_boft"])
@needs("vit-s14/model.safetensors", "stamps.npz")
def test_picture_categories(name):
    """Rotations of the last blocks beat what a ridge regression makes of the frozen network's features, and the 72 % it was known to."""
    figure = FIGURES[name]
    pictures, labels, is_training = stamps()
    model = Model.from_pretrained(CACHE / "vit-s14", dtype="bfloat16", new_head={"type": "ForImageClassification", "num_labels": int(labels.max()) + 1})
    pixels = np.concatenate([model.preprocess(picture)["pixel_values"] for picture in pictures])
    training, tests = np.flatnonzero(is_training), np.flatnonzero(~is_training)
    learn(model, figure, len(training), lambda some: {"pixel_values": pixels[training[some]], "labels": labels[training[some]]})
    found = np.concatenate([model(pixel_values=pixels[tests[i:i + 16]]).logits.argmax(-1) for i in range(0, len(tests), 16)])
    share = float((found == labels[tests]).mean())
    print(f"{name}, ViT-S/14: {share:.3f}; PEFT {figure['accuracy']:.3f}, ridge probe {figure['ridge']:.3f}")
    assert share > max(figure["ridge"], 0.72) and share >= figure["accuracy"] - 0.03


# ---- DistilBERT's tags


@needs("distilbert-tagger/model.safetensors")
def test_tags_of_a_quantised_base():
    """The package's int8 weights as they are: tags as its own, and a LoRA that learns a house rule on the frozen base."""
    figure = FIGURES["tags"]
    model = Model.from_pretrained(CACHE / "distilbert-tagger", dtype="float32")
    assert model.describe()["formats"]["int8"] >= 38
    names = model.config["id2label"]
    same = total = 0
    for text, tags in figure["sentences"]:
        found = model(input_ids=np.array([model.tokenizer.encode(text)])).logits[0].argmax(-1)
        assert len(found) == len(tags)
        same, total = same + sum(names[str(int(a))] == b for a, b in zip(found, tags)), total + len(tags)
    assert same / total > 0.97, (same, total)

    # The rule: "data" takes a plural here. Learned from some sentences, applied in others.
    label = model.config["label2id"][figure["rule"]["tag"]]
    keep = model.config["label2id"]["$KEEP"]

    def tagged(text):
        ids = model.tokenizer.encode(text)
        word = model.tokenizer.encode(figure["rule"]["word"], add_special_tokens=False)
        return ids, [label if ids[i:i + 1] == word and ids[i - 1] in subject else keep for i in range(len(ids))]

    subject = model.tokenizer.encode(figure["rule"]["after"], add_special_tokens=False)
    rows = [tagged(text) for text in figure["rule"]["training"]]
    model.add_adapter("default", {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_lin", "v_lin", "lin1", "lin2"], "modules_to_save": []})
    trainer = model.trainer(lr=2e-3)
    ids, mask = padded([row for row, _ in rows], 0)
    labels, _ = padded([tags for _, tags in rows], -100)
    for _ in range(15):
        loss = trainer.step(input_ids=ids, attention_mask=mask, labels=labels)
    assert loss < 0.05
    for text in figure["rule"]["heldout"]:
        ids, want = tagged(text)
        assert model(input_ids=np.array([ids])).logits[0].argmax(-1).tolist() == want, text
