"""What single methods do besides what all of them do (MethodTests.swift) and what PEFT's numbers say (Golden)."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import GOLDEN, LORA, ROOT, stir
from peftswift import Average, Model, PeftError
from test_dialects import read, write


def case(name):
    return GOLDEN / "cases" / name / "adapter"


def loss_of(model, ids):
    return model(input_ids=ids, labels=ids).loss


# ---- AdaMSS


def test_adamss_finds_the_groups_that_peft_left_out(model, ids, tmp_path):
    """PEFT's file does not say which rows a group has: the same decomposition and k-means find them again."""
    model.load_adapter(case("adamss"), "with")
    model.set_adapter("with")
    expected = model(input_ids=ids).logits
    shutil.copytree(case("adamss"), tmp_path / "without")
    (tmp_path / "without" / "adapter_derived.safetensors").unlink()
    model.load_adapter(tmp_path / "without", "without")
    model.set_adapter("without")
    assert np.array_equal(model(input_ids=ids).logits, expected)


def test_adamss_over_other_weights_is_refused(tmp_path, base_folder):
    shutil.copytree(case("adamss"), tmp_path / "without")
    (tmp_path / "without" / "adapter_derived.safetensors").unlink()
    with pytest.raises(PeftError, match="adamss_rows"):
        Model.from_pretrained(base_folder.parent / "mistral", dtype="float32").load_adapter(tmp_path / "without")


def test_adamss_gives_groups_up(model, ids):
    model.add_adapter("default", {"peft_type": "ADAMSS", "target_modules": ["q_proj", "v_proj"], "r": 6, "num_subspaces": 3, "use_asa": True,
                                  "asa_target_subspaces": 4, "init_warmup": 1, "final_warmup": 5, "mask_interval": 2, "init_weights": None})
    trainer, counts = model.trainer(lr=1e-2), []
    for _ in range(7):
        trainer.step(input_ids=ids, labels=ids)
        counts.append(sum("adamss_A" in key for key in model.trainable_parameters()))
    # After the steps that PEFT counts 2 and 4 (from 0): int(4 + 8·(3/4)³) = 7 and int(4 + 8·(1/4)³) = 4, of which the last does not stay.
    assert counts == [12, 12, 6, 6, 3, 3, 3]
    stopped = set(model.adapter_state_dict()) - set(model.trainable_parameters())
    before = model.adapter_state_dict()
    trainer.step(input_ids=ids, labels=ids)
    after = model.adapter_state_dict()
    assert all(np.array_equal(before[key], after[key]) == (key in stopped) for key in before)


# ---- Poly


