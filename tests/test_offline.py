"""Digits need no network: nothing connects anywhere from the import to the scores."""

import os
import subprocess
import sys

GUARDED = """
import socket, sys

def refuse(*arguments):
    print("connected to", arguments[1:], file=sys.stderr)
    raise OSError("no network")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
from diffinf_lib.cli import main
for command in ("model", "scores"):
    assert main([command, "smoke", "--run", sys.argv[1], "--quiet"]) == 0
assert main(["scores", "smoke", "--run", sys.argv[1], "--quiet", "--queries", "generated"]) == 0
"""


def test_digits_need_no_network(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "DIFFINF_OFFLINE"}
    command = [sys.executable, "-c", GUARDED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "connected to" not in done.stderr
