"""Combining adapters; in files, without their model, as functions of folders."""

import ctypes as c
import json
from contextlib import contextmanager

from ._library import PROGRESS, Context, c_floats, c_names, call, decoded_json, encoded_json, encoded_path


def report(name, *arguments):
    """A function that makes something and writes its report once, as JSON."""
    room, needed = c.create_string_buffer(1 << 20), c.c_size_t()
    call(name, room, len(room), c.byref(needed), *arguments)
    return json.loads(room.value) if room.value else None


@contextmanager
def watched(progress):
    """``progress(done, total)`` as a C callback; what it raises comes out of the ``with`` block."""
    raised = []

    def tell(_, done, total):
        try:
            return int(bool(progress(done, total)))
        except BaseException as error:  # C cannot carry it.
            raised.append(error)
            return 1

    try:
        yield PROGRESS(tell) if progress else PROGRESS()
    except Exception:
        if raised:
            raise raised[0] from None
        raise


def combined(function, owner, target, adapters, weights, options, progress, names=None):
    names, count = names or c_names(adapters)
    options = {key: value for key, value in options.items() if value is not None}
    with watched(progress) as callback:
        return report(function, owner, target, names, c_floats(weights, count), count, encoded_json(options), callback, None)


def combine_adapters(paths, weights, path, context=None, progress=None, **options):
    """LoRA folders become one at ``path``: ``combine_adapters([a, b], [1, -1], out, combination_type="cat")``; returns the report.

    options: those of ``Model.add_weighted_adapter``. Of one folder: ``scale_adapter``, ``resize_adapter``, ``prune_adapter``.
    """
    paths = [encoded_path(item) for item in ([paths] if isinstance(paths, (str, bytes)) else paths)]
    names = (c.c_char_p * max(len(paths), 1))(*paths), len(paths)
    return combined("peft_adapter_combine_files", context or Context(), encoded_path(path), None, weights, options, progress, names)


def compose_cartridge_adapters(adapter_paths, *, output_path, context=None):
    """Cartridges become one, their tokens behind each other (PEFT's function); returns the number of virtual tokens."""
    return combine_adapters(list(adapter_paths), None, output_path, context=context)["virtual_tokens"]


def scale_adapter(source, factor, path, **more):
    """A LoRA folder that acts ``factor`` times as strongly."""
    return combine_adapters([source], [factor], path, **more)


def resize_adapter(source, path, rank, **more):
    """A LoRA folder of another rank (a number), or of the fewest directions with a share of the energy (a float up to 1)."""
    return combine_adapters([source], [1.0], path, **({"svd_energy": rank} if isinstance(rank, float) else {"svd_rank": rank}), **more)


def prune_adapter(source, density, path, **more):
    """A LoRA folder whose ΔW keeps this share of its values, the largest; back to its rank."""
    return combine_adapters([source], [1.0], path, combination_type="magnitude_prune_svd", density=density, **more)


def compare_adapters(path, other, context=None):
    """How alike two LoRA folders are: cosine of ΔW and overlap of subspaces by layer, and the cosine of all."""
    return decoded_json("peft_adapter_compare_files", context or Context(), encoded_path(path), encoded_path(other))
