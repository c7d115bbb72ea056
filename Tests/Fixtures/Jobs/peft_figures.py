"""Figures of the jobs (Tests/Python/test_jobs.py), by PEFT, transformers and torch over the same files: writes them into figures.json.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 safetensors numpy pillow      (names of jobs; none: all)
    python peft_figures.py [embeddings topics_minilm_lora topics_minilm_ia3 topics_smollm prompts picture stamps_oft stamps_boft]

Adapters begin where the jobs' do (real_data.beginning), see the same batches in the same order, and nothing is dropped.
"""
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers as t
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "Python"))
from real_data import CACHE, TOPICS, batches, beginning, padded, recording, reuters, ridge, stamps, training_order, words  # noqa: E402

FIGURES = json.loads((HERE / "figures.json").read_text())
torch.manual_seed(0)
torch.set_num_threads(int(os.environ.get("THREADS", "2")))

TEXTS = ["The cat sits on the mat.", "A kitten rests on a rug.", "Quarterly earnings rose by twelve percent.", "How do I reset my password?", "Wie setze ich mein Passwort zurück?"]


def adapted(model, figure):
    config = {k: v for k, v in figure["config"].items() if k != "peft_type"}
    model = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[figure["config"]["peft_type"]](**config))
    state = get_peft_model_state_dict(model)
    set_peft_model_state_dict(model, {**state, **{key: torch.as_tensor(value) for key, value in beginning(state).items()}})
    return model


def train(model, steps, lr):
    """steps: functions that give a batch. Returns their losses."""
    losses = []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0)
    schedule = t.get_linear_schedule_with_warmup(optimizer, 0, len(steps))
    for number, make in enumerate(steps):
        loss = model(**{k: v if isinstance(v, tuple) else torch.as_tensor(v) for k, v in make().items()}).loss
        loss.backward()
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        losses.append(round(loss.item(), 5))
        if number % 20 == 0:
            print(f"  {number}/{len(steps)} loss {loss.item():.3f}", flush=True)
    return losses


@torch.no_grad()
def accuracy(model, rows, labels, padding):
    right = 0
    for batch in batches(rows, labels, 64, padding):
        right += int((model(**{k: torch.as_tensor(v) for k, v in batch.items() if k != "labels"}).logits.argmax(-1).numpy() == batch["labels"]).sum())
    return right / len(rows)


def topics(name, model, tokenizer, padding):
    figure = FIGURES[name]
    encode = lambda text: tokenizer(text)["input_ids"][:figure["length"]]  # noqa: E731
    (texts, labels), (tests, wanted) = reuters("train", figure["every"]), reuters("test", figure["every_test"])
    rows = [encode(text) for text in texts]
    model = adapted(model, figure).eval()
    steps = [lambda some=some: next(batches(rows, labels, figure["batch"], padding, list(some))) for some in training_order(len(rows), figure["batch"])]
    figure["losses"] = train(model, steps, figure["lr"])
    figure["accuracy"] = accuracy(model, [encode(text) for text in tests], wanted, padding)


def minilm(name):
    folder = CACHE / "all-MiniLM-L6-v2"
    topics(name, t.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(TOPICS)), t.AutoTokenizer.from_pretrained(folder), 0)


