"""Models with adapters: the engine's own surface."""

import ctypes as c
from types import SimpleNamespace

import numpy as np

from ._library import (_TO_C, F64, Context, Handle, ModelOptions, Tensors, c_floats, c_names, call, decoded_json, encoded, encoded_json, encoded_path, lib)
from .composition import Block
from .config import PeftConfig
from .layers import HostLayer
from .merging import combined, report, watched
from .session import Session
from .tokenizer import Tokenizer
from .trainer import Trainer

_COMPUTE = {"auto": 0, "float32": 1, "f32": 1, "bfloat16": 2, "bf16": 2, "int8": 3}


class Output(SimpleNamespace):
    """What a forward pass returned: ``loss``, ``logits``, ``last_hidden_state`` … (numpy), None for what there is not."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class Model(Handle):
    """A base model and its adapters.

    >>> m = Model.from_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf", dtype="auto")
    >>> m.add_adapter("default", {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"})
    """

    kind = "model"

    @classmethod
    def from_pretrained(cls, path, dtype="auto", quantization=None, context=None, threads=0, memory_budget=0, bitsandbytes_cpu=None, new_head=None):
        """Opens a Hugging Face folder or a GGUF file.

        dtype: "float32", "bfloat16", "int8" (bf16, with 8-bit activations while generating) or "auto".
        quantization: {"scheme": "nf4", "block_size": 64, "double_quant": False, …} gives linear layers a weight format as they are
        read (the options of ``quantize``).
        bitsandbytes_cpu: True reads rows shorter than a block of nf4 or fp4 as PEFT's are on a processor, all by one scale, which costs
        accuracy (a warning says so). None: only with blocks of at most 64, where no network of use has such rows and tiny ones are
        made to be compared with PEFT.
        new_head: {"type": "ForSequenceClassification", "num_labels": 8, "seed": 0, …}: the same network under another head of its family,
        with random weights where the files have none (peft_model_options).
        context: shared threads and memory budget; otherwise one is made with ``threads`` and ``memory_budget``.
        """
        if str(dtype) not in _COMPUTE:
            raise ValueError(f"dtype is {dtype!r}; {', '.join(_COMPUTE)} are accepted")
        context = context or Context(threads=threads, memory_budget=memory_budget)
        options = ModelOptions()
        lib.peft_model_options_init(c.byref(options))
        options.compute = _COMPUTE[str(dtype)]
        if bitsandbytes_cpu is None:
            rules = quantization.get("rules") if isinstance(quantization, dict) else None
            blocks = [part.get("block_size") for part in [quantization, *(rules if isinstance(rules, list) else [])] if isinstance(part, dict)]
            bitsandbytes_cpu = all(size <= 64 for size in blocks if isinstance(size, int))
        options.options_json = encoded_json({"quantization": quantization or None, "bitsandbytes_cpu": bool(bitsandbytes_cpu), "new_head": new_head})
        model = cls.make("peft_model_open", context, encoded_path(path), c.byref(options))
        model.context, model.path, model._training = context, str(path), False
        return model

    @classmethod
    def from_arrays(cls, config, weights, dtype="float32", context=None, threads=0, memory_budget=0):
        """A model from what its config.json would say and numpy arrays by name, which are used where they are (no copy).

        config of a network of one's own: {"model_type": "graph", "layers": [{"name": "0", "kind": "Linear"}, {"kind": "ReLU"}, …]}.
        """
        context = context or Context(threads=threads, memory_budget=memory_budget)
        tensors = Tensors.make("peft_tensors_create", context)
        arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        for name, array in arrays.items():
            if array.dtype.name not in _TO_C:
                raise ValueError(f"{name} is {array.dtype}; {', '.join(_TO_C)} are accepted")
            shape = (c.c_int64 * max(array.ndim, 1))(*array.shape)
            call("peft_tensors_borrow", tensors, encoded(name), _TO_C[array.dtype.name], array.ndim, shape, array.ctypes.data)
        options = ModelOptions()
        lib.peft_model_options_init(c.byref(options))
        options.compute = _COMPUTE[str(dtype)]
        model = cls.make("peft_model_create", context, encoded_json(config), tensors, c.byref(options))
        model.context, model.path, model._training, model._arrays = context, "", False, arrays
        return model

    def layer(self, name):
        """One layer by itself, for training loops of one's own."""
        return HostLayer(self, name)

    # ---- the base

    def describe(self):
        """Architecture, configuration, layers, formats (peft_model_describe)."""
        return decoded_json("peft_model_describe", self)

    @property
    def config(self):
        return self.describe()["config"]

    @property
    def tokenizer(self):
        return Tokenizer.make("peft_model_tokenizer", self)

    def state_dict(self):
        """Base parameters under transformers' names with their present values (f32 where quantised)."""
        return Tensors.make("peft_model_state", self, None).arrays()

    def get_parameter(self, name):
        """One base parameter."""
        return Tensors.make("peft_model_state", self, encoded(name)).get(name)

    def quantize(self, scheme=None, progress=None, **options):
        """Gives linear layers another weight format, in place; returns what each lost (peft_model_quantize).

        options: block_size, double_quant, llm_int8_threshold (int8: activations in 8 bits but for outlier columns), calibration_text (a
        text on which outputs are compared), skip=[names] (default: output heads), rules=[{"modules": [names] or pattern, "scheme": …}].
        progress: ``progress(done, total)`` in bytes; what it returns true for, it cancels.
        """
        with watched(progress) as callback:
            call("peft_model_quantize", None, 0, None, self, encoded_json({"scheme": scheme, **options}), callback, None)
        return self.describe()["quantization"]

    def export(self, folder, dtype=None):
        """Writes a Hugging Face folder of the model as it is now, merged adapters included (nf4, fp4 and int8 as bitsandbytes
        writes them unless a dtype is given); or a file that ends in ".gguf", of a model from GGUF or a folder of the families that
        GGUF files have here (dtype: a GGUF type, "Q4_K_M" …)."""
        call("peft_model_export", self, encoded_path(folder), encoded_json({"dtype": dtype} if dtype else {}))

    # ---- running

    def _tensors(self, inputs):
        return Tensors.from_arrays(self.context, {k: v for k, v in inputs.items() if v is not None})

    def train(self, mode=True):
        call("peft_model_set_training", self, int(mode))
        self._training = bool(mode)
        return self

    def eval(self):
        return self.train(False)

    def preprocess(self, *raw):
        """Pictures (u8 [height, width, 3]) or recordings (f32 [samples]) as the model's inputs: {"pixel_values"} or {"input_features"}."""
        arrays = {str(index): np.ascontiguousarray(array) for index, array in enumerate(raw)}
        return Tensors.make("peft_model_preprocess", self, Tensors.from_arrays(self.context, arrays)).arrays()

    def embed(self, adapter_names=None, **inputs):
        """Sentence embeddings [batch, hidden]: the mean of each text's states, at length 1."""
        options = {"outputs": ["sentence_embedding"], **({} if adapter_names is None else {"adapter_names": list(adapter_names)})}
        return Tensors.make("peft_model_forward", self, self._tensors(inputs), encoded_json(options)).get("sentence_embedding")

    def __call__(self, adapter_names=None, output_hidden_states=False, output_scalings=False, **inputs):
        """A forward pass. Inputs by Hugging Face's names: input_ids, attention_mask, labels, position_ids; or x.

        adapter_names: one adapter per sample, "__base__" for none. output_scalings: what X-LoRA gives each expert, as ``scalings``.
        """
        options = {}
        if adapter_names is not None:
            options["adapter_names"] = list(adapter_names)
        if output_hidden_states:
            options["outputs"] = ["logits", "last_hidden_state"]
        if output_scalings:
            options["outputs"] = [*options.get("outputs", ["logits"]), "scalings"]
        out = Tensors.make("peft_model_forward", self, self._tensors(inputs), encoded_json(options)).arrays()
        if "loss" in out:
            out["loss"] = float(out["loss"].reshape(-1)[0])
        return Output(**out)

    forward = __call__

    def gradients(self, **inputs):
        """{saved key: gradient} of the trainable parameters of the active adapters."""
        return Tensors.make("peft_model_gradients", None, self, self._tensors(inputs), None).arrays()

    def loss_and_gradients(self, **inputs):
        """Loss and gradients of one forward and backward pass."""
        loss = F64()
        gradients = Tensors.make("peft_model_gradients", c.byref(loss), self, self._tensors(inputs), None).arrays()
        return loss.value, gradients

    def session(self, **options):
        """A conversation with a KV cache of its own (options: peft_session_create; kv_cache_type="q8_0" halves it, fold_adapters=True writes faster with
        adapters that are not of low rank)."""
        return Session.create(self, **options)

    def generate(self, input_ids, max_new_tokens=20, do_sample=False, eos_token_id="model", temperature=1.0, seed=0, task_ids=None, **options):
        """Continues rows of token ids; returns prompt and new ids ``[rows, length]`` (encoder-decoders: the decoder's ids).

        eos_token_id None: never stop; "model": at the model's own ends. Rows that end early are filled up with the end token.
        task_ids: of a multitask prompt or POLY, the task of each row.
        """
        rows = np.atleast_2d(np.asarray(input_ids))
        writes_anew = bool(self.config.get("is_encoder_decoder"))
        options = {"temperature": temperature if do_sample else 0, "seed": seed, "ignore_eos": eos_token_id is None, **options}
        options.setdefault("context_length", rows.shape[1] + max_new_tokens)
        ends = set(np.atleast_1d(eos_token_id).tolist()) if eos_token_id not in (None, "model") else set()
        starts, results = [], []
        for index, row in enumerate(rows):
            # The session before it lives until this one has read: what they share (fold_adapters) is not made anew.
            session = self.session(**options, **({} if task_ids is None else {"task_id": int(task_ids[index])})).append([int(i) for i in row])
            starts.append(session.token_ids() if writes_anew else row.tolist())
            new = []
            for token in session.tokens(max_new_tokens):
                new.append(token)
                if token in ends:
                    break
            results.append(new)
        width = max((len(new) for new in results), default=0)
        return np.array([[*start, *new, *[new[-1] if new else 0] * (width - len(new))] for start, new in zip(starts, results)], dtype=np.int64)

    # ---- adapters

    def add_adapter(self, adapter_name, config, calibration=None, seed=0):
        """A fresh adapter from a configuration (a dict with PEFT's keys, or a LoraConfig …).

        calibration: batches ({name: array} each) for a start that is computed from data (lora_ga, which needs labels, corda, eva)."""
        config = config.to_dict() if isinstance(config, PeftConfig) else dict(config)
        arguments = self, encoded(adapter_name), encoded_json(config), encoded_json({"seed": seed})
        if calibration is None:
            return call("peft_adapter_add", *arguments)
        batches = [self._tensors(batch) for batch in calibration]
        handles = (c.c_void_p * len(batches))(*[batch._as_parameter_.value for batch in batches])
        call("peft_adapter_add_calibrated", *arguments, handles, len(batches))

    def load_adapter(self, path, adapter_name="default", is_trainable=False):
        """A PEFT folder, an .h5 file of this library, or a .safetensors file of kohya's scripts, LyCORIS or diffusers."""
        call("peft_adapter_load", self, encoded(adapter_name), encoded_path(path), int(is_trainable))

    def save_pretrained(self, path, adapter_name="default", format=None, prefix=None, path_initial_model_for_weight_conversion=None):
        """Writes a PEFT folder that HF PEFT opens (or one .h5 file).

        format: "kohya" or "diffusers": one .safetensors file under their names, with ``prefix`` in front of modules' ("lycoris_", "transformer").
        path_initial_model_for_weight_conversion: the folder of the adapter as it began, to make plain LoRA of a PiSSA, OLoRA, CorDA or LoRA-GA.
        """
        options = {"format": format, "prefix": prefix, "initial": path_initial_model_for_weight_conversion and str(path_initial_model_for_weight_conversion)}
        options = {key: value for key, value in options.items() if value is not None}
        if options:
            call("peft_adapter_save_as", self, encoded(adapter_name), encoded_path(path), encoded_json(options))
        else:
            call("peft_adapter_save", self, encoded(adapter_name), encoded_path(path))

    def delete_adapter(self, adapter_name):
        call("peft_adapter_remove", self, encoded(adapter_name))

    def rename_adapter(self, adapter_name, new_name):
        call("peft_adapter_rename", self, encoded(adapter_name), encoded(new_name))

    def set_adapter(self, adapter_name, weights=None):
        """Which adapters act: one name or a list, in this order, or a block (Stack, Fuse, Average, Split, BatchSplit, Parallel)."""
        if isinstance(adapter_name, Block):
            return call("peft_adapter_set_composition", self, encoded_json(adapter_name))
        names, count = c_names(adapter_name)
        call("peft_adapter_set_active", self, names, c_floats(weights, count), count)

    def disable_adapter_layers(self):
        call("peft_adapter_set_enabled", self, 0)

    def enable_adapter_layers(self):
        call("peft_adapter_set_enabled", self, 1)

    def set_scale(self, adapter_name, factor):
        call("peft_adapter_set_scale", self, encoded(adapter_name), factor)

    def set_requires_grad(self, adapter_name, requires_grad=True):
        call("peft_adapter_set_trainable", self, encoded(adapter_name), int(requires_grad))

    def adapter_status(self):
        """Which adapters there are, which act, where (peft_adapter_status)."""
        return decoded_json("peft_adapter_status", self)

    def adapter_config(self, adapter_name="default"):
        """The configuration as adapter_config.json holds it."""
        return decoded_json("peft_adapter_config", self, encoded(adapter_name))

    def adapter_state_dict(self, adapter_name="default"):
        """What would be saved, by saved key."""
        return Tensors.make("peft_adapter_state", self, encoded(adapter_name)).arrays()

    def load_adapter_state_dict(self, adapter_name, state):
        call("peft_adapter_set_state", self, encoded(adapter_name), self._tensors(state))

    def fill_adapter(self, adapter_name, text):
        """Gives a prefix or cartridge the keys and values that the base model has for the first tokens of a text."""
        call("peft_adapter_fill", self, encoded(adapter_name), encoded(text))

    def trainable_parameters(self):
        """The trainable parameters of the active adapters, by saved key."""
        return Tensors.make("peft_adapter_parameters", self).arrays()

    def add_weighted_adapter(self, adapters, weights, adapter_name, combination_type=None, svd_rank=None, svd_clamp=None, density=None,
                             majority_sign_method=None, progress=None, **options):
        """A new adapter of several, by PEFT's formulas and names, and more (the header lists them); returns the report.

        Methods other than LoRA go through their exact changes of the weights and become LoRA; the report states the error.
        options: svd_energy, epsilon, gamma, seed, layer_weights. progress: ``progress(done, total)`` after each layer; true stops.
        """
        options.update(combination_type=combination_type, svd_rank=svd_rank, svd_clamp=svd_clamp, density=density, majority_sign_method=majority_sign_method)
        return combined("peft_adapter_combine", self, encoded(adapter_name), adapters, weights, options, progress)

    def convert_to_lora(self, rank, adapter_name="default", name=None, progress=None):
        """Any mergeable adapter as LoRA: (configuration, tensors by saved key).

        rank: a number, or a share of the energy (Σσ², a float up to 1) that decides for each layer.
        name: the new adapter stays in the model under this name (what the rank leaves out: ``conversion_error``).
        """
        kept = name or f"{adapter_name} as LoRA"
        choice = {"svd_energy": rank} if isinstance(rank, float) else {"svd_rank": rank}
        self.conversion_error = self.add_weighted_adapter([adapter_name], [1.0], kept, progress=progress, **choice)["error"]
        try:
            return self.adapter_config(kept), self.adapter_state_dict(kept)
        finally:
            if name is None:
                self.delete_adapter(kept)

    def extract_adapter(self, tuned, adapter_name, svd_rank=None, svd_energy=None, target_modules="all-linear", progress=None):
        """A new LoRA of what full fine-tuning changed: the weights of the model ``tuned`` minus these; returns the report."""
        options = {"svd_rank": svd_rank, "svd_energy": svd_energy, "target_modules": target_modules}
        with watched(progress) as callback:
            return report("peft_adapter_extract", self, encoded(adapter_name), tuned, encoded_json(options), callback, None)

    def merge_adapter(self, adapter_names=None, safe_merge=False, dtype=None, residue=None, svd_rank=None, svd_energy=None):
        """Folds adapters into the base weights; returns the report (what survived re-quantising).

        dtype: what quantised weights become ("q8_0", "bf16" …; None: what they are). Four bits keep little of an adapter.
        residue: the name of an adapter of rank ``svd_rank`` that keeps what quantised weights do not hold.
        """
        names, count = c_names(adapter_names or [])
        options = {"safe": bool(safe_merge), "dtype": dtype, "residue": residue, "svd_rank": svd_rank, "svd_energy": svd_energy}
        return report("peft_model_merge", self, names, count, encoded_json(options))

    def unmerge_adapter(self):
        call("peft_model_unmerge", self)

    def merge_and_unload(self):
        call("peft_model_merge_and_unload", self)
        return self

    # ---- training

    def trainer(self, **options):
        """A trainer for the active adapter (options: peft_trainer_create)."""
        return Trainer.create(self, **options)
