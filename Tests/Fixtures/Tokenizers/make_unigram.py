"""Trains a small Unigram model with SentencePiece, with compiled rules, and writes what HF `tokenizers` gives for the hard texts.

    pip install tokenizers==0.23.3 sentencepiece protobuf
    python make_unigram.py

Writes t5.json (as T5's converters make it), xlm.json (one piece for all, bytes for what is unknown) and their .expected.json.
"""
import io
import json
import os
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from corpus import TEXTS
from make_tokenizers import training_texts, write

# What the compiled rules replace: ligatures, full-width letters, a decomposed é, a fraction; control characters go.
RULES = {"\ufb01": "fi", "\ufb02": "fl", "\uff21": "A", "\uff42": "b", "\u2460": "1", "\u00bd": "1/2", "e\u0301": "\u00e9", "o\u0308": "\u00f6", "\u3000": " ",
         "\u00a0": " ", "\u200b": " ", "\x01": "", "\u2026": "..."}


def model(byte_fallback):
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for source, target in RULES.items():
            rules.write(" ".join(f"{ord(c):X}" for c in source) + "\t" + " ".join(f"{ord(c):X}" for c in target) + "\n")
        rules.flush()
        out = io.BytesIO()
        lines = [line for text in training_texts() for line in text.splitlines() if line.strip()]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=out, model_type="unigram", vocab_size=600 if not byte_fallback else 700, character_coverage=0.98,
            normalization_rule_tsv=rules.name, byte_fallback=byte_fallback, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(out.getvalue())
    return proto


def tokenizer(proto, byte_fallback):
    t = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=2, byte_fallback=byte_fallback))
    t.normalizer = normalizers.Sequence([normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=not byte_fallback)
    t.pre_tokenizer = space if byte_fallback else pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    metaspace = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    t.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if byte_fallback else metaspace
    t.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in ["<pad>", "</s>", "<unk>"]])
    t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return t


def main():
    extra = ["\ufb01nd \uff21\uff42\u2460\u00bd cafe\u0301 \u2026", "zo\u0308o \x01 x\u00a0y  z", "translate English to German: The house is wonderful."]
    for name, byte_fallback in [("t5", False), ("xlm", True)]:
        t = tokenizer(model(byte_fallback), byte_fallback)
        write(f"{name}.json", json.loads(t.to_str()))
        ids = [t.encode(x, add_special_tokens=False).ids for x in TEXTS]
        decoded = [[t.decode(i, skip_special_tokens=skips) for i in ids] for skips in [False, True]]
        write(f"{name}.expected.json", {
            "ids": ids, "special": t.encode("Hi you", add_special_tokens=True).ids, "decoded": decoded[0],
            "skipped": {str(n): b for n, (a, b) in enumerate(zip(*decoded)) if a != b},
            "normalized": [[x, t.encode(x, add_special_tokens=False).ids] for x in extra]})


if __name__ == "__main__":
    main()
