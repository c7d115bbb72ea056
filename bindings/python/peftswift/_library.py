"""The C interface as Python sees it: loading the library, its functions, errors, handles, arrays.

Everything here mirrors ``peftswift.h``; nothing is computed. ctypes releases the GIL during every call.
"""

import ctypes as c
import ctypes.util
import enum
import json
import logging
import operator
import os
import signal
import threading
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HANDLE, TEXT, SIZE = c.c_void_p, c.c_char_p, c.c_size_t
OUT = c.POINTER(c.c_void_p)
CHARS, NEEDED, IDS, NAMES, FLOATS = c.c_void_p, c.POINTER(c.c_size_t), c.POINTER(c.c_int32), c.POINTER(c.c_char_p), c.POINTER(c.c_float)
I32, I64, F32, F64 = c.c_int32, c.c_int64, c.c_float, c.c_double

PROGRESS = c.CFUNCTYPE(I32, c.c_void_p, I64, I64)
TEXT_CALLBACK = c.CFUNCTYPE(I32, c.c_void_p, c.c_void_p, SIZE)
TEXTS_CALLBACK = c.CFUNCTYPE(I32, c.c_void_p, I64, c.c_void_p, SIZE)
LOG = c.CFUNCTYPE(None, c.c_void_p, I32, c.c_char_p)

OK, DONE = 0, 1
ALL = SIZE(-1)


class ErrorRecord(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("code", I32), ("detail", I64), ("message", c.c_char * 512)]


class ContextOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("threads", I32), ("memory_budget", c.c_uint64), ("level", I32), ("reserved", I32), ("log", LOG),
                ("allocate", c.c_void_p), ("deallocate", c.c_void_p), ("parallel_for", c.c_void_p), ("user_data", c.c_void_p)]


class ModelOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("compute", I32), ("options_json", TEXT), ("progress", PROGRESS), ("user_data", c.c_void_p)]


class ArrayView(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("type", I32), ("rank", I32), ("reserved", I32), ("shape", I64 * 8), ("data", c.c_void_p), ("size", SIZE)]


class Step(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("updated", I32), ("step", I64), ("tokens", I64), ("loss", F64), ("gradient_norm", F64), ("learning_rate", F64)]


class Progress(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("reserved", I32), ("step", I64), ("total_steps", I64), ("epoch", I64), ("loss", F64), ("evaluation_loss", F64),
                ("learning_rate", F64), ("tokens_per_second", F64), ("seconds", F64), ("seconds_left", F64), ("memory", c.c_uint64), ("memory_peak", c.c_uint64)]


TRAINING_CALLBACK = c.CFUNCTYPE(I32, c.c_void_p, c.POINTER(Progress))
ERROR = c.POINTER(ErrorRecord)
STEP, ARRAY = c.POINTER(Step), c.POINTER(ArrayView)
TEXT_OUT = [CHARS, SIZE, NEEDED]
IDS_OUT = [IDS, SIZE, NEEDED]