def test_poly_asks_for_tasks(base_folder):
    model = Model.from_pretrained(base_folder.parent / "t5", dtype="float32")
    model.load_adapter(case("poly"))
    ids = np.random.default_rng(0).integers(1, 90, (2, 5))
    run = {"input_ids": ids, "decoder_input_ids": ids}
    alone = [model(**run, task_ids=[task, task]).logits for task in (0, 2)]
    mixed = model(**run, task_ids=[0, 2]).logits
    assert np.allclose(mixed[0], alone[0][0], atol=1e-5) and np.allclose(mixed[1], alone[1][1], atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    with pytest.raises(PeftError, match="task_ids"):
        model(**run)
    with pytest.raises(PeftError, match="0 to 2"):
        model(**run, task_ids=[0, 3])
    answers = [model.generate(ids, max_new_tokens=6, task_ids=[task, task], eos_token_id=None) for task in (0, 2)]
    both = model.generate(ids, max_new_tokens=6, task_ids=[0, 2], eos_token_id=None)
    assert np.array_equal(both[0], answers[0][0]) and np.array_equal(both[1], answers[1][1])
    with pytest.raises(PeftError, match="task"):
        model.generate(ids, max_new_tokens=1)


def test_poly_learns_which_skills_a_task_needs(model, ids):
    model.add_adapter("default", {"peft_type": "POLY", "n_tasks": 2, "n_skills": 3, "r": 4, "target_modules": ["q_proj", "v_proj"]})
    trainer = model.trainer(lr=3e-2)
    first = trainer.step(input_ids=ids, labels=ids, task_ids=[0, 1])
    for _ in range(10):
        last = trainer.step(input_ids=ids, labels=ids, task_ids=[0, 1])
    assert last < 0.9 * first
    model.train()  # shares are drawn
    drawn = {loss_of_task(model, ids) for _ in range(3)}
    assert len(drawn) == 3


def loss_of_task(model, ids):
    return model(input_ids=ids, labels=ids, task_ids=[0, 1]).loss


# ---- Shadow


def test_shadow_generates_as_it_reads(talking):
    """Token by token, with two caches, the logits are those of one pass over all."""
    talking.add_adapter("default", {"peft_type": "SHADOW", "r": 4, "shadow_alpha": 0.5})
    stir(talking)
    ids = np.random.default_rng(3).integers(1, 90, (1, 9))
    whole = talking(input_ids=ids).logits[0]
    session = talking.session()
    for position, token in enumerate(ids[0]):
        session.append([int(token)])
        assert np.abs(session.logits() - whole[position]).max() < 1e-3 * np.abs(whole).max(), position
    talking.disable_adapter_layers()
    assert np.abs(talking(input_ids=ids).logits[0] - whole).max() > 1e-2


def test_shadow_variants(model, ids):
    base = model(input_ids=ids).logits
    for index, more in enumerate([{}, {"share_embeddings": False}, {"shadow_hidden_size": 16, "shadow_num_attention_heads": 2, "shadow_num_hidden_layers": 2},
                                  {"target_modules": ["layers.1"], "update_hidden_size": 3}]):
        name = str(index)
        model.add_adapter(name, {"peft_type": "SHADOW", "shadow_dropout": 0.0, **more}, seed=index)
        model.set_adapter(name)
        assert np.array_equal(model(input_ids=ids).logits, base), "W_up is zero: nothing changes"
        keys = model.adapter_state_dict(name)
        assert any(".embed_tokens." in key for key in keys) == (index in (1, 2)) and any("shadow_projection" in key for key in keys) == (index == 2)
        trainer = model.trainer(lr=1e-2)
        losses = [trainer.step(input_ids=ids, labels=ids) for _ in range(8)]
        assert losses[-1] < losses[0]
        assert np.abs(model(input_ids=ids).logits - base).max() > 1e-3
    with pytest.raises(PeftError, match="layers.9"):
        model.add_adapter("x", {"peft_type": "SHADOW", "target_modules": ["layers.9"]})
    with pytest.raises(PeftError, match="cannot hold|no weights"):
        model.merge_adapter()
    with pytest.raises(PeftError, match="each sample"):
        model(input_ids=ids, adapter_names=["1", "__base__"])


def test_shadow_of_a_trained_decoder(base_folder, ids, tmp_path):
    """shadow_model names a folder: PEFT's numbers with one of another family (a golden case whose paths begin in the kit's folder)."""
    command = [sys.executable, str(GOLDEN.parent / "run.py"), str(GOLDEN), "--only", "shadow_trained", "--in-process"]
    paths = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}  # the same package, from another folder
    if "PEFTSWIFT_LIBRARY" in os.environ:
        paths["PEFTSWIFT_LIBRARY"] = os.path.abspath(os.environ["PEFTSWIFT_LIBRARY"])
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=GOLDEN, env=os.environ | paths)
    assert "1 passed, 0 failed, 0 skipped" in ran.stdout, ran.stdout + ran.stderr

    def with_shadow(folder, **more):
        model = Model.from_pretrained(base_folder, dtype="float32")
        model.add_adapter("s", {"peft_type": "SHADOW", "r": 4, "shadow_model": str(folder), **more}, seed=1)
        return model

    plain = with_shadow(GOLDEN / "bases/qwen3")
    trained = {key: value for key, value in plain.adapter_state_dict("s").items() if "shadow_backbone" in key}
    assert not any("embed_tokens" in name for name in plain.trainable_parameters()) and any("embed_tokens" in key for key in trained)
    # The same decoder with a matrix behind it that changes nothing.
    config = json.loads((GOLDEN / "bases/qwen3/config.json").read_text())
    tensors, _ = read(GOLDEN / "bases/qwen3/model.safetensors")
    tensors = {"shadow_model." + key.removeprefix("model."): value for key, value in tensors.items() if key != "lm_head.weight"}
    (tmp_path / "p").mkdir()
    (tmp_path / "p/config.json").write_text(json.dumps({"model_type": "causal_lm_with_hidden_projection", "shadow_model_config": config}))
    write(tmp_path / "p/model.safetensors", tensors | {"shadow_hidden_projection.weight": np.eye(32)})
    projected = with_shadow(tmp_path / "p")
    own = projected.adapter_state_dict("s")
    assert np.array_equal(own["base_model.shadow_projection.default.weight"], np.eye(32)) and all(np.array_equal(own[key], value) for key, value in trained.items())
    stir(plain, "s")
    projected.load_adapter_state_dict("s", plain.adapter_state_dict("s") | {"base_model.shadow_projection.default.weight": np.eye(32, dtype=np.float32)})
    assert np.abs(projected(input_ids=ids).logits - plain(input_ids=ids).logits).max() < 1e-5
    with pytest.raises(PeftError, match="shadow_hidden_size"):
        with_shadow(GOLDEN / "bases/qwen3", shadow_hidden_size=16)
    with pytest.raises(PeftError, match="nowhere"):
        with_shadow("nowhere")
    with pytest.raises(PeftError, match="bert|family"):
        with_shadow(GOLDEN / "bases/bert")
    tensors["shadow_model.norm.weight"] = np.ones(31)
    write(tmp_path / "p/model.safetensors", tensors | {"shadow_hidden_projection.weight": np.eye(32)})
    with pytest.raises(PeftError, match="norm.weight"):
        with_shadow(tmp_path / "p")


