"""Combining, converting, extracting: against the formulas written with numpy, layer by layer."""

import json
from pathlib import Path

import numpy as np
import pytest

import peftswift
from conftest import LORA, stir
from peftswift import Model, combine_adapters, compare_adapters, prune_adapter, resize_adapter, scale_adapter

PREFIX = "base_model.model."


def deltas(state, scale=1.0):
    """{module: s·B·A} of a LoRA's tensors."""
    return {k[len(PREFIX):-len(".lora_A.weight")]: scale * state[k.replace("lora_A", "lora_B")].astype(np.float64) @ a
            for k, a in state.items() if k.endswith(".lora_A.weight")}


@pytest.fixture
def two(model):
    """Adapters "a" (s = 2) and "b" (s = 1, another rank and more layers)."""
    model.add_adapter("a", LORA)
    model.add_adapter("b", {**LORA, "r": 3, "lora_alpha": 3, "target_modules": ["v_proj", "up_proj"]})
    stir(model, "a", 1), stir(model, "b", 2)
    return model


def parts(model):
    a, b = deltas(model.adapter_state_dict("a"), 2.0), deltas(model.adapter_state_dict("b"))
    return {name: [d[name] for d in (a, b) if name in d] for name in {**a, **b}}, a, b


def made(model, name="c"):
    found = deltas(model.adapter_state_dict(name))
    model.delete_adapter(name)
    return found


def close(got, wanted, tolerance=1e-4):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(got[name] - value).max() <= tolerance * np.abs(value).max() + 1e-9, name


def cut(matrix, rank):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def test_sums(two):
    _, a, b = parts(two)
    total = {n: 0.5 * a.get(n, 0) - 2 * b.get(n, 0) for n in {**a, **b}}
    report = two.add_weighted_adapter(["a", "b"], [0.5, -2.0], "c", "cat")
    assert report["rank"] == 7 and report["error"] == 0 and [layer["name"] for layer in report["layers"]] == [n for n in two.adapter_status()["adapters"]["c"]["layers"]]
    close(made(two), total)
    report = two.add_weighted_adapter(["a", "b"], [0.5, -2.0], "c", svd_rank=2)
    close(made(two), {n: cut(d, 2) for n, d in total.items()})
    lost = sum(np.square(d - cut(d, 2)).sum() for d in total.values()) / sum(np.square(d).sum() for d in total.values())
    assert report["error"] == pytest.approx(lost**0.5, rel=1e-3)
    two.add_weighted_adapter(["a", "b"], [1.0, 1.0], "c", "task_arithmetic", svd_energy=1.0, layer_weights={"layers.0": [3, 0], "up_proj": [0, 2]})
    factors = {n: (3, 0) if ".layers.0." in n else (0, 2) if n.endswith("up_proj") else (1, 1) for n in total}
    close(made(two), {n: factors[n][0] * a.get(n, 0) + factors[n][1] * b.get(n, 0) + 0 * d for n, d in total.items()})


def test_energy_decides_by_layer(two):
    _, a, _ = parts(two)
    config, state = two.convert_to_lora(0.8, "a")
    for name, delta in a.items():
        energy = np.cumsum(np.linalg.svd(delta, compute_uv=False) ** 2)
        rank = int(np.searchsorted(energy, 0.8 * energy[-1])) + 1
        assert state[f"{PREFIX}{name}.lora_A.weight"].shape[0] == rank
    assert config["lora_alpha"] == config["r"] and config["rank_pattern"] == config["alpha_pattern"]


def test_slerp(two):
    both, a, b = parts(two)
    two.add_weighted_adapter(["a", "b"], [3.0, 1.0], "c", "slerp", svd_energy=1.0)
    wanted = {}
    for name, found in both.items():
        if len(found) == 1:
            wanted[name] = (0.75 if name in a else 0.25) * found[0]
            continue
        angle = np.arccos((found[0] * found[1]).sum() / np.linalg.norm(found[0]) / np.linalg.norm(found[1]))
        wanted[name] = (np.sin(0.75 * angle) * found[0] + np.sin(0.25 * angle) * found[1]) / np.sin(angle)
    close(made(two), wanted)


def band(x, density, gamma):
    """Without the int(γ·n) largest, the next int(d·n)."""
    order = np.argsort(-np.abs(x), axis=None, kind="stable")
    dropped = int(gamma * x.size)
    kept = np.zeros(x.size, bool)
    kept[order[dropped:dropped + int(density * x.size)]] = True
    return np.where(kept.reshape(x.shape), x, 0)


def elected(changes, weights):
    sign = np.where(sum(changes) >= 0, 1, -1)
    agree = [np.sign(p) == sign for p in changes]
    return sum(w * p * m for w, p, m in zip(weights, changes, agree)) / np.maximum(1, sum(m.astype(int) for m in agree))