#: Every function of the header that can fail: its arguments without the final ``peft_error *``.
FUNCTIONS = {
    "peft_features": TEXT_OUT,
    "peft_context_create": [OUT, c.POINTER(ContextOptions)],
    "peft_context_memory": [*TEXT_OUT, HANDLE],
    "peft_context_trim": [HANDLE],
    "peft_tensors_create": [OUT, HANDLE],
    "peft_tensors_set": [HANDLE, TEXT, I32, I32, c.POINTER(I64), c.c_void_p],
    "peft_tensors_borrow": [HANDLE, TEXT, I32, I32, c.POINTER(I64), c.c_void_p],
    "peft_tensors_get": [ARRAY, HANDLE, TEXT],
    "peft_tensors_load": [OUT, HANDLE, TEXT],
    "peft_tensors_save": [HANDLE, TEXT],
    "peft_tensors_quantize": [OUT, HANDLE, TEXT],
    "peft_tensors_dequantize": [OUT, HANDLE],
    "peft_model_open": [OUT, HANDLE, TEXT, c.POINTER(ModelOptions)],
    "peft_model_open_memory": [OUT, HANDLE, c.c_void_p, SIZE, c.POINTER(ModelOptions)],
    "peft_model_create": [OUT, HANDLE, TEXT, HANDLE, c.POINTER(ModelOptions)],
    "peft_model_describe": [*TEXT_OUT, HANDLE],
    "peft_model_state": [OUT, HANDLE, TEXT],
    "peft_model_forward": [OUT, HANDLE, HANDLE, TEXT],
    "peft_model_preprocess": [OUT, HANDLE, HANDLE],
    "peft_model_gradients": [OUT, c.POINTER(F64), HANDLE, HANDLE, TEXT],
    "peft_model_set_training": [HANDLE, I32],
    "peft_model_tokenizer": [OUT, HANDLE],
    "peft_model_quantize": [*TEXT_OUT, HANDLE, TEXT, PROGRESS, c.c_void_p],
    "peft_model_export": [HANDLE, TEXT, TEXT],
    "peft_adapter_add": [HANDLE, TEXT, TEXT, TEXT],
    "peft_adapter_add_calibrated": [HANDLE, TEXT, TEXT, TEXT, c.POINTER(c.c_void_p), I64],
    "peft_adapter_load": [HANDLE, TEXT, TEXT, I32],
    "peft_adapter_save": [HANDLE, TEXT, TEXT],
    "peft_adapter_save_as": [HANDLE, TEXT, TEXT, TEXT],
    "peft_adapter_remove": [HANDLE, TEXT],
    "peft_adapter_rename": [HANDLE, TEXT, TEXT],
    "peft_adapter_set_active": [HANDLE, NAMES, FLOATS, I64],
    "peft_adapter_set_composition": [HANDLE, TEXT],
    "peft_adapter_set_enabled": [HANDLE, I32],
    "peft_adapter_set_scale": [HANDLE, TEXT, F32],
    "peft_adapter_set_trainable": [HANDLE, TEXT, I32],
    "peft_adapter_list_methods": TEXT_OUT,
    "peft_adapter_status": [*TEXT_OUT, HANDLE],
    "peft_adapter_config": [*TEXT_OUT, HANDLE, TEXT],
    "peft_adapter_state": [OUT, HANDLE, TEXT],
    "peft_adapter_parameters": [OUT, HANDLE],
    "peft_adapter_set_state": [HANDLE, TEXT, HANDLE],
    "peft_adapter_fill": [HANDLE, TEXT, TEXT],
    "peft_model_merge": [*TEXT_OUT, HANDLE, NAMES, I64, TEXT],
    "peft_model_unmerge": [HANDLE],
    "peft_model_merge_and_unload": [HANDLE],
    "peft_adapter_combine": [*TEXT_OUT, HANDLE, TEXT, NAMES, FLOATS, I64, TEXT, PROGRESS, c.c_void_p],
    "peft_adapter_extract": [*TEXT_OUT, HANDLE, TEXT, HANDLE, TEXT, PROGRESS, c.c_void_p],
    "peft_adapter_combine_files": [*TEXT_OUT, HANDLE, TEXT, NAMES, FLOATS, I64, TEXT, PROGRESS, c.c_void_p],
    "peft_adapter_compare_files": [*TEXT_OUT, HANDLE, TEXT, TEXT],
    "peft_tokenizer_open": [OUT, HANDLE, TEXT],
    "peft_tokenizer_describe": [*TEXT_OUT, HANDLE],
    "peft_tokenizer_encode": [*IDS_OUT, HANDLE, TEXT, SIZE, I32],
    "peft_tokenizer_decode": [*TEXT_OUT, HANDLE, IDS, SIZE, I32],
    "peft_tokenizer_chat": [*TEXT_OUT, HANDLE, TEXT, TEXT],
    "peft_dataset_open": [OUT, HANDLE, TEXT, TEXT],
    "peft_dataset_open_memory": [OUT, HANDLE, TEXT, SIZE, TEXT],
    "peft_dataset_describe": [*TEXT_OUT, HANDLE],
    "peft_dataset_next": [OUT, HANDLE],
    "peft_trainer_create": [OUT, HANDLE, TEXT],
    "peft_trainer_step": [STEP, HANDLE, HANDLE],
    "peft_trainer_step_rows": [STEP, HANDLE, HANDLE, NAMES, I64],
    "peft_trainer_run": [HANDLE, HANDLE, HANDLE, TRAINING_CALLBACK, c.c_void_p],
    "peft_trainer_advance": [STEP, HANDLE, HANDLE, F64],
    "peft_trainer_evaluate": [c.POINTER(F64), HANDLE, HANDLE],
    "peft_trainer_plan": [*TEXT_OUT, HANDLE, I64, I64],
    "peft_trainer_save": [HANDLE, HANDLE, TEXT],
    "peft_trainer_resume": [HANDLE, HANDLE, TEXT],
    "peft_trainer_cancel": [HANDLE],
    "peft_trainer_update": [STEP, HANDLE],
    "peft_trainer_gradients": [OUT, HANDLE, I32],
    "peft_layer_forward": [c.c_void_p, SIZE, OUT, HANDLE, TEXT, ARRAY, HANDLE],
    "peft_pass_output": [ARRAY, HANDLE],
    "peft_layer_backward": [c.c_void_p, SIZE, HANDLE, c.c_void_p, SIZE],
    "peft_session_create": [OUT, HANDLE, TEXT],
    "peft_session_append": [HANDLE, IDS, SIZE],
    "peft_session_append_text": [HANDLE, TEXT, SIZE, I32],
    "peft_session_append_chat": [HANDLE, TEXT],
    "peft_session_read_source": [HANDLE, HANDLE],
    "peft_session_next": [IDS, *TEXT_OUT, HANDLE],
    "peft_session_generate": [HANDLE, I64, TEXT_CALLBACK, c.c_void_p],
    "peft_sessions_next": [IDS, c.POINTER(c.c_void_p), I64, TEXTS_CALLBACK, c.c_void_p],
    "peft_session_set_adapters": [HANDLE, NAMES, FLOATS, I64],
    "peft_session_configure": [HANDLE, TEXT],
    "peft_session_rewind": [HANDLE, I64],
    "peft_session_fork": [OUT, HANDLE],
    "peft_session_logits": [OUT, HANDLE],
    "peft_session_describe": [*TEXT_OUT, HANDLE],
    "peft_session_tokens": [*IDS_OUT, HANDLE],
    "peft_session_cancel": [HANDLE],
}

