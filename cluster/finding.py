"""What a check of ``bts doctor`` found."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    check: str
    state: State
    found: str
    remedy: str = ""
    """What to do; empty where all is well."""


def refused(check: str, error: Exception, state: State = "error") -> Finding:
    """An error as a finding.  Ours end with what to do, after the last semicolon."""
    text = " ".join(str(error).split()) or type(error).__name__
    found, _, remedy = text.rpartition("; ")
    return Finding(check, state, found or text, remedy if found else "see the message")
