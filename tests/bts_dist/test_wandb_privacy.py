"""What W&B's server hears of a live record: the experiment, and nothing of who runs it, where and how."""

import getpass
import os
import socket
import subprocess
import sys
from pathlib import Path

from wandb_server import LINEAGE, run_server

CANARY = "canary-9b27d4"
SCRIPT = f"""
import sys
from pathlib import Path
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.wandb_session import begin_wandb

config = with_overrides(Config(), {{"track.wandb": "online", "run.name": "run"}})
run = begin_wandb(config, Path(sys.argv[1]), "id", "run", print)
assert not run.offline
print("printed by the program")
run.log({{"loss": 0.125}}, step=1)
run.summary["best"] = 0.25
{LINEAGE}
record.finish(exit_code=0)
"""


def test_a_live_record_tells_nothing_of_user_machine_and_environment(tmp_path: Path) -> None:
    home = tmp_path / f"{CANARY}-home"
    home.mkdir()
    program = home / "train.py"
    program.write_text(SCRIPT)
    named = ("USER", "LOGNAME", "HOSTNAME", "EMAIL", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL")
    secrets = {name: f"{CANARY}-{name}" for name in (*named, "WANDB_USERNAME", "WANDB_USER_EMAIL")}
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with run_server() as server:
        key = {"WANDB_API_KEY": f"{CANARY}-{'0' * 40}", "WANDB_BASE_URL": server.address}
        done = subprocess.run(
            [sys.executable, str(program), str(home), f"--password={CANARY}"],
            cwd=home,
            env={**own, **secrets, **key, "HOME": str(home)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.steps == [1]
    assert (server.artifacts, server.used) == ({"data-d", "model-m"}, {"data-d"})
    received = b"\n".join(server.received)
    for told in (b"upsertBucket", b"0.125", b"lr", b"s3://bucket/f"):
        assert told in received
    unwanted = [CANARY, str(tmp_path), sys.executable, "printed by the program"]
    # Short ones are found in anything.
    unwanted += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5]
    for word in unwanted:
        assert [request for request in server.received if word.encode() in request] == [], word