#: Functions without an error record: result and arguments.
PLAIN = {
    "peft_version": (c.c_char_p, []),
    "peft_version_number": (I32, []),
    "peft_status_text": (c.c_char_p, [I32]),
    "peft_context_options_init": (None, [c.POINTER(ContextOptions)]),
    "peft_model_options_init": (None, [c.POINTER(ModelOptions)]),
    "peft_tensors_count": (I64, [HANDLE]),
    "peft_tensors_name": (c.c_char_p, [HANDLE, I64]),
    **{f"peft_{kind}_free": (None, [HANDLE]) for kind in ("context", "tensors", "model", "tokenizer", "dataset", "trainer", "pass", "session")},
}


class PeftError(RuntimeError):
    """What the library refused, in its own words. ``code`` is the PEFT_ERROR_… number, ``detail`` a number that belongs to it."""

    def __init__(self, message, code=-99, detail=0):
        super().__init__(message)
        self.code, self.detail = code, detail


class PeftValueError(PeftError, ValueError):
    """An argument, a file or a combination of things is wrong."""


class PeftMemoryError(PeftError, MemoryError):
    """The memory budget or the machine has no room."""


class PeftIOError(PeftError, OSError):
    """The operating system refused."""

    def __init__(self, message, code=-4, detail=0):
        PeftError.__init__(self, message, code, detail)

    def __str__(self):
        return self.args[0]


class PeftLookupError(PeftValueError, LookupError):
    """No such file, name or key."""


class Cancelled(PeftError):
    """A callback or a cancel method stopped the call."""


class ContextFullError(PeftError):
    """The session's context has no room for more tokens."""


_ERRORS = {-1: PeftValueError, -3: PeftMemoryError, -4: PeftIOError, -5: PeftValueError, -6: PeftValueError, -7: PeftLookupError, -9: Cancelled,
           -11: ContextFullError, -12: PeftValueError}


def _candidates():
    """Where the library may be: beside this file (a wheel), in a build tree, on the system."""
    here = Path(__file__).resolve()
    yield here.with_name("libpeftswift.so.1")
    for parent in here.parents:
        if (parent / "Package.swift").exists():
            yield parent / "build" / "libpeftswift.so.1"
            break


def _load():
    path = os.environ.get("PEFTSWIFT_LIBRARY") or next((str(p) for p in _candidates() if p.exists()), None) or c.util.find_library("peftswift")
    if path is None:
        raise ImportError("libpeftswift.so.1 was not found beside the package, in the build tree (make library), or on the system; "
                          "PEFTSWIFT_LIBRARY may name it")
    library = c.CDLL(path)
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = I32, [*arguments, ERROR]
    for name, (result, arguments) in PLAIN.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.peft_version_number() // 10000 != 1:
        raise ImportError(f"{path} is version {library.peft_version().decode()}; this package speaks version 1")
    return library


