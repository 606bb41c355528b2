"""Writes into a wheel which commit it was built from: where it is installed there is no repository to ask."""

import runpy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file, unless nobody knows the commit.  An editable install has its repository."""
        commit = runpy.run_path(str(Path(self.root, "bts_dist", "commit.py")))
        known = commit["code_commit"]()
        if version == "editable" or known is None:
            return
        self._folder = TemporaryDirectory()  # until the wheel is written
        file = Path(self._folder.name, commit["FILE"])
        file.write_text(f"{known}\n", encoding="utf-8")
        build_data["force_include"][str(file)] = f"bts_dist/{file.name}"
