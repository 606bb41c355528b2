"""The loaders that ``loader.py`` measures: one module for each library, one row for each way of using it."""

import importlib
from dataclasses import dataclass

from contenders.contract import Contender


@dataclass(frozen=True)
class Row:
    """One line of the tables."""

    title: str
    module: str
    """Of this package; its ``write`` and ``opened`` are what is run."""
    encoding: str
    """``png`` or ``raw`` (uncompressed)."""
    keeps: bool = False
    """Whether decoded samples stay in memory between epochs."""

    @property
    def name(self) -> str:
        return f"{self.module}-{self.encoding}" + ("-kept" if self.keeps else "")

    @property
    def ours(self) -> bool:
        return self.module == "ours"

    @property
    def peer(self) -> bool:
        """Whether it needs a library that the project itself does not."""
        return self.module in ("mds", "lit")

    @property
    def data(self) -> str:
        """Name of the folder with its data set; webdataset reads our very PNG shards."""
        return "ours-png" if self.name.startswith("wds-png") else f"{self.module}-{self.encoding}"

    @property
    def files(self) -> str:
        """Pattern of the names of the training split's files in that folder."""
        return "train-*" if self.module in ("ours", "wds") else "*"

    def load(self) -> Contender:
        """The module that runs it; imports the library."""
        return importlib.import_module(f"contenders.{self.module}")  # type: ignore[return-value]


PACKED = Row("bts-dist, PNG", "ours", "png")
"""Its index says which slices are the training split, for everyone."""

ROWS = (
    Row("bts-dist, PNG, kept in memory (the default)", "ours", "png", keeps=True),
    Row("bts-dist, raw, kept in memory", "ours", "raw", keeps=True),
    PACKED,
    Row("bts-dist, raw", "ours", "raw"),
    Row("webdataset, our PNG shards", "wds", "png"),
    Row("webdataset, .npy", "wds", "raw"),
    Row("webdataset, our PNG shards, mcached", "wds", "png", keeps=True),
    Row("Streaming, png", "mds", "png"),
    Row("Streaming, ndarray", "mds", "raw"),
    Row("LitData, PNG bytes", "lit", "png"),
    Row("LitData, arrays", "lit", "raw"),
    Row("PyTorch Dataset, TIFF files", "tiffs", "raw"),
    Row("PyTorch Dataset, TIFF files, kept by hand", "tiffs", "raw", keeps=True),
)