def smollm(name):
    """The same quantised weights, in f32."""
    file = {"pretrained_model_name_or_path": CACHE, "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    model = t.AutoModelForSequenceClassification.from_pretrained(**file, num_labels=len(TOPICS), dtype=torch.float32)
    tokenizer = t.AutoTokenizer.from_pretrained(**file)
    model.config.pad_token_id = tokenizer.pad_token_id
    topics(name, model, tokenizer, tokenizer.pad_token_id)


@torch.no_grad()
def embeddings(name):
    folder = CACHE / "all-MiniLM-L6-v2"
    model, tokenizer = t.AutoModel.from_pretrained(folder).eval(), t.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    ids, mask = padded(rows, 0)
    mask = torch.as_tensor(mask)
    states = model(input_ids=torch.as_tensor(ids), attention_mask=mask).last_hidden_state * mask[..., None]
    sentences = torch.nn.functional.normalize(states.sum(1) / mask.sum(1, keepdim=True))
    FIGURES[name] = {"texts": TEXTS, "ids": rows, "columns": sentences[:, ::8].numpy().round(7).tolist(), "similarity": (sentences @ sentences.T).numpy().round(6).tolist()}


def prompts(name):
    """How many of the learned prompts and of those that are to stay are right. The encoder, which nothing adapts, runs once."""
    figure, folder = FIGURES[name], CACHE / "whisper-tiny.en"
    model, tokenizer, extractor = t.WhisperForConditionalGeneration.from_pretrained(folder), t.AutoTokenizer.from_pretrained(folder), t.WhisperFeatureExtractor.from_pretrained(folder)
    suppressed = json.loads((folder / "generation_config.json").read_text())["suppress_tokens"]
    texts = figure["learned"] | figure["rehearsed"]
    with torch.no_grad():
        states = {clip: model.model.encoder(extractor(recording(CACHE / "speech" / clip), sampling_rate=16000, return_tensors="pt").input_features).last_hidden_state
                  for clip in [*texts, *figure["kept"]]}
    model, names = adapted(model, figure).eval(), sorted(texts)
    rows = [[50362, *tokenizer.encode(" " + texts[clip], add_special_tokens=False), 50256] for clip in names]
    steps = [lambda some=some: {"encoder_outputs": (torch.cat([states[names[i]] for i in some]),), "labels": padded([rows[i] for i in some], -100)[0]}
             for some in training_order(len(names), figure["batch"], figure["epochs"])]
    figure["losses"] = train(model, steps, figure["lr"])

    @torch.no_grad()
    def transcribed(clip):
        ids = [50257, 50362]
        while ids[-1] != 50256 and len(ids) < 120:
            logits = model(decoder_input_ids=torch.tensor([ids]), encoder_outputs=(states[clip],)).logits[0, -1]
            logits[suppressed] = -1e9
            ids.append(int(logits.argmax()))
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    figure["right"] = {part: sum(same(transcribed(clip)) == same(text) for clip, text in figure[part].items()) for part, same in (("learned", str), ("kept", words))}


def pixels(pictures):
    from PIL import Image

    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return np.stack([((np.asarray(Image.fromarray(p).resize((224, 224), 3)).astype(np.float32) / 255 - mean) / deviation).transpose(2, 0, 1) for p in pictures])


@torch.no_grad()
def picture(name):
    pictures, _, _ = stamps()
    model, values = t.Dinov2Model.from_pretrained(CACHE / "vit-s14", attn_implementation="eager").eval(), pixels(pictures[5:6])
    states = model(pixel_values=torch.as_tensor(values)).last_hidden_state[0].numpy()
    FIGURES[name] = {"index": 5, "pixels": values[0, :, ::16, ::16].round(5).tolist(), "states": states[::32, ::32].round(5).tolist()}


class Through(torch.nn.Module):
    """In the place of blocks that ran already."""

    def forward(self, x, *_, **__):
        return x


def keep_butterflies():
    """PEFT makes BOFT's block-diagonal matrices by a CUDA extension, and without it leaves out all factors but the first. torch makes the same."""
    from peft.tuners.boft import layer
    layer.get_fbd_cuda = lambda: True
    layer.FastBlockDiag = SimpleNamespace(apply=lambda factors: torch.stack([torch.block_diag(*blocks) for blocks in factors]))


def pictures_job(name):
    """The blocks that nothing adapts run once for each picture."""
    keep_butterflies()
    figure = FIGURES[name]
    pictures, labels, is_training = stamps()
    values, indices, tests = pixels(pictures), np.flatnonzero(is_training), np.flatnonzero(~is_training)
    with torch.no_grad():
        bare, states = t.Dinov2Model.from_pretrained(CACHE / "vit-s14").eval(), []
        bare.encoder.layer[figure["frozen_blocks"]].register_forward_pre_hook(lambda _, given: states.append(given[0].numpy()))
        features = np.concatenate([bare(pixel_values=torch.as_tensor(values[i:i + 16])).pooler_output.numpy() for i in range(0, len(values), 16)])
    figure["ridge"] = float((ridge(features[indices], labels[indices], features[tests]) == labels[tests]).mean())
    values = np.concatenate(states)
    model = t.Dinov2ForImageClassification.from_pretrained(CACHE / "vit-s14", num_labels=int(labels.max()) + 1)
    model.dinov2.embeddings = Through()
    for block in range(figure["frozen_blocks"]):
        model.dinov2.encoder.layer[block] = Through()
    model = adapted(model, figure)
    steps = [lambda some=some: {"pixel_values": values[indices[some]], "labels": labels[indices[some]]} for some in training_order(len(indices), figure["batch"], figure["epochs"])]
    train(model, steps, figure["lr"])
    with torch.no_grad():
        found = np.concatenate([model(pixel_values=torch.as_tensor(values[tests[i:i + 16]])).logits.argmax(-1).numpy() for i in range(0, len(tests), 16)])
    figure["accuracy"] = float((found == labels[tests]).mean())


JOBS = {"embeddings": embeddings, "topics_minilm_lora": minilm, "topics_minilm_ia3": minilm, "topics_smollm": smollm, "prompts": prompts, "picture": picture,
        "stamps_oft": pictures_job, "stamps_boft": pictures_job}

if __name__ == "__main__":
    for name in sys.argv[1:] or JOBS:
        begin = time.time()
        JOBS[name](name)
        current = json.loads((HERE / "figures.json").read_text())
        current[name] = FIGURES[name]
        (HERE / "figures.json").write_text(json.dumps(current, indent=1, ensure_ascii=False) + "\n")
        print(name, {k: v for k, v in FIGURES[name].items() if k in ("accuracy", "ridge", "right")}, f"{time.time() - begin:.0f} s", flush=True)
