"""Ids of the real SmolLM2 tokenizer for the hard texts: smollm2.expected.json beside this file.

    pip install transformers==5.23.0 torch gguf
    python make_smollm2.py FOLDER FILE.gguf [tokenizer.json to write]
"""
import json
import os
import sys

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from corpus import TEXTS

HERE = os.path.dirname(os.path.abspath(__file__))

if __name__ == "__main__":
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], gguf_file=sys.argv[2])
    # transformers forgets what the file's tokenizer.ggml.pre = "smollm" says and SmolLM2's own tokenizer.json has:
    # every digit stands alone. Without it " ½" and other digits beyond ASCII get other tokens.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    with open(os.path.join(HERE, "smollm2.expected.json"), "w", encoding="utf-8") as file:
        json.dump({"ids": ids, "chat": tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)}, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
    if len(sys.argv) > 3:
        tokenizer.backend_tokenizer.save(sys.argv[3])
