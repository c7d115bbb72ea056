"""Configuration classes: PEFT's keys, files, plain values."""

import json
import warnings

import pytest

from peftswift import LoraConfig, PeftConfig, TaskType


def test_defaults_are_peft_s(adapter_folder):
    """Every key of a file that PEFT wrote is a key of ours, and what is not chosen there has our default."""
    written = json.loads((adapter_folder / "adapter_config.json").read_text())
    ours = LoraConfig().to_dict()
    chosen = {"r", "lora_alpha", "target_modules", "task_type", "base_model_name_or_path", "inference_mode"}
    assert set(written) - set(ours) == {"peft_version", "auto_mapping"}
    assert {k: v for k, v in written.items() if k in ours and k not in chosen} == {k: v for k, v in ours.items() if k not in chosen and k in written}


def test_file_round_trip(tmp_path, adapter_folder):
    config = PeftConfig.from_pretrained(adapter_folder)
    assert isinstance(config, LoraConfig) and config.r == 4 and config.target_modules == ["q_proj", "v_proj"]
    config.save_pretrained(tmp_path / "new")
    assert PeftConfig.from_pretrained(tmp_path / "new") == config


def test_values_become_plain():
    import numpy as np

    config = LoraConfig(r=np.int64(4), target_modules={"v_proj", "q_proj"}, task_type=TaskType.CAUSAL_LM, rank_pattern={"q": np.int32(2)})
    data = config.to_dict()
    assert (data["r"], data["target_modules"], data["task_type"], data["rank_pattern"]) == (4, ["q_proj", "v_proj"], "CAUSAL_LM", {"q": 2})
    json.dumps(data)


def test_unknown_keys_and_methods_are_named(tmp_path):
    with pytest.warns(UserWarning, match="from_the_future"):
        PeftConfig.from_dict({"peft_type": "LORA", "from_the_future": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftConfig.from_dict({"peft_type": "LORA", "peft_version": "0.21.2", "auto_mapping": None})
    with pytest.raises(ValueError, match="NOT_A_METHOD"):
        PeftConfig.from_dict({"peft_type": "NOT_A_METHOD"})
    with pytest.raises(TypeError):
        LoraConfig(rank=8)


def test_a_value_without_json_is_a_type_error(model):
    with pytest.raises(TypeError, match="object"):
        model.add_adapter("default", {"peft_type": "LORA", "target_modules": object()})
