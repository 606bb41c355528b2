"""What lies in memory is the file that the safetensors library would read, whatever the tensors' types and strides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from bts_dist.tensor_file import TensorMemory

DTYPES = (torch.float64, torch.int64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool)


@st.composite
def named_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    shapes = st.lists(st.integers(0, 3), max_size=4)
    names = draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), unique=True, max_size=6)
    )
    return {
        name: torch.randint(0, 100, draw(shapes)).to(draw(st.sampled_from(DTYPES)))
        for name in names
        if name != "__metadata__"  # the format's own
    }


@given(named_tensors())
def test_any_tensors_come_back_as_they_were(tensors: dict[str, Tensor]) -> None:
    read = load(bytes(TensorMemory().copy(tensors)))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_strides_are_no_content() -> None:
    tensor = torch.arange(48.0).view(2, 3, 2, 4)
    last = tensor.to(memory_format=torch.channels_last)
    assert last.stride() != tensor.stride()
    assert TensorMemory().copy({"weight": last}) == TensorMemory().copy({"weight": tensor})
    assert torch.equal(load(bytes(TensorMemory().copy({"weight": tensor.mT})))["weight"], tensor.mT)


def test_the_copy_is_one_and_its_memory_is_used_again() -> None:
    memory, tensor = TensorMemory(), torch.ones(5, requires_grad=True)
    first = memory.copy({"weight": tensor})
    with torch.no_grad():
        tensor.mul_(2)
    assert load(bytes(first))["weight"].tolist() == [1] * 5
    second = memory.copy({"weight": tensor})
    assert load(bytes(second))["weight"].tolist() == [2] * 5
    assert first == second  # the same bytes of memory
    larger = memory.copy({"weight": torch.zeros(6)})
    assert load(bytes(larger))["weight"].tolist() == [0] * 6


def test_a_type_that_the_format_lacks_is_no_silent_loss() -> None:
    with pytest.raises(KeyError):
        TensorMemory().copy({"wave": torch.zeros(2, dtype=torch.complex64)})
