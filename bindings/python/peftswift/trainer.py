"""Training an adapter, step by step or over a data set."""

import ctypes as c
import json

from ._library import (DONE, F64, TRAINING_CALLBACK, Cancelled, Handle, Step, Tensors, c_names, c_number, call, decoded_json, encoded_json, encoded_path, interruptible)


class Dataset(Handle):
    """Training text from a file: JSONL (messages, prompt/completion, text), CSV, or plain text."""

    kind = "dataset"

    @classmethod
    def open(cls, tokenizer, path, **options):
        """Options: peft_dataset_open (max_length, batch_size, packing, shuffle, seed, loss_on, holdout, split …)."""
        return cls.make("peft_dataset_open", tokenizer, encoded_path(path), encoded_json(options))

    @classmethod
    def from_text(cls, tokenizer, text, **options):
        data = text.encode()
        return cls.make("peft_dataset_open_memory", tokenizer, data, len(data), encoded_json(options))

    @classmethod
    def from_messages(cls, tokenizer, conversations, **options):
        """A list of conversations, each a list of {"role", "content"}."""
        return cls.from_text(tokenizer, "".join(json.dumps({"messages": m}) + "\n" for m in conversations), format="jsonl", **options)

    def describe(self):
        return decoded_json("peft_dataset_describe", self)

    def __iter__(self):
        """One epoch of batches ({name: array})."""
        while (batch := Tensors.make("peft_dataset_next", self)) is not None:
            yield batch.arrays()


class Trainer(Handle):
    """Made by ``model.trainer(lr=…, lr_scheduler=…, …)``."""

    kind = "trainer"

    @classmethod
    def create(cls, model, **options):
        if "betas" in options:
            options["betas"] = list(options["betas"])
        # As a bare torch optimizer: nothing happens to gradients and rates unless it is asked for. (The C interface's own
        # defaults are those of transformers' Trainer: clipping at 1, a linear schedule.) And as in a loop of one's own, dropout and
        # noise act in ``step`` after ``model.train()``; ``run`` and ``advance`` always train.
        options = {"max_grad_norm": None, "lr_scheduler": "constant", "dropout": "mode", **options}
        trainer = cls.make("peft_trainer_create", model, encoded_json(options))
        trainer.model, trainer.last_step = model, None
        return trainer

    def step(self, adapter_names=None, **inputs):
        """One micro-batch; returns its loss. An update follows after gradient_accumulation_steps calls.

        adapter_names: one adapter per row, "__base__" for none, where several learn at once (``model.trainer(adapters=[…])``).
        """
        step = Step(struct_size=c.sizeof(Step))
        if adapter_names is None:
            call("peft_trainer_step", c.byref(step), self, self.model._tensors(inputs))
        else:
            call("peft_trainer_step_rows", c.byref(step), self, self.model._tensors(inputs), *c_names(adapter_names))
        self.last_step = step
        return step.loss

    def update(self):
        """Updates by the gradients that ``Pass.backward`` gathered; returns what it did."""
        step = Step(struct_size=c.sizeof(Step))
        call("peft_trainer_update", c.byref(step), self)
        self.last_step = step
        return step

    def gathered_gradients(self, clear=False):
        """The gradients gathered so far, by saved key: for an optimizer of one's own."""
        return Tensors.make("peft_trainer_gradients", self, int(clear)).arrays()

    def run(self, dataset, evaluation=None, progress=True):
        """Trains over a data set. ``progress``: True (a bar), False, or a function of a Progress record that stops the run by returning False.

        Returns True when the run is complete, False when it was stopped (the adapter is usable either way).
        """
        report, finish = (_bar() if progress is True else (progress or None, lambda: None))
        failure = []

        def receive(_, record):
            try:
                return int(report(record.contents) is False) if report else 0
            except BaseException as error:  # An exception cannot cross the C frames: it is raised below.
                failure.append(error)
                return 1

        try:
            with interruptible(self.cancel):
                call("peft_trainer_run", self, dataset, evaluation, TRAINING_CALLBACK(receive), None)
            return True
        except Cancelled:
            if failure:
                raise failure[0] from None
            return False
        finally:
            finish()

    def advance(self, dataset, seconds):
        """Trains for about ``seconds``; returns True when the run is complete."""
        step = Step(struct_size=c.sizeof(Step))
        code = call("peft_trainer_advance", c.byref(step), self, dataset, seconds)
        self.last_step = step
        return code == DONE

    def evaluate(self, dataset):
        """Mean loss per labelled token; perplexity = exp(loss)."""
        loss = F64()
        call("peft_trainer_evaluate", c.byref(loss), self, dataset)
        return loss.value

    def plan(self, batch=1, length=512):
        """Bytes one step takes, by category, before any is taken."""
        return decoded_json("peft_trainer_plan", self, c_number(batch, "batch", 1, 2**31), c_number(length, "length", 1, 2**31))

    def save(self, path, dataset=None):
        """Everything a later process needs to go on, in one HDF5 file."""
        call("peft_trainer_save", self, dataset, encoded_path(path))

    def resume(self, path, dataset=None):
        call("peft_trainer_resume", self, dataset, encoded_path(path))

    def cancel(self):
        """From any thread: ends the running call after the present step."""
        call("peft_trainer_cancel", self)


def _bar():
    """A progress bar: tqdm if it is there, else one line that is written over."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        import sys

        def report(p):
            sys.stderr.write(f"\rstep {p.step}/{p.total_steps}  loss {p.loss:.3f}  {p.tokens_per_second:.0f} tok/s  "
                             f"{p.memory_peak / 1e6:.0f} MB  {p.seconds_left:.0f} s left   ")
            sys.stderr.flush()

        return report, lambda: sys.stderr.write("\n")
    bar = tqdm(unit="step")

    def report(p):
        bar.total = p.total_steps
        bar.set_postfix_str(f"loss {p.loss:.3f}, {p.tokens_per_second:.0f} tok/s, {p.memory_peak / 1e6:.0f} MB")
        bar.update(p.step - bar.n)

    return report, bar.close
