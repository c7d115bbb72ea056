"""Adapter configurations under PEFT's names. The library checks them; these classes only carry them."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Optional, Union


class TaskType:
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
        return {"peft_type": self.peft_type, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @staticmethod
    def from_pretrained(path):
        """Reads the adapter_config.json of a folder."""
        data = json.loads((Path(path) / "adapter_config.json").read_text())
        kind = data.pop("peft_type", None)
        if kind not in _CONFIGS:
            raise ValueError(f"peft_type is {kind!r}; this version has {', '.join(_CONFIGS)}")
        known = {f.name for f in fields(_CONFIGS[kind])}
        return _CONFIGS[kind](**{k: v for k, v in data.items() if k in known})


@dataclass
class LoraConfig(PeftConfig):
    """LoRA (Hu et al. 2021) and its variants; meanings and defaults are PEFT's."""

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
    trainable_token_indices: Optional[Union[list, dict]] = None
    use_dora: bool = False
    layer_replication: Optional[list] = None
    lora_bias: bool = False
    ensure_weight_tying: bool = False

    peft_type = "LORA"


_CONFIGS = {"LORA": LoraConfig}
