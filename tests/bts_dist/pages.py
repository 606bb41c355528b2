"""A run made up for tests of its page, and the page read back."""

import base64
from dataclasses import replace
from html.parser import HTMLParser

from bts_dist.report import RunRecord, write_report

VOID = {"meta", "br", "img", "link", "input", "hr"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """A page as elements (tag, attributes), visible text and the faults of its nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        self.data.append((self.open[-1] if self.open else "", data))

    def text(self, *tags: str) -> list[str]:
        return [data.strip() for tag, data in self.data if tag in tags and data.strip()]

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)


def metric(mean, low=None, high=None, *, median=None, n=3, rule="both empty = 1"):
    low, high = low if low is not None else mean - 0.03, high if high is not None else mean + 0.02
    return {"mean": mean, "median": median, "low": low, "high": high, "n": n, "rule": rule}


def patient(name="TCGA_CS_4941", institution="CS", dice=0.8, **values):
    row = {"patient": name, "institution": institution, "slices": 23, "tumour_slices": 15, "dice": dice}
    row |= {"iou": dice / (2 - dice), "tp": 12_345, "fp": 210, "fn": 300, "hd95": 4.25, "surface_dice": 0.77}
    return row | values


def run_record() -> RunRecord:
    """A run of three patients, with training and search."""
    metrics = {
        "dice/patient": metric(0.871, median=0.902),
        "iou/patient": metric(0.779),
        "dice/slice": metric(0.955, 0.94, 0.96),
        "iou/slice": metric(0.931),
        "dice/slice_positive": metric(0.842),
        "iou/slice_positive": metric(0.751),
        "dice/pooled": metric(0.9123),
        "iou/pooled": metric(0.8387, 0.80, 0.86),
        "hd95/patient": metric(5.43, 3.1, 8.2, rule="patients with a surface in both masks"),
        "surface_dice/patient": metric(0.888),
    }
    patients = [
        patient("TCGA_CS_4941", "CS", 0.94),
        patient("TCGA_DU_5851", "DU", 0.61, hd95=None),
        patient("TCGA_HT_7473", "HT", 0.88, slices=30, tumour_slices=4),
    ]
    epochs = [
        {"epoch": epoch, "train/loss": 1 / epoch, "val/dice/patient": 0.5 + epoch / 20, "lr": 1e-3 / epoch}
        | {"time/epoch_s": 90.0, "samples_per_s": 41.0}
        for epoch in (1, 2, 3)
    ]
    data = {"patients": 3, "slices": 76, "shards": "s3://bucket/lgg", "id": "b5b1f2d0"}
    score = {
        "metrics": metrics,
        "patients": patients,
        "threshold": 0.45,
        "checkpoint": "epoch-003",
        "data": data,
    }
    overlays = [
        ("TCGA_CS_4941", 7, 0.94, PNG),
        ("TCGA_DU_5851", 9, 0.61, PNG),
        ("TCGA_HT_7473", 11, 0.88, PNG),
    ]
    trials = [
        {
            "trial": "t0",
            "optim.lr": 3e-4,
            "schedule.kind": "cosine",
            "dice": 0.79,
            "epochs": 1,
            "status": "stopped",
        },
        {
            "trial": "t1",
            "optim.lr": 1e-3,
            "schedule.kind": "step",
            "dice": 0.85,
            "epochs": 5,
            "status": "finished",
        },
    ]
    return RunRecord("lgg-3f2a", {"optim": {"lr": 1e-3}}, epochs, score, overlays, trials)


def written(run: RunRecord, folder) -> str:
    return write_report(run, folder / "report.html").read_text(encoding="utf-8")


def with_score(run: RunRecord, **parts) -> RunRecord:
    return replace(run, score=dict(run.score) | parts)
