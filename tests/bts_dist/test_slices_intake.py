"""Pictures are read as packing reads them, and what is no slice of a head is named."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bts_dist.intake import find_studies
from bts_dist.slices_intake import natural_order, open_slices
from shards.config import PhantomConfig, StoreConfig
from shards.errors import InputError
from shards.phantom import render
from shards.source import read_volume
from shards.store import open_store
from shards.verify import missing_sequences, verify_source

HEAD, MASK = render(PhantomConfig(size=32, min_slices=12, max_slices=12), 0)


def save(
    folder: Path, image_NHWC: np.ndarray, stem: str = "{folder}_{n}", suffix: str = ".tif"
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (stem.format(folder=folder.name, n=n) + suffix) for n in range(1, len(image_NHWC) + 1)]
    for path, image in zip(paths, image_NHWC, strict=True):
        Image.fromarray(image).save(path)
    return paths


def refused(paths: list[Path], match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_slices("p", paths)


def test_packing_reads_the_same_pixels(packed: Path) -> None:
    source = str(packed.parent / "source")
    store = open_store(source)
    report = verify_source(source, StoreConfig(), 1)
    studies = find_studies(source)
    assert [study.patient for study in studies] == [p.folder for p in report.patients]
    for study, patient in zip(studies, report.patients, strict=True):
        assert np.array_equal(study.read(), read_volume(store, patient).image_NHWC)


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".png"])
def test_slices_count_as_people_do_and_masks_bear_their_names(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "ab", HEAD, suffix=suffix)
    (study,) = find_studies(str(tmp_path / "ab"))
    assert np.array_equal(study.read(), HEAD)
    assert study.slices_shape == (12, 32, 32)
    assert study.voxel_mm3 is None
    out = tmp_path / "masks"
    out.mkdir()
    study.write(MASK.astype(bool), out)
    assert sorted(p.name for p in out.iterdir()) == sorted(f"ab_{n}_mask{suffix}" for n in range(1, 13))
    for n, mask in enumerate(MASK, start=1):
        written = Image.open(out / f"ab_{n}_mask{suffix}")
        assert written.format == ("PNG" if suffix == ".png" else "TIFF")
        assert written.mode == "L"
        assert np.array_equal(np.asarray(written), mask * 255)


def test_grey_slices_are_flair_in_all_channels(tmp_path: Path) -> None:
    flair = HEAD[..., 1]
    paths = save(tmp_path / "p", flair, "scan{n}", ".png")
    image = open_slices("p", paths).read()
    assert all(np.array_equal(image[..., channel], flair) for channel in range(3))
    assert missing_sequences(image) == ("pre", "post")
    as_colour = save(tmp_path / "q", np.repeat(flair[..., None], 3, axis=3), "scan{n}", ".png")
    assert np.array_equal(open_slices("q", as_colour).read(), image)


def test_sixteen_bit_slices_share_one_scale(tmp_path: Path) -> None:
    flair = HEAD[..., 1].astype(np.uint16) * 20
    for suffix in (".png", ".tif"):
        image = open_slices("p", save(tmp_path / suffix[1:], flair, "s{n}", suffix)).read()
        assert image.max() == 255
        ratio = image[..., 1][flair > 400] / flair[flair > 400]
        assert ratio[ratio < 255 / flair.max() * 2].std() < 0.01


def test_masks_beside_the_slices_are_no_input(tmp_path: Path) -> None:
    save(tmp_path / "ab", HEAD)
    save(tmp_path / "ab", MASK * 255, "{folder}_{n}_mask")
    (study,) = find_studies(str(tmp_path / "ab"))
    assert len(study.files) == 12


def test_missing_numbers_are_noted(tmp_path: Path) -> None:
    paths = save(tmp_path / "ab", HEAD)
    study = open_slices("p", [p for n, p in enumerate(paths, 1) if n not in (4, 5)])
    assert study.notes == ("lacks slices 4, 5 of 1 to 12",)
    assert open_slices("p", paths).notes == ()


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "1", "F", "I", "LA"])
def test_a_picture_of_another_kind_is_named(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a_1.tif" if mode in ("CMYK", "F", "I") else "a_1.png")
    Image.fromarray(HEAD[0]).convert("L" if mode in ("F", "I", "LA", "1") else "RGB").convert(mode).save(path)
    refused([path], rf"{path} is a \d-channel \d+-bit picture \(mode .*\); save slices")


def test_pixels_of_sixteen_bits_a_channel_are_not_cut_in_silence(tmp_path: Path) -> None:
    path = save(tmp_path / "a", HEAD[:1], suffix=".png")[0]
    data = bytearray(path.read_bytes())
    data[24] = 16
    path.write_bytes(data)
    refused([path], r"a_1\.png is (damaged|a 3-channel 16-bit picture)")


def test_slices_of_two_sizes_or_kinds(tmp_path: Path) -> None:
    paths = save(tmp_path / "a", HEAD)
    Image.fromarray(HEAD[4, :16, :16]).save(paths[4])
    refused(paths, r"a_5\.tif is 16×16 pixels, a_1\.tif 32×32")
    Image.fromarray(HEAD[4, ..., 1]).save(paths[4])
    refused(paths, r"a_5\.tif is a grey picture of 8 bits, a_1\.tif a colour one of 8")


def test_colour_needs_names_that_say_what_it_means(tmp_path: Path) -> None:
    refused(save(tmp_path / "p", HEAD, "capture{n}", ".png"), r"capture1\.png is a colour picture")
    refused(save(tmp_path / "q", HEAD, "capture_{n}", ".png"), r"capture_1\.png is a colour picture")
    kaggle = save(tmp_path / "r", HEAD, "TCGA_CS_4941_19960909_{n}")
    assert open_slices("r", kaggle).slices_shape == (12, 32, 32)


def test_a_screenshot_is_named_whatever_it_is_called(tmp_path: Path) -> None:
    screen = np.repeat(HEAD[6:7, ..., 1:2], 3, axis=3)
    screen[0, :4, :10] = (40, 90, 200)
    for stem in ("screenshot", "{folder}_{n}"):
        paths = save(tmp_path / stem[:3], screen, stem, ".png")
        refused(paths, rf"{paths[0].name} is a .*screenshot")
    wide = save(tmp_path / "wide", np.tile(screen[..., 1], (1, 1, 2)), "s", ".png")
    refused(wide, r"s\.png is 32×64 pixels, too long")


def test_slices_on_a_light_ground_are_none(tmp_path: Path) -> None:
    page = np.full((3, 32, 32), 250, np.uint8)
    page[:, 4:28:4, 3:20] = 30
    refused(save(tmp_path / "page", page, "s{n}", ".png"), r"s1\.png lies on a light ground, as a screenshot")
    refused(
        save(tmp_path / "negative", 255 - HEAD[..., 1], "s{n}", ".png"), r"s1\.png lies on a light ground"
    )
    # One such slice among others, or a slice of nothing, is no reason.
    flair = HEAD[..., 1].copy()
    flair[0], flair[1] = page[0], 0
    assert open_slices("p", save(tmp_path / "p", flair, "s{n}", ".png")).slices_shape == (12, 32, 32)


def test_slices_of_two_patients_in_one_folder(tmp_path: Path) -> None:
    paths = save(tmp_path / "p", HEAD, "TCGA_CS_4941_19960909_{n}")
    refused(
        paths + save(tmp_path / "p", HEAD, "TCGA_CS_4942_19970222_{n}"),
        "2 patients, TCGA_CS_4941_19960909 and TCGA_CS_4942_19970222",
    )


def test_a_sequence_that_is_empty_is_named(tmp_path: Path) -> None:
    image = HEAD.copy()
    image[..., 2] = 0
    study = open_slices("p", save(tmp_path / "p", image))
    with pytest.raises(InputError, match="p has no post sequence: it is 0 everywhere"):
        study.read()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    paths = save(tmp_path / "p", HEAD)
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    refused(paths, r"p_4\.tif is damaged")


def test_natural_order() -> None:
    names = [Path(n) for n in ("s10.png", "s9.png", "a2b10.png", "a2b9.png", "1.png")]
    counted = ["1.png", "a2b9.png", "a2b10.png", "s9.png", "s10.png"]
    assert [p.name for p in sorted(names, key=natural_order)] == counted


LGG = Path(os.environ.get("BTS_LGG", "unset"))


@pytest.mark.skipif(not LGG.is_dir(), reason="BTS_LGG does not name the real data set's kaggle_3m folder")
def test_no_real_patient_is_refused() -> None:
    studies = find_studies(str(LGG))
    assert len(studies) == len([p for p in LGG.iterdir() if p.is_dir()])
    assert all(study.notes == () for study in studies)
