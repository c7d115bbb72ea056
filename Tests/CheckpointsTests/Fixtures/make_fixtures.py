"""Makes the files beside it with the reference implementations:

    pip install numpy safetensors gguf h5py torch peft transformers
    python make_fixtures.py

The values of every tensor are arange(count) - 3 in its shape, so that tests need no second file.
"""

import json
import os

import gguf
import h5py
import numpy as np
import torch
from safetensors.torch import save_file

here = os.path.dirname(os.path.abspath(__file__))


def path(name):
    return os.path.join(here, name)


def ramp(dtype, *shape):
    return (torch.arange(int(np.prod(shape))) - 3).reshape(shape).to(dtype)


def safetensors():
    tensors = {
        "b.weight": ramp(torch.float32, 2, 3),
        "a.weight": ramp(torch.float32, 4),
        "half": ramp(torch.float16, 3),
        "brain": ramp(torch.bfloat16, 2, 2),
        "double": ramp(torch.float64, 2),
        "i8": ramp(torch.int8, 5),
        "i16": ramp(torch.int16, 3),
        "i32": ramp(torch.int32, 3),
        "i64": ramp(torch.int64, 2, 1),
        "u8": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(-3.0),
        "empty": torch.zeros(0, 4),
        "z/ümläut \"quoted\" \\ \u0001 名": ramp(torch.float32, 1),
    }
    save_file(tensors, path("all_types.safetensors"), metadata={"format": "pt"})


def gguf_file():
    writer = gguf.GGUFWriter(path("all_kinds.gguf"), "test")
    writer.add_uint8("k.u8", 200)
    writer.add_int8("k.i8", -5)
    writer.add_uint16("k.u16", 60000)
    writer.add_int16("k.i16", -30000)
    writer.add_uint32("k.u32", 4000000000)
    writer.add_int32("k.i32", -2000000000)
    writer.add_uint64("k.u64", 2**63 + 1)
    writer.add_int64("k.i64", -(2**62))
    writer.add_float32("k.f32", 0.5)
    writer.add_float64("k.f64", 1e-5)
    writer.add_bool("k.bool", True)
    writer.add_string("k.string", "Grüße")
    writer.add_array("k.strings", ["a", "", "ĠĊ", "名前"])
    writer.add_array("k.ints", [3, -1, 7])
    writer.add_array("k.floats", [0.25, -2.5])
    rng = np.random.default_rng(7)
    values = rng.standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor("f32.weight", (np.arange(6, dtype=np.float32) - 3).reshape(2, 3))
    writer.add_tensor("f16.weight", (np.arange(4, dtype=np.float16) - 3))
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1):
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{kind.name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def hdf5():
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    with h5py.File(path("h5py_adapter.h5"), "w") as f:
        f.attrs["note"] = "a variable-length attribute, to be passed over"
        f.attrs["peftswift_checkpoint"] = np.int64(1)
        f["state"] = np.bytes_(json.dumps({"kind": "training", "attributes": {"adapter_config": config, "step": 12}}))
        for name, dtype in {"f4": "<f4", "f2": "<f2", "f8": "<f8", "i1": "i1", "i2": "<i2", "i4": "<i4", "i8": "<i8"}.items():
            f["types/" + name] = (np.arange(6) - 3).astype(dtype).reshape(2, 3)
        f["types/u1"] = np.arange(3, dtype="u1")
        f["types/scalar"] = np.float32(-3)
        f["types/empty"] = np.zeros((0, 4), "<f4")
        for layer in range(40):  # several symbol nodes and more than one tree node's worth of names
            key = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.weight"
            f["adapter/" + key] = (np.arange(4, dtype="<f4") - 3 + layer).reshape(2, 2)
            f["optimizer/exp_avg/" + key] = np.zeros((2, 2), "<f4")
    refused = {
        "chunked": lambda f: f.create_dataset("g/x", data=np.zeros((4, 4), "<f4"), chunks=(2, 2)),
        "compressed": lambda f: f.create_dataset("g/x", data=np.zeros((4, 4), "<f4"), compression="gzip"),
        "soft": lambda f: f.create_group("g").__setitem__("x", h5py.SoftLink("/state")),
        "externallink": lambda f: f.create_group("g").__setitem__("x", h5py.ExternalLink("other.h5", "/x")),
        "externaldata": lambda f: f.create_dataset("g/x", shape=(4,), dtype="<f4", external=[("data.bin", 0, 16)]),
        "virtual": virtual,
        "vlen": lambda f: f.create_dataset("g/x", data="text"),
        "bool": lambda f: f.create_dataset("g/x", data=np.array([True])),
        "bigendian": lambda f: f.create_dataset("g/x", data=np.zeros(2, ">f4")),
        "tracked": lambda f: f.create_group("g", track_order=True).__setitem__("x", np.zeros(2, "<f4")),
        "cycle": lambda f: f.create_group("g").__setitem__("x", f["/"]),
        "unwritten": lambda f: f.create_dataset("g/x", shape=(1 << 40,), dtype="<f4"),
        "nomagic": None,
    }
    for name, make in refused.items():
        with h5py.File(path(f"refused_{name}.h5"), "w") as f:
            if make:
                f.attrs["peftswift_checkpoint"] = np.int64(1)
            f["state"] = np.bytes_(json.dumps({"kind": "adapter", "attributes": {}}))
            if make:
                make(f)
    with h5py.File(path("refused_latest.h5"), "w", libver="latest") as f:
        f.attrs["peftswift_checkpoint"] = np.int64(1)
    with h5py.File(path("refused_userblock.h5"), "w", userblock_size=512) as f:
        f.attrs["peftswift_checkpoint"] = np.int64(1)


def virtual(f):
    layout = h5py.VirtualLayout(shape=(4,), dtype="<f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    f.create_group("g").create_virtual_dataset("x", layout)


safetensors()
gguf_file()
hdf5()