lib = _load()


def call(name, *arguments):
    """Calls a function of FUNCTIONS; raises what it reports. Returns PEFT_OK or PEFT_DONE."""
    record = ErrorRecord(struct_size=c.sizeof(ErrorRecord))
    code = getattr(lib, name)(*arguments, c.byref(record))
    if code < 0:
        message = record.message.decode(errors="replace") or lib.peft_status_text(code).decode()
        raise _ERRORS.get(code, PeftError)(message, code, record.detail)
    return code


def call_text(name, *arguments):
    """A function with the two-call text form."""
    needed = SIZE()
    call(name, None, 0, c.byref(needed), *arguments)
    while True:
        capacity = needed.value + 1
        buffer = c.create_string_buffer(capacity)
        call(name, buffer, capacity, c.byref(needed), *arguments)
        if needed.value < capacity:
            return buffer.raw[: needed.value].decode(errors="replace")


def call_ids(name, *arguments):
    """A function with the two-call form for ids."""
    needed = SIZE()
    call(name, None, 0, c.byref(needed), *arguments)
    ids = (I32 * max(needed.value, 1))()
    call(name, ids, len(ids), c.byref(needed), *arguments)
    return list(ids[: needed.value])


@contextmanager
def interruptible(cancel):
    """Ctrl-C during a long call makes it end through ``cancel``; KeyboardInterrupt comes out of the ``with`` block.

    (Left to Python it would be raised at the first instruction of a callback, where ctypes prints and forgets it.)
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = []

    def note(*_):
        pressed.append(True)
        cancel()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed:
            raise KeyboardInterrupt from None


def encoded(text):
    """A name as char *. C would end it at a NUL, so there must be none."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is {type(text).__name__}; a string is expected")
    if "\0" in text:
        raise ValueError(f"{text!r} contains a NUL character")
    return text.encode()


def encoded_path(path):
    """A path as char *."""
    data = os.fsencode(path)
    if b"\0" in data:
        raise ValueError(f"the path {path!r} contains a NUL character")
    return data


def encoded_json(value):
    """Options and configurations as JSON text; sets, enumerations, numpy's numbers and blocks of compositions are what they look like."""

    def plain(item):
        if isinstance(item, (set, frozenset)):
            return sorted(item)
        if isinstance(item, enum.Enum):
            return item.value
        if hasattr(item, "tolist"):
            return item.tolist()
        if hasattr(item, "to_dict"):
            return item.to_dict()
        raise TypeError(f"{item!r} ({type(item).__name__}) has no place in an option")

    return json.dumps(value, default=plain).encode()


def decoded_json(name, *arguments):
    """A function with the two-call text form whose text is JSON."""
    return json.loads(call_text(name, *arguments))


def c_names(names):
    """One name or a list of them as char **, with its length."""
    names = [names] if isinstance(names, str) else list(names)
    return (c.c_char_p * max(len(names), 1))(*map(encoded, names)), len(names)


def c_floats(values, count):
    """Weights that go with ``count`` names as float *."""
    if values is None:
        return None
    if len(values) != count:
        raise ValueError(f"{len(values)} weights for {count} names")
    return (F32 * max(count, 1))(*values)


def c_ids(ids):
    """Token ids as int32_t *, with their number. ctypes would cut larger numbers off."""
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"token ids are one row of integers, not {array.dtype} of shape {array.shape}")
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(f"token ids {array.min()} … {array.max()} are not all 32-bit numbers")
    return (I32 * max(array.size, 1))(*array.tolist()), array.size


def c_number(value, what, lowest, highest):
    """An integer that fits its C parameter."""
    number = operator.index(value)
    if not lowest <= number <= highest:
        raise ValueError(f"{what} is {number}; {lowest} … {highest} are possible")
    return number


