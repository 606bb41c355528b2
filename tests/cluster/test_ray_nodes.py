"""What tests look for on a node they find, also where its parent has ended."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from ray_nodes import MARK, Node


def test_a_process_whose_parent_has_ended_is_found_and_ends_with_its_node() -> None:
    environment = {**os.environ, MARK: "of-this-test"}
    first = subprocess.Popen(["sleep", "600"], env=environment, text=True)
    # The shell ends, and what it leaves behind has a session of its own.
    shell = subprocess.run(
        ["sh", "-c", "setsid sleep 601 >/dev/null 2>&1 & echo $!"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    orphan = int(shell.stdout)
    node = Node(first, "of-this-test")
    try:
        end = time.monotonic() + 20
        while node.commands() != ["sleep 601 "]:
            assert time.monotonic() < end, node.commands()
            time.sleep(0.05)
        assert node.pids() == [orphan]
        assert Node(first).pids() == []
        parent = Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()[1]
        assert int(parent) != first.pid
        node.kill()
        while node.pids():
            assert time.monotonic() < end, node.commands()
            time.sleep(0.05)
        assert first.returncode == -signal.SIGKILL
    finally:
        first.kill()
        with suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
