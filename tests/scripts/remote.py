"""What stands in for sshd and ssh between the hosts of tests/hosts.py.

``remote.py serve FOLDER NAME`` runs commands on the host that it is the first process of, until its
input ends; ``remote.py run FOLDER [options of ssh] NAME COMMAND...`` runs one there. They meet at a
socket of the file system. That a link is down is told by a file there.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path


def serve(folder, name):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/{name}")
        listener.listen()
        print("ready", flush=True)
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        sys.stdin.read()


def accept(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=obey, args=(connection,), daemon=True).start()


def obey(connection):
    with connection:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        command, environment = json.loads(connection.makefile().read())
        process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        for stream in streams:
            os.close(stream)
        status = process.wait()
        with contextlib.suppress(BrokenPipeError):  # the other end did not wait for it
            connection.sendall(str(status).encode())


def run(folder, *words):
    words = list(words)
    while words[0].startswith("-"):
        del words[: 2 if words[0] in {"-l", "-p", "-i", "-o", "-F"} else 1]
    name, *command = words
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{folder}/{name}")
        socket.send_fds(connection, [b"!"], [0, 1, 2])
        connection.sendall(json.dumps((" ".join(command), dict(os.environ))).encode())
        connection.shutdown(socket.SHUT_WR)
        status = int(connection.makefile().read() or 255)
    here = socket.gethostname()
    cut_off = any(Path(folder, f"{host} is cut off").exists() for host in (here, name))
    # Only from a host to another one it takes the link. From outside there is always a way.
    if cut_off and Path(folder, here).exists() and here != name:
        threading.Event().wait()  # Nobody hears of it here.
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    {"serve": serve, "run": run}[sys.argv[1]](*sys.argv[2:])
