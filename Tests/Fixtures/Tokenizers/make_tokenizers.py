"""Trains small tokenizers of each kind with HF `tokenizers` and SentencePiece and writes what they give for the hard texts.

    pip install tokenizers==0.23.3 transformers==5.23.0 sentencepiece protobuf
    python make_tokenizers.py

Writes <kind>.json (a tokenizer.json), <kind>.expected.json (ids and decoded texts) and texts.json beside this file.
"""
import glob
import io
import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from corpus import TEXTS

HERE = os.path.dirname(os.path.abspath(__file__))
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def training_texts():
    """English and code from the standard library, and the hard texts, so that some of their tokens are not just bytes."""
    import argparse
    import json.decoder
    import textwrap
    files = [argparse.__file__, textwrap.__file__, json.decoder.__file__]
    return [open(f, encoding="utf-8").read() for f in files] + TEXTS * 3


def byte_level(pre, normalizer=None, post=None, specials=CHATML, ignore_merges=False, size=700):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(training_texts(), trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False))
    if post:
        tokenizer.post_processor = post(tokenizer)
    return tokenizer


def pieces(*steps):
    return pre_tokenizers.Sequence(list(steps))


def cut(pattern):
    return pieces(pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))


def template(token, after=None):
    single = f"{token} $A" + (f" {after}" if after else "")
    return lambda t: processors.TemplateProcessing(single=single, special_tokens=[(x, t.token_to_id(x)) for x in [token, after] if x])


def gpt2():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), specials=["<|endoftext|>"], post=lambda t: processors.ByteLevel(trim_offsets=False))
    tokenizer.add_tokens([AddedToken("<LSTRIP>", lstrip=True), AddedToken("<RSTRIP>", rstrip=True), AddedToken("<BOTH>", lstrip=True, rstrip=True), AddedToken("<SINGLE>", single_word=True)])
    return tokenizer


def gpt4o():
    tokenizer = byte_level(cut(GPT4O), post=template("<|endoftext|>", "<|im_end|>"))
    return tokenizer


def llama3():
    return byte_level(cut(LLAMA3), specials=["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], ignore_merges=True,
                      post=lambda t: processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<|begin_of_text|>")(t)]))


def smollm():
    return byte_level(pieces(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)))


def misc():
    """Components that few models use, together."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=False, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFD(), normalizers.StripAccents(), normalizers.Strip(), normalizers.Replace(Regex(r"\s{2,}"), " ")])
    tokenizer.pre_tokenizer = pieces(pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.Split("e", "merged_with_next"), pre_tokenizers.Split(Regex("[rst]+"), "contiguous", invert=True), pre_tokenizers.Punctuation("merged_with_previous"))
    tokenizer.train_from_iterator(training_texts()[:2], trainers.BpeTrainer(vocab_size=400, special_tokens=["[UNK]"], end_of_word_suffix="</w>", limit_alphabet=60, show_progress=False))
    tokenizer.add_tokens([AddedToken("<Norme>", normalized=True), AddedToken("normé", normalized=True, single_word=True)])
    return tokenizer


def roberta():
    """A prefix space, and special tokens on both sides."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), specials=["<s>", "</s>"], size=500)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def bert():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=60))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.train_from_iterator(training_texts(), trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], limit_alphabet=200, show_progress=False))
    tokenizer.post_processor = template("[CLS]", "[SEP]")(tokenizer)
    return tokenizer


def sentencepiece_model():
    """(pieces, scores, types) of a BPE model with byte fallback, and SentencePiece's own ids for the texts."""
    import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in training_texts() for line in text.split("\n") if line and "\0" not in line]), model_writer=model, model_type="bpe", vocab_size=1200, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.98, minloglevel=2, num_threads=1)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = range(sp.get_piece_size())
    kinds = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in count]
    return [sp.id_to_piece(i) for i in count], [sp.get_score(i) for i in count], kinds, sp


def llama_merges(tokens, scores, kinds):
    """Every way to cut a piece in two, best score first: what transformers writes into Llama's tokenizer.json."""
    ids = {t: i for i, t in enumerate(tokens)}
    merges = []
    for i, token in enumerate(tokens):
        if kinds[i] == 1:
            merges += [(scores[i], token[:k], token[k:]) for k in range(1, len(token)) if token[:k] in ids and token[k:] in ids]
    merges.sort(key=lambda m: (-m[0], ids[m[1]], ids[m[2]]))
    return [(a, b) for _, a, b in merges]


def llama2(parts, kind):
    tokens, scores, kinds, _ = parts
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=llama_merges(tokens, scores, kinds), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)])
    elif kind == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)])
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
        tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always", split=True)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.decoder = decoders.Sequence(back)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = template("<s>")(tokenizer)
    return tokenizer


def write(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def main():
    for old in glob.glob(os.path.join(HERE, "*.json")):
        if not any(other in old for other in ["templates", "smollm2", "t5", "xlm"]):
            os.remove(old)
    write("texts.json", TEXTS)
    parts = sentencepiece_model()
    kinds = {"gpt2": gpt2(), "smollm": smollm(), "llama3": llama3(), "qwen2": byte_level(cut(QWEN2), normalizer=normalizers.NFC()), "gpt4o": gpt4o(), "misc": misc(), "roberta": roberta(), "bert": bert()}
    kinds |= {kind: llama2(parts, kind) for kind in ["llama2", "mistral", "metaspace", "gemma"]}
    shared = None
    for name, tokenizer in kinds.items():
        definition = json.loads(tokenizer.to_str())
        if name in ["llama2", "mistral", "metaspace", "gemma"]:  # one vocabulary for four: kept once
            model = definition["model"]
            if shared is None:
                write("sentencepiece.model.json", {"vocab": model.pop("vocab"), "merges": [" ".join(m) for m in model.pop("merges")], "scores": parts[1], "types": parts[2]})
                shared = True
            else:
                model.pop("vocab"), model.pop("merges")
        write(f"{name}.json", definition)
        ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]
        write(f"{name}.expected.json", {
            "ids": ids, "special": tokenizer.encode("Hi you", add_special_tokens=True).ids,
            "decoded": [None if d == t else d for t, d in ((t, tokenizer.decode(i, skip_special_tokens=False)) for t, i in zip(TEXTS, ids))],
            "skipped": {str(n): tokenizer.decode(i, skip_special_tokens=True) for n, i in enumerate(ids) if tokenizer.decode(i, skip_special_tokens=True) != tokenizer.decode(i, skip_special_tokens=False)},
            "offsets": {str(n): tokenizer.encode(t, add_special_tokens=False).offsets for n, t in enumerate(TEXTS) if t.isascii() and n % 5 == 0}})
    # SentencePiece knows no added tokens within a text, and its trainer's symbols may not be in it.
    plain = [n for n, t in enumerate(TEXTS) if t and "<" not in t and "▁" not in t and "\0" not in t]
    write("sentencepiece.expected.json", {str(n): parts[3].encode(TEXTS[n]) for n in plain})
    # Garbled ids: any order of tokens has to decode.
    import random
    generator = random.Random(3)
    garbled = {name: [[i, kinds[name].decode(i, skip_special_tokens=False)] for i in ([generator.randrange(kinds[name].get_vocab_size()) for _ in range(20)] for _ in range(10))] for name in ["smollm", "llama2", "gemma"]}
    write("garbled.json", garbled)


if __name__ == "__main__":
    main()
