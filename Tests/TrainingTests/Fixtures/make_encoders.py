"""encoders.json: what transformers computes (f32, eager attention) on tiny encoders and their heads, and the DistilBERT folder they lack.

    /path/to/venv/bin/python make_encoders.py        # transformers 5.23.0, torch; the other bases are Tests/Golden/data/bases
"""
import json
from pathlib import Path

import torch
import transformers as t

HERE = Path(__file__).resolve().parent
BASES = HERE.parents[1] / "Golden" / "data" / "bases"
IDS = [[5, 9, 33, 2, 71, 8], [7, 40, 3, 17, 60, 44]]
MASK = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]


def distilbert():
    torch.manual_seed(3)
    config = t.DistilBertConfig(vocab_size=96, dim=32, n_heads=4, n_layers=2, hidden_dim=64, max_position_embeddings=40, dropout=0.0, attention_dropout=0.0,
                                seq_classif_dropout=0.0, num_labels=3)
    model = t.DistilBertForSequenceClassification(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(HERE / "distilbert_cls")


def run(name, cls, folder, ids, **inputs):
    model = getattr(t, cls).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(MASK), **{k: torch.tensor(v) for k, v in inputs.items()})
    kept = {k: out[k].detach().flatten().tolist() for k in ("logits", "start_logits", "end_logits", "pooler_output", "loss") if out.get(k) is not None}
    return {"base": name, "input_ids": sum(ids, []), **{k: v for k, v in inputs.items()}, "expected": kept}


def main():
    distilbert()
    # The padding of RoBERTa has the id 1: positions are counted without it.
    roberta = [IDS[0], IDS[1][:4] + [1, 1]]
    cases = [
        run("bert", "BertModel", BASES / "bert", IDS, token_type_ids=[[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]]),
        run("bert_qa", "BertForQuestionAnswering", BASES / "bert_qa", IDS, start_positions=[1, 2], end_positions=[3, 9]),
        run("bert_tok", "BertForTokenClassification", BASES / "bert_tok", IDS, labels=[[0, 1, 2, -100, 1, 0], [2, 2, 1, 0, -100, -100]]),
        run("roberta_cls", "RobertaForSequenceClassification", BASES / "roberta_cls", roberta, labels=[2, 0]),
        run("roberta_cls", "RobertaForSequenceClassification", BASES / "roberta_cls", roberta, labels=[[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        run("distilbert_cls", "DistilBertForSequenceClassification", HERE / "distilbert_cls", IDS, labels=[1, 0]),
    ]
    (HERE / "encoders.json").write_text(json.dumps(cases) + "\n")


main()