class Handle:
    """Owns a C handle; freed with the Python object, at the end of a ``with`` block, or by ``close()``."""

    kind = None

    def __init__(self, pointer):
        self._as_parameter_ = c.c_void_p(pointer)
        self.close = weakref.finalize(self, getattr(lib, f"peft_{self.kind}_free"), pointer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @classmethod
    def make(cls, function, *arguments):
        pointer = c.c_void_p()
        code = call(function, c.byref(pointer), *arguments)
        return None if code == DONE else cls(pointer.value)


_TO_C = {"float32": 0, "float16": 1, "int8": 24, "int16": 25, "int32": 26, "int64": 27, "float64": 28, "bfloat16": 30, "uint8": 1000, "bool": 1001}
_FROM_C = {value: np.dtype(key) for key, value in _TO_C.items() if key != "bfloat16"}
BF16 = _TO_C["bfloat16"]


class Tensors(Handle):
    """Named arrays. ``get`` gives read-only views of the library's memory: no copy; they keep it alive."""

    kind = "tensors"

    @classmethod
    def from_arrays(cls, context, arrays):
        tensors = cls.make("peft_tensors_create", context)
        for name, array in arrays.items():
            tensors.set(name, array)
        return tensors

    def set(self, name, array):
        """Copies an array (or what numpy makes one of: lists, torch tensors) in."""
        array = np.asarray(array, order="C")
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype.name not in _TO_C:  # (bfloat16 is the type of ml_dtypes)
            raise TypeError(f"{name} is an array of {array.dtype}; {', '.join(_TO_C)} are accepted")
        shape = (I64 * max(array.ndim, 1))(*array.shape)
        call("peft_tensors_set", self, encoded(name), _TO_C[array.dtype.name], array.ndim, shape, array.ctypes.data_as(c.c_void_p))

    def names(self):
        return [lib.peft_tensors_name(self, i).decode() for i in range(lib.peft_tensors_count(self))]

    def get(self, name):
        """bf16, which numpy does not have, is widened to f32 (a copy); blocks of quantised weights come as their bytes."""
        view = ArrayView(struct_size=c.sizeof(ArrayView))
        call("peft_tensors_get", c.byref(view), self, encoded(name))
        shape = tuple(view.shape[: view.rank])
        if view.size == 0:
            return np.empty(shape, _FROM_C.get(view.type, np.float32))
        buffer = (c.c_char * view.size).from_address(view.data)
        buffer._owner = self
        if view.type == BF16:
            return (np.frombuffer(buffer, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        array = np.frombuffer(buffer, _FROM_C.get(view.type, np.dtype(np.uint8)))
        array.flags.writeable = False  # It may lie in a mapped file or be shared.
        return array.reshape(shape) if view.type in _FROM_C else array

    def arrays(self):
        return {name: self.get(name) for name in self.names()}


LEVELS = ["auto", "portable", "avx2", "avx512", "avx512_bf16", "amx"]

# The C context outlives the Context while a model or tokenizer needs it, so what it logs to is never taken back.
_logs = {}


@LOG
def _write_log(key, severity, message):
    text = message.decode(errors="replace")
    if key in _logs:
        _logs[key]("warning" if severity == 1 else "info", text)
    else:
        logging.getLogger("peftswift").log(logging.WARNING if severity == 1 else logging.INFO, text)


class Context(Handle):
    """Threads, memory budget and log of everything that is opened with it.

    threads: 0 is one per processor. memory_budget: bytes, 0 is no limit. level: a lower instruction set than the processor's best
    ("avx512_bf16": products of bf16 by the instructions for them, where those of f32 are faster too). "auto" and "amx" ask Linux
    for AMX' registers, for the whole process, where the processor has them.
    log: ``log(severity, text)`` instead of Python's logger "peftswift".
    """

    kind = "context"

    def __init__(self, threads=0, memory_budget=0, level="auto", log=None):
        if level not in LEVELS:
            raise ValueError(f"level is {level!r}; {', '.join(LEVELS)} are accepted")
        options = ContextOptions(struct_size=c.sizeof(ContextOptions), threads=c_number(threads, "threads", 0, 256), level=LEVELS.index(level), log=_write_log,
                                 memory_budget=c_number(memory_budget, "memory_budget (bytes)", 0, 2**63 - 1))
        if log is not None:
            options.user_data = len(_logs) + 1
            _logs[options.user_data] = log
        pointer = c.c_void_p()
        call("peft_context_create", c.byref(pointer), c.byref(options))
        super().__init__(pointer.value)

    def memory(self):
        """Bytes in use, by category (peft_context_memory)."""
        return decoded_json("peft_context_memory", self)

    def trim(self):
        """Gives kept blocks back to the machine and starts the peak anew."""
        call("peft_context_trim", self)
