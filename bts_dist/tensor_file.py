"""Tensors copied into main memory as the bytes of a safetensors file, to be hashed and stored without another copy.

The format (github.com/huggingface/safetensors): the header's length as 8 bytes, little-endian; the header, which is
JSON padded with spaces; then the values of each tensor, row-major, without gaps.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

_ALIGNMENT = 8
_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


Described = tuple[str, torch.dtype, torch.Size]
"""A tensor's name, type and shape."""


class TensorMemory:
    """The memory of one file, kept from one copy to the next.

    The pages of fresh memory are cleared by the system when they are first touched, which takes longer than the copy.
    """

    def __init__(self) -> None:
        self._made_for: list[Described] = []
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._places: list[Tensor] = []

    def copy(self, tensors: Mapping[str, Tensor]) -> memoryview:
        """The file's bytes, valid until the next copy."""
        described = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        if described != self._made_for or not len(self._buffer):
            self._lay_out(described, on_gpu)
        # Strides are not content: channels-last tensors become row-major here.
        with torch.no_grad():
            for place, tensor in zip(self._places, tensors.values(), strict=True):
                place.copy_(tensor, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        view: memoryview = self._buffer.numpy().data
        return view

    def _lay_out(self, described: list[Described], pinned: bool) -> None:
        """Take memory, write the header, and find each tensor's place."""
        # The widest first, so that each value lies at a multiple of its size.
        order = sorted(range(len(described)), key=lambda i: (-described[i][1].itemsize, described[i][0]))
        spans, stop = {}, 0
        for i in order:
            _, dtype, shape = described[i]
            start, stop = stop, stop + shape.numel() * dtype.itemsize
            spans[i] = (start, stop)
        header = _header({described[i]: span for i, span in spans.items()})
        self._buffer = torch.empty(len(header) + stop, dtype=torch.uint8, pin_memory=pinned)
        values = self._buffer[len(header) :]
        self._buffer[: len(header)].copy_(torch.frombuffer(header, dtype=torch.uint8))
        self._places = [
            values[slice(*spans[i])].view(dtype).view(shape) for i, (_, dtype, shape) in enumerate(described)
        ]
        self._made_for = described


def _header(spans: dict[Described, tuple[int, int]]) -> bytearray:
    entries = {
        name: {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": span}
        for (name, dtype, shape), span in spans.items()
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return bytearray(len(text).to_bytes(8, "little") + text)
