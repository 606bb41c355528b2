import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from shards.config import (
    DataConfig,
    HoldoutSplit,
    NoSplit,
    PackConfig,
    PhantomConfig,
    Section,
    SliceSplit,
    SplitConfig,
    StoreConfig,
)

SECTIONS = (DataConfig, HoldoutSplit, SliceSplit, NoSplit, PackConfig, StoreConfig, PhantomConfig)
SPLIT: TypeAdapter[HoldoutSplit | SliceSplit | NoSplit] = TypeAdapter(SplitConfig)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_defaults_and_refuses_unknown_keys_and_changes(section: type[Section]) -> None:
    made = section()
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        section.model_validate({"no_such_key": 1})
    with pytest.raises(ValidationError, match="frozen"):
        made.kind = "other"  # type: ignore[attr-defined]
    assert section.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("section", [DataConfig, StoreConfig])
def test_fields_are_documented(section: type[BaseModel]) -> None:
    assert all(field.description for field in section.model_fields.values())


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        (HoldoutSplit, {"train": 0.7}, r"add up to 1|is 0\.9"),
        (HoldoutSplit, {"train": 1.0}, "less than 1"),
        (SliceSplit, {"val": 0.2}, r"add up to 1|is 1\.1"),
        (SliceSplit, {"fold": 0}, "Extra inputs"),
        (HoldoutSplit, {"fold": 5}, "folds are numbered 0 to 4"),
        (HoldoutSplit, {"fold": -1}, "greater than or equal to 0"),
        (HoldoutSplit, {"folds": 2}, "greater than or equal to 3"),
        (PackConfig, {"encoding": "jpeg"}, "'png', 'webp' or 'raw'"),
        (PackConfig, {"samples_per_shard": 0}, "greater than or equal to 1"),
        (PackConfig, {"workers": 0}, "greater than or equal to 1"),
        (StoreConfig, {"attempts": 0}, "greater than or equal to 1"),
        (StoreConfig, {"part_mib": 4}, "greater than or equal to 5"),  # S3's smallest part
        (DataConfig, {"window_shards": 0}, "greater than or equal to 1"),
        (DataConfig, {"image_size": 8}, "greater than or equal to 16"),
        (PhantomConfig, {"min_slices": 9, "max_slices": 8}, "max_slices is 8, below phantom.min_slices 9"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(
    section: type[Section], values: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        section.model_validate(values)


def test_the_last_fold_is_allowed_and_thirds_may_be_rounded() -> None:
    assert HoldoutSplit(folds=3, fold=2).fold == 2
    assert HoldoutSplit(train=0.3333333, val=0.3333333, test=0.3333333).train == 0.3333333


def test_the_kind_of_split_chooses_its_fields() -> None:
    assert SPLIT.validate_python({"kind": "none"}) == NoSplit()
    assert SPLIT.validate_python({"kind": "patient", "seed": 3}) == HoldoutSplit(seed=3)
    with pytest.raises(ValidationError, match="Extra inputs"):
        SPLIT.validate_python({"kind": "none", "seed": 3})
    with pytest.raises(ValidationError, match="'patient', 'slice', 'none'"):
        SPLIT.validate_python({"kind": "random"})