@pytest.mark.parametrize("kind", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(two, kind):
    both, a, b = parts(two)
    two.add_weighted_adapter(["a", "b"], [0.5, 1.0], "c", kind, density=0.4, gamma=0.05, svd_energy=1.0)
    wanted = {}
    for name in both:
        found = [(w, band(d[name], 0.4, 0.05)) for w, d in ((0.5, a), (1.0, b)) if name in d]
        wanted[name] = elected([p for _, p in found], [w for w, _ in found]) if kind.endswith("ties") else sum(w * p for w, p in found)
    # Float32 may order values that are nearly equal differently: single entries, seen in the norm only.
    got = made(two)
    for name, value in wanted.items():
        assert np.linalg.norm(got[name] - value) < 0.02 * np.linalg.norm(value), name


def test_random_ones_follow_the_seed(two):
    results = []
    for seed in (1, 1, 2):
        two.add_weighted_adapter(["a", "b"], [1.0, 1.0], "c", "della", density=0.5, seed=seed, svd_energy=1.0)
        results.append(made(two))
    assert all(np.array_equal(results[0][n], results[1][n]) for n in results[0])
    assert any(not np.array_equal(results[0][n], results[2][n]) for n in results[0])


def test_progress_and_cancel(two):
    seen = []
    two.add_weighted_adapter(["a", "b"], [1.0, 1.0], "c", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
    with pytest.raises(peftswift.Cancelled):
        two.add_weighted_adapter(["a", "b"], [1.0, 1.0], "d", progress=lambda done, total: done == 1)
    with pytest.raises(ZeroDivisionError):
        two.add_weighted_adapter(["a", "b"], [1.0, 1.0], "d", progress=lambda done, total: 1 / 0)
    assert "d" not in two.adapter_status()["adapters"]


def test_saved_modules_stay(model):
    """A module trained in full is kept from the one adapter that has it; from two it is refused."""
    for name, saved in (("a", ["lm_head"]), ("b", None), ("c", ["lm_head"])):
        model.add_adapter(name, {**LORA, "modules_to_save": saved})
        stir(model, name)
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "d")
    assert np.array_equal(model.adapter_state_dict("d")[PREFIX + "lm_head.weight"], model.adapter_state_dict("a")[PREFIX + "lm_head.weight"])
    with pytest.raises(peftswift.PeftError, match="lm_head"):
        model.add_weighted_adapter(["a", "c"], [1.0, 1.0], "e")


def test_files(two, tmp_path):
    for name in ("a", "b"):
        two.save_pretrained(tmp_path / name, name)
    _, a, b = parts(two)

    def opened(folder):
        two.load_adapter(folder, "c")
        return made(two)

    combine_adapters([tmp_path / "a", tmp_path / "b"], [1, -0.5], tmp_path / "sum", combination_type="cat")
    close(opened(tmp_path / "sum"), {n: a.get(n, 0) - 0.5 * b.get(n, 0) for n in {**a, **b}})
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 7 and config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    scale_adapter(tmp_path / "a", 3.0, tmp_path / "scaled.h5")
    close(opened(tmp_path / "scaled.h5"), {n: 3 * d for n, d in a.items()})
    report = resize_adapter(tmp_path / "a", tmp_path / "small", 2)
    close(opened(tmp_path / "small"), {n: cut(d, 2) for n, d in a.items()})
    assert 0 < report["error"] < 1
    assert resize_adapter(tmp_path / "a", tmp_path / "share", 0.9)["error"] <= (1 - 0.9) ** 0.5
    prune_adapter(tmp_path / "a", 0.25, tmp_path / "pruned")
    close(opened(tmp_path / "pruned"), {n: cut(band(d, 0.25, 0), 4) for n, d in a.items()}, 0.02)
    same = compare_adapters(tmp_path / "a", tmp_path / "scaled.h5")
    assert same["cosine"] == pytest.approx(1, abs=1e-5) and all(layer["overlap_in"] == pytest.approx(1, abs=1e-4) for layer in same["layers"])
    other = compare_adapters(tmp_path / "a", tmp_path / "b")
    assert other["only_a"] == [n for n in a if n not in b] and other["only_b"] == [n for n in b if n not in a]
    for layer in other["layers"]:
        x, y = a[layer["name"]], b[layer["name"]]
        assert layer["cosine"] == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-4)
        (ux, _, vx), (uy, _, vy) = np.linalg.svd(x), np.linalg.svd(y)
        assert layer["overlap_in"] == pytest.approx(np.square(vx[:4] @ vy[:3].T).sum() / 3, abs=1e-3)
        assert layer["overlap_out"] == pytest.approx(np.square(ux[:, :4].T @ uy[:, :3]).sum() / 3, abs=1e-3)
    with pytest.raises(peftswift.PeftError):
        combine_adapters([], [], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_extract(two, ids):
    base = Model.from_pretrained(two.path, dtype="float32")
    two.set_adapter(["a", "b"])
    two.merge_and_unload()
    report = base.extract_adapter(two, "x", svd_rank=7)
    assert report["error"] < 1e-3 and report["left_out"] == []
    base.set_adapter("x")
    assert np.abs(base(input_ids=ids).logits - two(input_ids=ids).logits).max() < 1e-3


@pytest.mark.parametrize("kind, weights, options", [
    ("task_arithmetic", [0.7, 0.5], {}), ("ties_svd", [1.0, 1.0], {"density": 0.4}), ("magnitude_prune_svd", [0.7, 0.5], {"density": 0.4}),
    ("breadcrumbs", [0.7, 0.5], {"density": 0.6, "gamma": 0.1}), ("breadcrumbs_ties", [1.0, 1.0], {"density": 0.6, "gamma": 0.1}), ("slerp", [3.0, 1.0], {}),
])
def test_what_mergekit_makes_of_the_same(kind, weights, options):
    """fixtures_mergekit/make.py: changes of whole weights, merged by mergekit's own functions."""
    given = np.load(Path(__file__).parent / "fixtures_mergekit" / "merged.npz")
    model = Model.from_arrays({"model_type": "graph", "layers": [{"name": "up", "kind": "Linear"}]}, {"up.weight": np.zeros((24, 40), np.float32)})
    for i in (1, 2):
        model.add_adapter(f"{i}", {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["up"]})
        keys = list(model.adapter_state_dict(f"{i}"))
        model.load_adapter_state_dict(f"{i}", {key: given[f"a{i}" if "lora_A" in key else f"b{i}"] for key in keys})
    model.add_weighted_adapter(["1", "2"], weights, "both", kind, svd_energy=1.0, **options)
    model.set_adapter("both")
    made = model.layer("up")(np.eye(40, dtype=np.float32)).T
    assert np.abs(made - given[kind]).max() < 2e-5 * np.abs(given[kind]).max()


@pytest.mark.parametrize("kind, options", [("svd", {}), ("ties_svd", {"density": 0.5}), ("dare_ties_svd", {"density": 0.5}), ("breadcrumbs", {"density": 0.9})])
def test_one_layer_in_memory(kind, options):
    """Of changes of whole weights those of one layer are there at a time; of all layers only the new factors stay."""
    size, count = 256, 24
    random = np.random.default_rng(3)
    weights = {f"l{i}.weight": np.zeros((size, size), np.float32) for i in range(count)}
    context = peftswift.Context(threads=2)
    model = Model.from_arrays({"model_type": "graph", "layers": [{"name": f"l{i}", "kind": "Linear"} for i in range(count)]}, weights, context=context)
    for name in "ab":
        model.add_adapter(name, {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": "l\\d+"})
        stir(model, name, int(random.integers(100)))
    context.trim()
    before = context.memory()["live"]
    model.add_weighted_adapter(["a", "b"], [1.0, 0.5], "c", kind, **options)
    factors = 4 * 2 * size * 4 * count
    assert context.memory()["peak"] - before < 3 * factors + 16 * 4 * size * size


@pytest.mark.parametrize("shape", [(256, 256), (192, 640), (640, 192), (300, 301)])
@pytest.mark.parametrize("kind, options", [("ties_svd", {"density": 0.5}), ("magnitude_prune_svd", {"density": 0.3}), ("magnitude_prune_svd", {"density": 1.0}), ("breadcrumbs", {"density": 0.8})])
def test_the_short_way_to_the_largest_directions(shape, kind, options):
    """Whole changes that are cut to rank 8: block Lanczos against numpy's singular values in f64."""
    random = np.random.default_rng(sum(shape))
    model = Model.from_arrays({"model_type": "graph", "layers": [{"name": "up", "kind": "Linear"}]}, {"up.weight": np.zeros(shape, np.float32)})
    for name in "ab":
        model.add_adapter(name, {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["up"]})
        state = model.adapter_state_dict(name)
        model.load_adapter_state_dict(name, {key: (random.normal(size=value.shape) * 0.7 ** np.arange(8)[:, None if "lora_A" in key else slice(None)]).astype(np.float32)
                                             if "lora_A" in key else random.normal(size=value.shape).astype(np.float32) for key, value in state.items()})
    rows = np.eye(shape[1], dtype=np.float32)
    report = model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "whole", kind, svd_energy=1.0, **options)
    model.set_adapter("whole")
    whole = np.array(model.layer("up")(rows).T, np.float64)
    assert report["error"] < 1e-3
    u, s, vh = np.linalg.svd(whole, full_matrices=False)
    best = (u[:, :8] * s[:8]) @ vh[:8]
    report = model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "cut", kind, **options)
    model.set_adapter("cut")
    made = np.array(model.layer("up")(rows).T, np.float64)
    assert np.isclose(report["error"], np.sqrt((s[8:] ** 2).sum() / (s**2).sum()), rtol=1e-4)
    # No approximation of that rank is nearer, up to rounding; and where the ninth value is apart it is the same one.
    assert np.linalg.norm(made - whole) < (1 + 1e-5) * np.linalg.norm(best - whole)
    gap = (s[7] ** 2 - s[8] ** 2) / s[0] ** 2
    assert np.linalg.norm(made - best) < 1e-5 / gap * s[7] + 1e-4 * s[0]