def test_shadow_chooses_blocks(model):
    def blocks(**more):
        model.add_adapter("b", {"peft_type": "SHADOW", **more})
        names = {key.split("layers.")[1][0] for key in model.adapter_state_dict("b") if "shadow_down" in key}
        model.delete_adapter("b")
        return names

    assert blocks() == {"0", "1"} and blocks(exclude_modules=["layers.0"]) == {"1"}
    assert blocks(layers_to_transform=0, layers_pattern="layers") == {"0"} and blocks(layers_to_transform=[1]) == {"1"}
    with pytest.raises(PeftError, match="names none"):
        blocks(layers_to_transform=[7])
    with pytest.raises(PeftError, match="layers_pattern"):
        blocks(layers_to_transform=[0], layers_pattern="blocks")


# ---- LoRA's forms


def test_qalora_shifts_whole_blocks(base_folder, ids, tmp_path):
    """Its change is the same for all inputs of a group: blocks of q4_1 hold it in their minimum, and merging loses next to nothing."""
    lost = {}
    for name, more in (("qalora", {"use_qalora": True, "qalora_group_size": 32}), ("lora", {})):
        model = Model.from_pretrained(base_folder, dtype="float32", quantization={"scheme": "q4_1"})
        model.add_adapter("default", {**LORA, "target_modules": ["down_proj", "q_proj"], **more})
        stir(model)
        hooked = model(input_ids=ids).logits
        model.merge_adapter()
        lost[name] = np.abs(model(input_ids=ids).logits - hooked).max() / np.abs(hooked).max()
    assert lost["qalora"] < 0.01 and lost["qalora"] < lost["lora"] / 5, lost


def test_velora_learns_its_directions(model, ids):
    for start, moves in (("batch_average", True), ("batch_average_once", False), ("random", False)):
        model.add_adapter(start, {**LORA, "velora_config": {"init_type": start, "num_groups": 4}})
        model.set_adapter(start)
        model.train()
        trainer, seen = model.trainer(lr=1e-2), []
        for seed in range(3):
            batch = np.random.default_rng(seed).integers(1, 90, (2, 6))
            trainer.step(input_ids=batch, labels=batch)
            seen.append({k: v for k, v in model.adapter_state_dict(start).items() if k.endswith("velora_embed")})
        for key in seen[0]:
            assert np.linalg.norm(seen[0][key]) == pytest.approx(1, abs=1e-5)
            assert np.array_equal(seen[1][key], seen[2][key]) == (not moves), (start, key)


