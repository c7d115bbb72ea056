"""Real data of the jobs (scripts/fetch_inputs.py), the same for this library and for PEFT (Tests/Fixtures/Jobs/peft_figures.py). numpy only."""

import json
import re
import wave
from pathlib import Path

import numpy as np

CACHE = Path(__file__).resolve().parents[2] / ".cache"
TOPICS = ["acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"]


def reuters(part, every=1, offset=0):
    """Texts and topics (numbers) of Reuters R8's official split; every n-th."""
    rows = [json.loads(line) for line in (CACHE / f"reuters-r8-{part}.jsonl").read_text().splitlines()][offset::every]
    return [row["text"] for row in rows], np.array([TOPICS.index(row["label"]) for row in rows])


def padded(rows, padding):
    """Lists of ids as input_ids and attention_mask, filled up on the right."""
    width = max(len(row) for row in rows)
    return (np.array([row + [padding] * (width - len(row)) for row in rows]), np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows]))


def batches(rows, labels, size, padding, order=None):
    """Inputs of a classifier, batch by batch; texts of a batch are about as long where no order is given."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if order is None else order
    for start in range(0, len(order), size):
        some = order[start:start + size]
        ids, mask = padded([rows[i] for i in some], padding)
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels[some]}


def training_order(count, size, epochs=1, seed=0):
    """Batches of indices, shuffled; the rest of an epoch that is no whole batch is left out."""
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(count)
        yield from (order[start:start + size] for start in range(0, count - size + 1, size))


def beginning(state, seed=0):
    """The same start for both: what of an adapter's state is random at first (lora_A, a new head), drawn by numpy in the order of the keys."""
    random, drawn = np.random.default_rng(seed), {}
    for key in sorted(state):
        shape = tuple(state[key].shape)
        if "lora_A" in key:
            drawn[key] = (random.uniform(-1, 1, shape) / np.sqrt(shape[1])).astype(np.float32)
        elif key.endswith((".classifier.weight", ".score.weight")):
            drawn[key] = random.normal(0, 0.02, shape).astype(np.float32)
    return drawn


def recording(path, rate=16000):
    """A WAV file's samples as f32 in −1…1 at another rate (through the spectrum)."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels()).mean(1) / 32768
        count = round(len(samples) * rate / file.getframerate())
    spectrum, result = np.fft.rfft(samples), np.zeros(count // 2 + 1, complex)
    kept = min(len(spectrum), len(result))
    result[:kept] = spectrum[:kept]
    return (np.fft.irfft(result, count) * count / len(samples)).astype(np.float32)


def words(text):
    return re.findall(r"\w+", text.lower())


def stamps():
    """Pictures (u8 [height, width, 3] each), their categories, and which are for training: two of three, by a fixed shuffle."""
    file = np.load(CACHE / "stamps.npz")
    labels = file["labels"]
    pictures = [file[f"picture{i}"] for i in range(len(labels))]
    is_training = np.ones(len(labels), bool)
    random = np.random.default_rng(0)
    for category in range(labels.max() + 1):
        members = random.permutation(np.flatnonzero(labels == category))
        is_training[members[: len(members) // 3]] = False
    return pictures, labels, is_training


def ridge(train, labels, test, penalty=1.0):
    """Classes of `test` by ridge regression on one-hot labels: what features know without any training of theirs."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    x, z = (np.c_[(part - mean) / deviation, np.ones(len(part))] for part in (train, test))
    targets = np.eye(labels.max() + 1)[labels]
    return (z @ np.linalg.solve(x.T @ x + penalty * len(x) * 0.1 * np.eye(x.shape[1]), x.T @ targets)).argmax(1)
