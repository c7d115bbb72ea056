"""Arrays in and out: types, layouts, copies only where promised, lifetimes."""

import gc

import numpy as np
import pytest

from peftswift import Context, PeftValueError, Tensors


@pytest.fixture
def context():
    return Context(threads=1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"])
def test_types_round_trip(context, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    out = Tensors.from_arrays(context, {"x": array}).get("x")
    assert out.dtype == array.dtype and np.array_equal(out, array)


@pytest.mark.parametrize("array", [np.float32(3.5), np.zeros((0, 4), np.int64), np.zeros((1, 1, 1, 1, 1, 1, 1, 2), np.float32)], ids=["scalar", "empty", "rank 8"])
def test_shapes_round_trip(context, array):
    out = Tensors.from_arrays(context, {"x": array}).get("x")
    assert out.shape == array.shape and np.array_equal(out, array)


def test_layouts_are_made_contiguous(context):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array.T, array[:, ::2], array[::-1], np.asfortranarray(array), np.broadcast_to(array[0], (5, 4)), array.astype(">f4")):
        assert np.array_equal(Tensors.from_arrays(context, {"x": view}).get("x"), view)


def test_lists_are_arrays(context):
    assert Tensors.from_arrays(context, {"x": [[1, 2], [3, 4]]}).get("x").tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([object()]), np.array([1j]), np.array([1], np.uint32)], ids=["text", "object", "complex", "uint32"])
def test_other_types_are_named(context, array):
    with pytest.raises(TypeError, match="float32"):
        Tensors.from_arrays(context, {"x": array})


def test_rank_nine_is_refused(context):
    with pytest.raises(PeftValueError, match="rank|9"):
        Tensors.from_arrays(context, {"x": np.zeros((1,) * 9, np.float32)})


def test_out_is_a_read_only_view_that_lives_on(context):
    tensors = Tensors.from_arrays(context, {"x": np.arange(1 << 16, dtype=np.float32)})
    first, second = tensors.get("x"), tensors.get("x")
    assert first.ctypes.data == second.ctypes.data, "no copy"
    with pytest.raises(ValueError):
        first[0] = 1
    del tensors, second, context
    gc.collect()
    assert np.array_equal(first, np.arange(1 << 16)), "the array keeps the memory alive"


def test_in_is_a_copy(context):
    array = np.ones(4, np.float32)
    tensors = Tensors.from_arrays(context, {"x": array})
    array[:] = 2
    assert tensors.get("x").tolist() == [1, 1, 1, 1]


def test_replacing_a_name(context):
    tensors = Tensors.from_arrays(context, {"x": np.ones(2, np.float32)})
    tensors.set("x", np.zeros(3, np.int64))
    assert tensors.names() == ["x"] and tensors.get("x").tolist() == [0, 0, 0]


def test_names_with_accents_and_without_nul(context):
    tensors = Tensors.from_arrays(context, {"größe.λ": np.ones(1, np.float32)})
    assert tensors.names() == ["größe.λ"]
    with pytest.raises(ValueError, match="NUL"):
        tensors.set("a\0b", np.ones(1))
    with pytest.raises(LookupError, match="nothing"):
        tensors.get("nothing")


def test_model_weights_come_as_they_are(model, base_folder):
    """state_dict() under transformers' names; the values are those of the file."""
    import sys
    sys.path.insert(0, str(base_folder.parents[2]))
    from run import st_load

    expected, state = st_load(base_folder / "model.safetensors"), model.state_dict()
    assert set(expected) <= set(state)
    for name, value in expected.items():
        assert np.array_equal(state[name], value), name
    name = "model.layers.1.mlp.up_proj.weight"
    assert np.array_equal(model.get_parameter(name), expected[name])
    with pytest.raises(LookupError, match="model.layers.9"):
        model.get_parameter("model.layers.9.mlp.up_proj.weight")


def test_outputs_outlive_the_model(model, ids):
    logits = model(input_ids=ids).logits
    expected = logits.copy()
    del model
    gc.collect()
    assert np.array_equal(logits, expected)
