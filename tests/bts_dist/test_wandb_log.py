"""How far a W&B log reaches, wherever a kill cut it off."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wandb.proto import wandb_internal_pb2

from bts_dist.wandb_log import LogEnd, read_end, rows_after

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32 * 1024

Record = wandb_internal_pb2.Record


def begun() -> bytes:
    return bytes(Record(run=wandb_internal_pb2.RunRecord(run_id="id")).SerializeToString())


def row(step: int, size: int = 0) -> bytes:
    history = wandb_internal_pb2.HistoryRecord(step=wandb_internal_pb2.HistoryStep(num=step))
    history.item.add(key="loss", value_json="1" * size)
    return bytes(Record(history=history).SerializeToString())


def ended() -> bytes:
    return bytes(Record(exit=wandb_internal_pb2.RunExitRecord(exit_code=0)).SerializeToString())


def log(records: list[bytes]) -> tuple[bytes, list[int]]:
    """A log, and where each of its records ends."""
    data, ends = bytearray(HEADER), []
    for record in records:
        first, rest = True, record
        while first or rest:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += bytes(left)
                left = BLOCK
            chunk, rest = rest[: left - 7], rest[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not rest]
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + chunk), len(chunk), kind) + chunk
            first = False
        ends.append(len(data))
    return bytes(data), ends


@given(st.lists(st.integers(0, 3 * BLOCK), max_size=4), st.data())
def test_a_log_cut_anywhere_ends_with_its_last_whole_record(sizes: list[int], draw: st.DataObject) -> None:
    steps = [10 * (n + 1) for n in range(len(sizes))]
    data, ends = log([begun(), *(row(step, size) for step, size in zip(steps, sizes, strict=True)), ended()])
    cut = draw.draw(st.integers(0, len(data)))
    whole = sum(end <= cut for end in ends)
    end = read_end(data[:cut])
    assert end.step == max(steps[: max(0, whole - 1)], default=0)
    assert end.size == (ends[whole - 1] if whole else min(cut, len(HEADER)))
    assert end.begun == (whole >= 1)
    assert end.finished == (whole == len(ends))


@given(st.lists(st.integers(0, 3 * BLOCK), max_size=4), st.integers(0, 50))
def test_rows_after_a_step_are_a_log_of_their_own(sizes: list[int], last: int) -> None:
    rows = [row(10 * n, size) for n, size in enumerate(sizes, start=1)]
    kept = [each for n, each in enumerate(rows, start=1) if 10 * n > last]
    data, _ = log([begun(), *rows, ended()])
    assert rows_after(data, last) == log([begun(), *kept, ended()])[0]


def test_nothing_is_read_from_where_it_is_damaged() -> None:
    data, ends = log([begun(), row(1), row(2), row(3)])
    damaged = bytearray(data)
    damaged[ends[1] + 8] ^= 1
    assert read_end(bytes(damaged)) == LogEnd(1, ends[1], begun=True, finished=False, first=1)


@pytest.mark.parametrize("data", [b"something else", b":W&B\xe1\xbe\x01", b":X"])
def test_another_format_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="W&B log"):
        read_end(data)
