"""Conversations: a KV cache, a sampler, a choice of adapters."""

import ctypes as c

from ._library import (DONE, I32, TEXT_CALLBACK, TEXTS_CALLBACK, Cancelled, Handle, Tensors, c_floats, c_ids, c_names, c_number, call, call_ids,
                       decoded_json, encoded_json, interruptible)


class Session(Handle):
    """Made by ``model.session(temperature=…, context_length=…, stop=[…], adapters=[…])``."""

    kind = "session"

    @classmethod
    def create(cls, model, **options):
        session = cls.make("peft_session_create", model, encoded_json(options))
        session.model = model
        return session

    def append(self, text_or_ids, add_special_tokens=True):
        """Reads a string or token ids; nothing is sampled."""
        if isinstance(text_or_ids, str):
            data = text_or_ids.encode("utf-8", errors="surrogatepass")
            call("peft_session_append_text", self, data, len(data), int(add_special_tokens))
        else:
            call("peft_session_append", self, *c_ids(text_or_ids))
        return self

    def read_source(self, **inputs):
        """What an encoder-decoder's encoder reads: input_features [1, …] of a recording (``model.preprocess``), or input_ids [1, length]."""
        call("peft_session_read_source", self, Tensors.from_arrays(self.model.context, inputs))
        return self

    def append_chat(self, messages):
        """Reads a conversation up to the start of the assistant's next turn; what is known already is not read again."""
        call("peft_session_append_chat", self, encoded_json(messages))
        return self

    def _next(self):
        token, buffer, needed = I32(), c.create_string_buffer(4096), c.c_size_t()
        code = call("peft_session_next", c.byref(token), buffer, len(buffer), c.byref(needed), self)
        return token.value, buffer.raw[: needed.value].decode(), code == DONE

    def tokens(self, max_new_tokens):
        """Pulls token after token."""
        for _ in range(max_new_tokens):
            token, _, is_end = self._next()
            if token >= 0:
                yield token
            if is_end:
                return

    def stream(self, max_new_tokens=256):
        """Pulls pieces of text."""
        for _ in range(max_new_tokens):
            _, text, is_end = self._next()
            if text:
                yield text
            if is_end:
                return

    def generate(self, max_new_tokens=256, on_text=None):
        """The text of up to ``max_new_tokens`` tokens; ``on_text(piece)`` sees it as it is made and stops it by returning False."""
        pieces, failure = [], []

        def receive(_, data, size):
            try:
                piece = c.string_at(data, size).decode()
                pieces.append(piece)
                return int(on_text is not None and on_text(piece) is False)
            except BaseException as error:  # An exception cannot cross the C frames: it is raised below.
                failure.append(error)
                return 1

        try:
            with interruptible(self.cancel):
                call("peft_session_generate", self, c_number(max_new_tokens, "max_new_tokens", 0, 2**63 - 1), TEXT_CALLBACK(receive), None)
        except Cancelled:
            if failure:
                raise failure[0] from None
        return "".join(pieces)

    def chat(self, messages, max_new_tokens=256, on_text=None):
        """Answers a conversation."""
        return self.append_chat(messages).generate(max_new_tokens, on_text)

    def set_adapters(self, names, weights=None):
        """Adapters for this session alone; an empty list is the base model."""
        names, count = c_names(names)
        call("peft_session_set_adapters", self, names, c_floats(weights, count), count)

    def configure(self, **options):
        call("peft_session_configure", self, encoded_json(options))

    def rewind(self, keep):
        call("peft_session_rewind", self, c_number(keep, "keep", 0, 2**63 - 1))

    def fork(self):
        """A copy that goes its own way from here."""
        copy = Session.make("peft_session_fork", self)
        copy.model = self.model
        return copy

    def logits(self):
        """Logits of the next token, f32 [vocabulary]."""
        return Tensors.make("peft_session_logits", self).get("logits")

    def token_ids(self):
        return call_ids("peft_session_tokens", self)

    def describe(self):
        return decoded_json("peft_session_describe", self)

    def cancel(self):
        """From any thread: ends the running call."""
        call("peft_session_cancel", self)

    @staticmethod
    def step(sessions):
        """One token for each of several sessions of a model, in one pass over its weights: ``[(token or None, text), …]``.

        None: that session's answer had ended before.
        """
        tokens, texts = (I32 * len(sessions))(), [""] * len(sessions)

        def receive(_, index, data, size):
            texts[index] += c.string_at(data, size).decode()
            return 0

        handles = (c.c_void_p * len(sessions))(*[session._as_parameter_.value for session in sessions])
        call("peft_sessions_next", tokens, handles, len(sessions), TEXTS_CALLBACK(receive), None)
        return [(None if token < 0 else token, text) for token, text in zip(tokens, texts)]
