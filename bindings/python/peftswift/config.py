"""Adapter configurations under PEFT's names. The library checks them; these classes only carry them."""

import enum
import json
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Optional, Union

from ._library import encoded_json


class TaskType(str, enum.Enum):
    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


@dataclass
class PeftConfig:
    """What every adapter_config.json holds."""

    task_type: Optional[str] = None
    base_model_name_or_path: Optional[str] = None
    revision: Optional[str] = None
    inference_mode: bool = False

    peft_type = None

    def to_dict(self):
        """The keys of adapter_config.json with plain values."""
        return json.loads(encoded_json({"peft_type": self.peft_type, **asdict(self)}))

    @staticmethod
    def from_dict(data):
        """The configuration class of the method that ``peft_type`` names; keys that it does not have are named in a warning."""
        data = dict(data)
        kind = data.pop("peft_type", None)
        if kind not in _CONFIGS:
            raise ValueError(f"peft_type is {kind!r}; this version has {', '.join(_CONFIGS)}")
        known = {f.name for f in fields(_CONFIGS[kind])}
        left = sorted(set(data) - known - {"peft_version", "auto_mapping"})
        if left:
            warnings.warn(f"{_CONFIGS[kind].__name__} has no {', '.join(left)}: ignored", stacklevel=2)
        return _CONFIGS[kind](**{k: v for k, v in data.items() if k in known})

    @staticmethod
    def from_pretrained(path):
        """Reads the adapter_config.json of a folder."""
        return PeftConfig.from_dict(json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8")))

    def save_pretrained(self, path):
        """Writes adapter_config.json into a folder."""
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "adapter_config.json").write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True), encoding="utf-8")


@dataclass
class ArrowConfig:
    """How Arrow chooses among LoRA adapters (``create_arrow_model`` fills in the names); meanings and defaults are PEFT's."""

    top_k: int = 3
    router_temperature: float = 1.0
    use_gks: bool = False
    task_adapter_names: Optional[list] = None
    gks_adapter_names: Optional[list] = None
    rng_seed: Optional[int] = None


@dataclass
class LoraConfig(PeftConfig):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) and its variants; meanings and defaults are PEFT's."""

    r: int = 8
    target_modules: Optional[Union[list, str]] = None
    exclude_modules: Optional[Union[list, str]] = None
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    modules_to_save: Optional[list] = None
    init_lora_weights: Union[bool, str] = True
    layers_to_transform: Optional[Union[list, int]] = None
    layers_pattern: Optional[Union[list, str]] = None
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict = field(default_factory=dict)
    megatron_config: Optional[dict] = None
    megatron_core: Optional[str] = "megatron.core"
    trainable_token_indices: Optional[Union[list, dict]] = None
    loftq_config: dict = field(default_factory=dict)
    eva_config: Optional[dict] = None
    corda_config: Optional[dict] = None
    lora_ga_config: Optional[dict] = None
    use_dora: bool = False
    velora_config: Optional[dict] = None
    alora_invocation_tokens: Optional[list] = None
    use_qalora: bool = False
    qalora_group_size: int = 16
    monteclora_config: Optional[dict] = None
    layer_replication: Optional[list] = None
    lora_bias: bool = False
    target_parameters: Optional[list] = None
    use_bdlora: Optional[dict] = None
    arrow_config: Optional[Union[dict, ArrowConfig]] = None
    kasa_config: Optional[dict] = None
    ensure_weight_tying: bool = False

    peft_type = "LORA"


_CONFIGS = {"LORA": LoraConfig}
