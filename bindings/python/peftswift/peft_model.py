"""HF PEFT's names over the engine: what a PEFT user types works here."""

from contextlib import contextmanager
from pathlib import Path

from .config import LoraConfig, PeftConfig
from .model import Model


class PeftModel(Model):
    """A model with adapters, in PEFT's vocabulary. It shares the base model's handle: both see the same adapters."""

    def __init__(self, base):
        # The handle stays the base's own to free.
        self._as_parameter_, self.close = base._as_parameter_, base.close
        self.base_model, self.context, self.path, self._training = base, base.context, base.path, base._training

    @classmethod
    def from_pretrained(cls, model, path, adapter_name="default", is_trainable=False):
        """Loads an adapter folder onto a model and makes it active."""
        peft_model = cls(model)
        peft_model.load_adapter(path, adapter_name, is_trainable)
        peft_model.set_adapter(adapter_name)
        return peft_model

    @property
    def active_adapters(self):
        return [a["name"] for a in self.adapter_status()["active"]]

    @property
    def active_adapter(self):
        """The name of the active adapter; a list where several are."""
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    @property
    def peft_config(self):
        return {name: PeftConfig.from_dict(self.adapter_config(name)) for name in self.adapter_status()["adapters"]}

    def get_base_model(self):
        return self.base_model

    def get_nb_trainable_parameters(self):
        status = self.adapter_status()
        return status["trainable_parameters"], status["all_parameters"]

    def print_trainable_parameters(self):
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")

    @contextmanager
    def disable_adapter(self):
        self.disable_adapter_layers()
        try:
            yield
        finally:
            self.enable_adapter_layers()

    def save_pretrained(self, path, selected_adapters=None, path_initial_model_for_weight_conversion=None):
        """``default`` goes into the folder itself, every other adapter into a folder of its own inside, as PEFT does."""
        names = list(self.adapter_status()["adapters"])
        for name in selected_adapters or names:
            if name not in names:
                raise ValueError(f"there is no adapter {name!r}; there are {', '.join(names) or 'none'}")
            super().save_pretrained(path if name == "default" else Path(path) / name, name, path_initial_model_for_weight_conversion=path_initial_model_for_weight_conversion)

    def merge_and_unload(self):
        """The base model with the active adapters in its weights and without adapters."""
        return self.base_model.merge_and_unload()

    def unload(self):
        """The base model as it was, without adapters."""
        for name in self.adapter_status()["adapters"]:
            self.delete_adapter(name)
        return self.base_model


def get_peft_model(model, peft_config, adapter_name="default", seed=0):
    """Adds a fresh adapter to a model and makes it active."""
    if not isinstance(peft_config, (PeftConfig, dict)):
        raise TypeError(f"peft_config is {type(peft_config).__name__}; a LoraConfig (or another config class, or a dict) is expected")
    peft_model = PeftModel(model)
    peft_model.add_adapter(adapter_name, peft_config, seed=seed)
    peft_model.set_adapter(adapter_name)
    return peft_model


def create_arrow_model(base_model, task_specific_adapter_paths, arrow_config, general_adapter_paths=None):
    """LoRA adapters as experts of which each token gets those it is most along (Arrow), the adapter "arrow_router" active.

    general_adapter_paths: adapters of general knowledge, taken out of the experts where ``arrow_config.use_gks`` asks for it.
    """
    if not task_specific_adapter_paths:
        raise ValueError("task_specific_adapter_paths is empty; at least one adapter is needed")
    if arrow_config.use_gks and not general_adapter_paths:
        raise ValueError("use_gks needs general_adapter_paths")
    peft_model = PeftModel(base_model)
    names = {"task": [], "gks": []}
    for kind, paths in (("task", task_specific_adapter_paths), ("gks", general_adapter_paths if arrow_config.use_gks else ())):
        for index, path in enumerate(paths):
            peft_model.load_adapter(path, f"{kind}_{index}", is_trainable=False)
            names[kind].append(f"{kind}_{index}")
    arrow_config.task_adapter_names, arrow_config.gks_adapter_names = names["task"], names["gks"]
    first = peft_model.adapter_config(names["task"][0])
    peft_model.add_adapter("arrow_router", LoraConfig(r=first["r"], target_modules=first["target_modules"], arrow_config=arrow_config))
    peft_model.set_adapter("arrow_router")
    return peft_model