def test_montecarlo_trains(model, ids):
    model.add_adapter("default", {**LORA, "monteclora_config": {"num_samples": 3, "sample_scaler": 0.02, "use_entropy": True}})
    stir(model)
    calm = loss_of(model, ids)
    assert loss_of(model, ids) == calm
    model.train()
    drawn = [loss_of(model, ids) for _ in range(4)]
    assert len(set(drawn)) == 4 and calm not in drawn
    before, trainer = model.adapter_state_dict(), model.trainer(lr=1e-2)
    trainer.step(input_ids=ids, labels=ids)
    after = model.adapter_state_dict()
    for ending in ("std_prior", "expert_weights_prior", "lora_A.weight", "lora_B.weight"):
        assert all(not np.array_equal(before[k], after[k]) for k in before if k.endswith(ending)), ending


def test_dylora_trains_a_block_at_a_time(model, ids):
    model.add_adapter("default", {**LORA, "r": 6, "dylora_block_size": 2})
    stir(model)
    model.train()
    trainer, seen = model.trainer(optimizer="sgd", lr=0.1), set()
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    for _ in range(12):
        before = model.adapter_state_dict()
        trainer.step(input_ids=ids, labels=ids)
        after = model.adapter_state_dict()
        rows = np.flatnonzero((before[key + "A.weight"] != after[key + "A.weight"]).any(1))
        assert list(rows) == list(np.flatnonzero((before[key + "B.weight"] != after[key + "B.weight"]).any(0))) and list(rows) in ([0, 1], [2, 3], [4, 5])
        seen.add(rows[0])
    assert seen == {0, 2, 4}
    assert "dylora_block_size" in model.adapter_config("default")


def test_pvera_draws_where_the_model_trains(model, ids):
    model.load_adapter(case("pvera"), is_trainable=True)
    still = [model.gradients(input_ids=ids, labels=ids) for _ in range(2)]
    assert all(np.array_equal(still[0][k], still[1][k]) for k in still[0])
    model.train()
    assert loss_of(model, ids) != loss_of(model, ids)


# ---- Riemannian preconditioning


def test_riemannian_step(model, ids):
    model.add_adapter("default", LORA)
    stir(model)
    before, gradients = model.adapter_state_dict(), model.gradients(input_ids=ids, labels=ids)
    model.trainer(optimizer="sgd", lr=0.5, riemannian_reg=0.01).step(input_ids=ids, labels=ids)
    after = model.adapter_state_dict()
    for key in (k for k in before if ".lora_A." in k):
        other = key.replace("lora_A", "lora_B")
        a, b, identity = before[key].astype(float), before[other].astype(float), np.eye(4)
        steps = {key: np.linalg.pinv(b.T @ b + 0.01 * identity) @ gradients[key], other: gradients[other] @ np.linalg.pinv(a @ a.T + 0.01 * identity)}
        for name, step in steps.items():
            assert np.allclose(after[name] - before[name], -0.5 * step, rtol=1e-3, atol=1e-4 * np.abs(step).max()), name
    with pytest.raises(PeftError, match="riemannian_reg"):
        model.trainer(riemannian_reg=0)
    model.add_adapter("norms", {"peft_type": "LN_TUNING"})
    model.set_adapter("norms")
    with pytest.raises(PeftError, match="lora_A"):
        model.trainer(riemannian_reg=0.01)


# ---- bias "all" beside saved modules


@pytest.mark.parametrize("name", ["smith", None], ids=["another adapter's name", "left out"])
def test_copies_of_saved_biases_are_known_by_their_places(tmp_path, name):
    """PEFT writes a saved head's biases by the wrapper's places too, deeper ones with the adapter's name; files without them load as well."""
    source = case("lora_roberta_bias_all")
    tensors, _ = read(source / "adapter_model.safetensors")
    copies = [key for key in tensors if ".modules_to_save." in key or ".original_module." in key]
    assert len(copies) == 4
    shutil.copytree(source, tmp_path / "a")
    changed = {key.replace(".default.", f".{name}."): value for key, value in tensors.items() if name or key not in copies}
    write(tmp_path / "a/adapter_model.safetensors", changed)
    model = Model.from_pretrained(GOLDEN / "bases/roberta_cls", dtype="float32")
    model.load_adapter(tmp_path / "a")
    saved = model.adapter_state_dict("default")
    assert set(saved) == set(tensors)
    assert all(np.array_equal(saved[key], tensors[key]) for key in tensors if ".original_module." not in key)
    keys = [key for key in model.trainable_parameters() if key in copies]
    assert not keys, "a bias is trained once"


