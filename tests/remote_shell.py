"""Stand-ins for ``sshd``, ``ssh`` and ``rsync`` between hosts that have none: no keys, no encryption, the same words.

``serve ADDRESS`` runs what it is sent, one command a connection; ``ssh`` and ``rsync`` take the options that Ray gives
them.  Programs of these names that call this file are made by ``programs``.
"""

import base64
import io
import json
import os
import shlex
import socket
import socketserver
import subprocess
import sys
import tarfile
from pathlib import Path

PORT = 22


class Login(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        asked = json.loads(self.rfile.readline())
        # As for a login, what the server itself has in its environment beside this stays with it.
        done = subprocess.run(
            ["bash", "-c", asked["command"]],
            input=base64.b64decode(asked["input"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=os.environ["HOME"],
            check=False,
        )
        print(f"$ {asked['command']}\n{done.stdout.decode(errors='replace')}= {done.returncode}", flush=True)
        answer = {"output": base64.b64encode(done.stdout).decode(), "code": done.returncode}
        self.wfile.write(json.dumps(answer).encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def send(address: str, command: str, data: bytes = b"") -> int:
    """Run a command there; its output is written here."""
    asked = {"command": command, "input": base64.b64encode(data).decode()}
    with socket.create_connection((address, PORT), 10) as connection, connection.makefile("rwb") as stream:
        connection.settimeout(None)
        stream.write(json.dumps(asked).encode() + b"\n")
        stream.flush()
        answer = json.load(stream)
    sys.stdout.buffer.write(base64.b64decode(answer["output"]))
    return int(answer["code"])


def ssh(words: list[str]) -> int:
    """As ``ssh -tt -o … user@address command``."""
    (at,) = [i for i, word in enumerate(words) if "@" in word and not word.startswith("-")][:1]
    return send(words[at].partition("@")[2], " ".join(words[at + 1 :]))


def rsync(words: list[str]) -> int:
    """As ``rsync … source user@address:target``: a file, or with a slash at its end what is in a folder."""
    source, (target, _, place) = Path(words[-2]), words[-1].partition(":")
    place = f'"$HOME"/{shlex.quote(place[2:])}' if place.startswith("~/") else shlex.quote(place)
    if source.is_file():
        command = f'mkdir -p "$(dirname {place})" && cat > {place}'
        return send(target.partition("@")[2], command, source.read_bytes())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(source, ".")
    command = f"mkdir -p {place} && tar -x -C {place}"
    return send(target.partition("@")[2], command, packed.getvalue())


def programs(folder: Path) -> None:
    """Make a folder of them, for PATH."""
    folder.mkdir(parents=True)
    for name in ("ssh", "rsync"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        program.chmod(0o755)
    return folder


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        Server((sys.argv[2], PORT), Login).serve_forever()
    sys.exit({"ssh": ssh, "rsync": rsync}[sys.argv[1]](sys.argv[2:]))
