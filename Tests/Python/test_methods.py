"""The table of adapter methods in the README says what the library says."""

from pathlib import Path

import peftswift

README = Path(__file__).resolve().parents[2] / "README.md"


def rows():
    lines = README.read_text().splitlines()
    start = lines.index("| method | | layers |")
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            return
        method, _, layers = (cell.strip() for cell in line.strip("|").split("|"))
        yield method.strip("`"), layers


def written(layers):
    return "all" if layers == ["*"] else ", ".join(layers) or "none"


def test_the_readme_lists_every_method_with_its_layers():
    expected = {name: written(method["layers"]) for name, method in peftswift.list_methods().items()}
    assert dict(rows()) == expected
    assert len(list(rows())) == len(expected), "a method is listed twice"


def test_features_name_the_same_methods():
    assert sorted(peftswift.list_methods()) == sorted(peftswift.features()["adapter_methods"])


def test_options_are_what_a_new_adapter_saves():
    for name, method in peftswift.list_methods().items():
        expected = "target_modules" if method["layers"] or name in ("ADAPTION_PROMPT", "SHADOW") else {
            "XLORA": "adapters", "ADAPTER_FUSION": "adapters", "BOTTLENECK": "reduction_factor"}.get(name, "num_virtual_tokens")
        assert expected in method["options"] or name == "TRAINABLE_TOKENS", name
        assert not {"peft_type", "task_type", "inference_mode"} & set(method["options"]), name
