"""Text to token ids and back."""

from ._library import Context, Handle, c_ids, call_ids, call_text, decoded_json, encoded_json, encoded_path


class Tokenizer(Handle):
    """``Tokenizer.from_pretrained(path)``: a tokenizer.json, its folder, or a GGUF file."""

    kind = "tokenizer"

    @classmethod
    def from_pretrained(cls, path, context=None):
        return cls.make("peft_tokenizer_open", context or Context(threads=1), encoded_path(path))

    def _describe(self):
        return decoded_json("peft_tokenizer_describe", self)

    def __getattr__(self, name):
        """vocabulary_size, bos_token_id, eos_token_id, eos_token_ids, pad_token_id, unk_token_id"""
        description = self._describe() if not name.startswith("_") else {}
        if name in description:
            return description[name]
        raise AttributeError(name)

    def encode(self, text, add_special_tokens=True):
        """Token ids of a string, as a list."""
        data = text.encode("utf-8", errors="surrogatepass")
        return call_ids("peft_tokenizer_encode", self, data, len(data), int(add_special_tokens))

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": self.encode(text, add_special_tokens)}

    def decode(self, ids, skip_special_tokens=False):
        """The text of token ids."""
        return call_text("peft_tokenizer_decode", self, *c_ids(ids), int(skip_special_tokens))

    def apply_chat_template(self, messages, add_generation_prompt=False, tokenize=False, chat_template=None, **variables):
        """The model's chat template (or ``chat_template``) applied to ``[{"role", "content"}, …]``; ids with ``tokenize=True``."""
        options = {"add_generation_prompt": add_generation_prompt, **variables}
        if chat_template is not None:
            options["chat_template"] = chat_template
        text = call_text("peft_tokenizer_chat", self, encoded_json(messages), encoded_json(options))
        return self.encode(text, add_special_tokens=False) if tokenize else text