def test_a_copy_of_a_bias_that_no_module_has_is_refused(tmp_path):
    source = case("lora_roberta_bias_all")
    tensors, _ = read(source / "adapter_model.safetensors")
    shutil.copytree(source, tmp_path / "a")
    write(tmp_path / "a/adapter_model.safetensors", {**tensors, "base_model.model.classifier.modules_to_save.default.other.bias": tensors["base_model.model.classifier.dense.bias"]})
    with pytest.raises(PeftError, match="other.bias"):
        Model.from_pretrained(GOLDEN / "bases/roberta_cls", dtype="float32").load_adapter(tmp_path / "a")


# ---- aLoRA beside a trained head in sessions


def test_alora_with_a_trained_head_writes_as_the_whole_text_does(base_folder, ids):
    """The head that an adapter replaces acts on all tokens, whatever the adapter waits for: a session's last row is the whole pass's."""
    model = Model.from_pretrained(base_folder, dtype="float32")
    model.add_adapter("a", {**LORA, "target_modules": ["q_proj", "v_proj"], "alora_invocation_tokens": [int(ids[0, 2])], "modules_to_save": ["lm_head"]}, seed=1)
    stir(model, "a")
    expected = model(input_ids=ids[:1]).logits[0, -1]
    with model.session() as session:
        session.append(ids[0])
        assert np.allclose(session.logits(), expected, atol=1e-5)


# ---- what reads other rows, at the head


@pytest.mark.parametrize("method", ["gate", "router", "averaged router"])
def test_a_head_that_reads_other_rows_learns_from_some_labels(base_folder, ids, method):
    """A gate is a mean over the whole text, LILY's router one over all texts: the head sees all of it, also where most labels are left out."""
    model = Model.from_pretrained(base_folder, dtype="float32")
    config = {**LORA, "use_gating": True} if method == "gate" else {"peft_type": "LILY", "r": 4, "stride_A": 1, "num_B": 2}
    model.add_adapter("a", {**config, "target_modules": ["q_proj", "lm_head"]}, seed=1)
    state = {k: v for k, v in model.adapter_state_dict("a").items() if "base_layer" not in k}
    random = np.random.default_rng(0)
    model.load_adapter_state_dict("a", {k: random.normal(0, 0.3, v.shape).astype(np.float32) for k, v in state.items()})
    if method == "averaged router":
        model.add_adapter("b", {**LORA, "target_modules": ["v_proj"]}, seed=2)
        stir(model, "b")
        model.set_adapter(Average("a", "b", weights=[0.6, 0.4]))
    labels = ids.copy()
    labels[:, :7] = labels[0, 9] = -100
    loss = model(input_ids=ids, labels=labels).loss
    trainer = model.trainer(optimizer="sgd", lr=0.5)
    assert trainer.step(input_ids=ids, labels=labels) == pytest.approx(loss, rel=1e-5)
    assert trainer.step(input_ids=ids, labels=labels) < loss


# ---- (IA)³ of different targets becomes one


