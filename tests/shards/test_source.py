import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from shards.errors import InputError
from shards.layout import PatientFiles, find_patients
from shards.source import FileError, decode_image, decode_mask, read_volume
from shards.store import ObjectStore, open_store

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"
)

FOLDER = "TCGA_CS_4941_19960909"
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 5, 3), np.uint8)
MASK = RNG.integers(0, 2, (6, 5), np.uint8) * np.uint8(255)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "TIFF", **options)
    return out.getvalue()


def rgb_tiff_of_16_bits() -> bytes:
    """A 2x1 image by the letter of TIFF 6.0, since Pillow cannot write one."""
    entries = [
        (256, 3, 1, 2),
        (257, 3, 1, 1),
        (258, 3, 3, 122),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 128),
        (277, 3, 1, 3),
        (278, 3, 1, 1),
        (279, 4, 1, 12),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + struct.pack("<3H", 16, 16, 16) + bytes(12)


def write_slices(root: Path, folder: str, numbers: list[int]) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for n in numbers:
        (root / folder / f"{folder}_{n}.tif").write_bytes(tiff(IMAGE + np.uint8(n)))
        (root / folder / f"{folder}_{n}_mask.tif").write_bytes(tiff(MASK))


def only_patient(root: Path) -> tuple[ObjectStore, PatientFiles]:
    store = open_store(str(root))
    (patient,), problems = find_patients(store)
    assert problems == []
    return store, patient


def test_the_parent_of_the_patient_folders_serves_as_well_and_gives_the_same_digest(tmp_path: Path) -> None:
    write_slices(tmp_path / "kaggle_3m", FOLDER, [1, 2])
    inner, patient = only_patient(tmp_path / "kaggle_3m")
    outer, outer_patient = only_patient(tmp_path)
    assert outer_patient.slices[0].image == f"kaggle_3m/{FOLDER}/{FOLDER}_1.tif"
    assert read_volume(outer, outer_patient).digest == read_volume(inner, patient).digest


def test_a_volume_has_the_files_pixels(tmp_path: Path) -> None:
    write_slices(tmp_path, FOLDER, [1, 2, 10])
    store = open_store(str(tmp_path))
    (patient,), _ = find_patients(store)
    volume = read_volume(store, patient)
    assert volume.image_NHWC.dtype == volume.mask_NHW.dtype == np.uint8
    np.testing.assert_array_equal(volume.image_NHWC, np.stack([IMAGE + np.uint8(n) for n in (1, 2, 10)]))
    np.testing.assert_array_equal(volume.mask_NHW, np.stack([MASK // 255] * 3))


def test_the_digest_tells_names_and_bytes(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", FOLDER, [1, 2])
    write_slices(tmp_path / "b", FOLDER, [1, 3])
    write_slices(tmp_path / "c", FOLDER, [1, 2])
    (tmp_path / "b" / FOLDER / f"{FOLDER}_3.tif").write_bytes(tiff(IMAGE + np.uint8(2)))
    (tmp_path / "c" / FOLDER / f"{FOLDER}_2_mask.tif").write_bytes(tiff(MASK, description="other"))
    digests = []
    for place in ("a", "b", "c"):
        store = open_store(str(tmp_path / place))
        digests.append(read_volume(store, find_patients(store)[0][0]).digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize("top", [1, 255])
def test_a_mask_may_be_written_with_1_or_255(top: int) -> None:
    mask = decode_mask("m.tif", tiff(MASK // 255 * np.uint8(top)))
    np.testing.assert_array_equal(mask, MASK // 255)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(MASK), "1-channel 8-bit"),
        (tiff(np.dstack([IMAGE, MASK])), "4-channel 8-bit"),
        (tiff(IMAGE[..., 0].astype(np.uint16)), "1-channel 16-bit"),
        (tiff(IMAGE[..., 0].astype(np.float32)), "1-channel 32-bit"),
        (rgb_tiff_of_16_bits(), "3-channel 16-bit"),
        (tiff(IMAGE, save_all=True, append_images=[Image.fromarray(IMAGE)]), "2 pages"),
        (tiff(IMAGE)[:-1], "truncated"),
        (b"", "0 bytes, no TIFF header"),
        (b"\x89PNG\r\n\x1a\n", "no TIFF header"),
    ],
)
def test_an_image_of_another_kind_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(FileError, match=rf"^p/p_1\.tif .*{said}.*; \w+"):
        decode_image("p/p_1.tif", data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(IMAGE), "3-channel 8-bit"),
        (tiff(MASK.astype(np.uint16)), "1-channel 16-bit"),
        (tiff(MASK > 0), "1-channel 1-bit"),
        (tiff(np.array([[0, 1, 255]], np.uint8)), "holds 0, 1, 255"),
        (tiff(np.array([[0, 128]], np.uint8)), "holds 0, 128"),
        (tiff(np.arange(20, dtype=np.uint8)[None]), "and 12 more"),
    ],
)
def test_a_mask_of_another_kind_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(FileError, match=rf"^p/p_1_mask\.tif .*{said}"):
        decode_mask("p/p_1_mask.tif", data)


@given(st.integers(0, len(tiff(IMAGE)) - 1))
def test_half_a_file_never_decodes_even_where_pillow_was_told_to_be_lenient(size: int) -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    with pytest.raises(FileError):
        decode_image("p_1.tif", tiff(IMAGE)[:size])


@given(st.lists(st.tuples(st.integers(0, len(tiff(IMAGE)) - 1), st.integers(0, 255)), min_size=1, max_size=8))
@example([(130, 9)])  # points to a second page that is none
def test_a_damaged_file_decodes_to_an_image_or_is_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(tiff(IMAGE))
    for place, value in changes:
        data[place] = value
    try:
        image = decode_image("p_1.tif", bytes(data))
    except FileError:
        return
    assert (image.dtype, image.ndim, image.shape[-1]) == (np.uint8, 3, 3)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("_2_mask.tif", tiff(MASK[:-1]), "is 5×5 pixels, its image 6×5"),
        ("_2.tif", tiff(IMAGE[:, :-1]), "is 6×4 pixels, other slices of the patient 6×5"),
        ("_3.tif", tiff(IMAGE)[:100], "damaged"),
    ],
)
def test_reading_a_bad_volume_names_the_file(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    write_slices(tmp_path, FOLDER, [1, 2, 3])
    (tmp_path / FOLDER / f"{FOLDER}{name}").write_bytes(data)
    store, patient = only_patient(tmp_path)
    with pytest.raises(InputError, match=f"{FOLDER}{name}.*{said}"):
        read_volume(store, patient)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    write_slices(tmp_path, FOLDER, [1, 2])
    store, patient = only_patient(tmp_path)
    (tmp_path / FOLDER / f"{FOLDER}_2_mask.tif").unlink()
    with pytest.raises(InputError, match=f"{FOLDER}_2_mask.tif vanished"):
        read_volume(store, patient)


def test_a_file_error_comes_back_whole_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(FileError("a.tif", "is blank", "restore it")))  # noqa: S301
    assert str(error) == "a.tif is blank; restore it"
    assert error.key == "a.tif"
