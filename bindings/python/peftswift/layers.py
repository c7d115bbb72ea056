"""Single layers of a model in somebody else's training loop."""

import ctypes as c

import numpy as np

from ._library import _FROM_C, _TO_C, ArrayView, Handle, call, encoded


def view_of(array):
    """A numpy array as a peft_array; it must live as long as the view is used."""
    view = ArrayView(struct_size=c.sizeof(ArrayView), type=_TO_C[array.dtype.name], rank=array.ndim, data=array.ctypes.data, size=array.nbytes)
    view.shape[: array.ndim] = array.shape
    return view


class Pass(Handle):
    """One run of a layer: ``output``, and once ``backward``."""

    kind = "pass"

    @property
    def output(self):
        view = ArrayView(struct_size=c.sizeof(ArrayView))
        call("peft_pass_output", c.byref(view), self)
        values = (c.c_char * view.size).from_address(view.data)
        return np.frombuffer(values, dtype=_FROM_C[view.type]).reshape(view.shape[: view.rank]).copy()

    def backward(self, dy, wants_input=True):
        """Adds the gradients of the adapters' parameters to the trainer's; returns that of the input."""
        dy = np.ascontiguousarray(dy, dtype=np.float32)
        dx = np.empty(self.input_shape, dtype=np.float32) if wants_input and self.has_gradient else None
        call("peft_layer_backward", None if dx is None else dx.ctypes.data, 0 if dx is None else dx.size, self, dy.ctypes.data, dy.size)
        return dx


class HostLayer:
    """``model.layer("policy.0")``: the layer with what adapters do to it, over arrays of the host.

    >>> y, run = layer.forward(x, trainer)       # [rows, in], [batch, channels, …], or ids
    >>> dx = run.backward(dy); trainer.update()
    """

    def __init__(self, model, name):
        self.model, self.name = model, name

    def forward(self, x, trainer=None):
        x = np.ascontiguousarray(x)
        has_gradient = x.dtype.kind == "f"
        x = x.astype(np.float32 if has_gradient else np.int64, copy=False)
        view, pointer = view_of(x), c.c_void_p()
        call("peft_layer_forward", None, 0, c.byref(pointer), self.model, encoded(self.name), c.byref(view), trainer)
        run = Pass(pointer.value)
        run.input_shape, run.has_gradient, run.trainer = x.shape, has_gradient, trainer
        return run.output, run

    def __call__(self, x):
        return self.forward(x)[0]