def test_ia3_of_different_targets_is_summed(base_folder, ids):
    """What one adapter excludes comes from the other alone; what both have is the weighted sum. The new configuration names what is there."""
    model = Model.from_pretrained(base_folder, dtype="float32")
    model.add_adapter("a", {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"], "exclude_modules": r".*\.0\..*v_proj"}, seed=1)
    model.add_adapter("b", {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}, seed=2)
    stir(model, "a", 1)
    stir(model, "b", 2)
    a, b = model.adapter_state_dict("a"), model.adapter_state_dict("b")
    alone = [key for key in b if key not in a]
    assert len(alone) == 1 and len(a) == 5
    model.add_weighted_adapter(["a", "b"], [0.3, 0.9], "sum")
    together = model.adapter_state_dict("sum")
    assert set(together) == set(b)
    for key, value in together.items():
        assert np.allclose(value, 0.9 * b[key] + (0.3 * a[key] if key in a else 0), atol=1e-6), key
    # The feed-forward layers still scale their inputs: the same numbers in an adapter of all targets.
    model.add_adapter("again", {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]})
    model.load_adapter_state_dict("again", together)
    model.set_adapter("again")
    expected = model(input_ids=ids).logits
    model.set_adapter("sum")
    assert np.array_equal(model(input_ids=ids).logits, expected)


# ---- LoRA of a mixture with factors for each expert by itself (fixtures_mixtral: PEFT's numbers)

MIXTRAL = ROOT / "Tests/Python/fixtures_mixtral"


def mixtral(folder):
    model = Model.from_pretrained(GOLDEN / "bases" / "mixtral", dtype="float32")
    model.load_adapter(folder)
    return model


def test_experts_by_themselves(tmp_path):
    expected, _ = read(MIXTRAL / "expected.safetensors")
    model = mixtral(MIXTRAL)
    logits = model(input_ids=expected["input_ids"]).logits
    assert np.abs(logits - expected["logits"]).max() < 1e-5 * np.abs(expected["logits"]).max()
    model.save_pretrained(tmp_path / "stacks")
    assert np.array_equal(mixtral(tmp_path / "stacks")(input_ids=expected["input_ids"]).logits, logits)


def test_experts_that_do_not_fit(tmp_path):
    (tensors, _), expert = read(MIXTRAL / "adapter_model.safetensors"), "base_model.model.model.layers.0.block_sparse_moe.experts.1"
    for change, words in (
        ({f"{expert}.w3.lora_B.weight": None}, "w3.lora_B.weight is there for 3 of 4 experts"), ({f"{expert}.w2.lora_A.weight": np.zeros((3, 5), np.float32)}, "w2.lora_A.weight is there"),
        ({f"{expert[:-1]}{e}.w3.lora_{part}.weight": np.zeros(shape, np.float32) for e in range(4) for part, shape in (("A", (0, 8)), ("B", (2**40, 0)))}, "are needed"),
        ({f"{expert[:-1]}{e}.w2.lora_A.weight": None for e in range(4)}, "each has both"),
        ({f"{expert}.w4.lora_A.weight": np.zeros((2, 5), np.float32)}, "w4.lora_A"), ({f"{expert}.w1.lora_A.bias": np.zeros(2, np.float32)}, "w1.lora_A.bias"),
        ({f"{expert[:-1]}01.w1.lora_A.weight": np.zeros((2, 5), np.float32)}, "experts.01.w1"),
    ):
        folder = tmp_path / words[:2]
        folder.mkdir(exist_ok=True)
        shutil.copy(MIXTRAL / "adapter_config.json", folder)
        write(folder / "adapter_model.safetensors", {key: value for key, value in (tensors | change).items() if value is not None})
        with pytest.raises(PeftError, match=words):
            mixtral(folder)


def test_dropout_of_stacks(tmp_path):
    """A file's is told of, a new adapter's refused as by PEFT."""
    shutil.copytree(MIXTRAL, tmp_path / "file")
    config = json.loads((tmp_path / "file/adapter_config.json").read_text()) | {"lora_dropout": 0.1}
    (tmp_path / "file/adapter_config.json").write_text(json.dumps(config))
    model = mixtral(tmp_path / "file")
    with pytest.raises(PeftError, match="lora_dropout"):
        model.add_adapter("new", config | {"inference_mode": False})


def test_any_alpha_of_a_mixture():
    """It is doubled for gate and up, which have one matrix."""
    for alpha, doubled in ((2.5, 5), (1.25, 2.5), (1e300, 2e300), (-1e19, -2e19)):
        model = Model.from_pretrained(GOLDEN / "bases" / "mixtral", dtype="float32")
        model.add_adapter("default", {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": "all-linear"})
        assert model.adapter_config()["alpha_pattern"] == {".*\\.gate_up_proj": doubled}
