"""What both command lines do when nobody reads what they print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from builders import REPOSITORY

CONSOLE = "from manifests.plain_text import PlainConsole; PlainConsole(stderr={}).print('a')"
IN_PYTHON = "import sys; from manifests.cli import exit_code; sys.exit(exit_code(lambda: {}, None, 'build', ''))"
COMMANDS = {
    "presets": ["-m", "pipeline", "presets"],
    "a preset": ["-m", "pipeline", "presets", "rgb12"],
    "recipes": ["-m", "pipeline", "recipes"],
    "recipes of training": ["-m", "training", "recipes"],
    "help": ["-m", "pipeline", "--help"],
    "help of a command": ["-m", "training", "fit", "--help"],
    "a table": ["-c", f"def work(): {CONSOLE.format(False)}\n{IN_PYTHON.format('work()')}"],
}


def unread(arguments: list[str], stream: str, **variables: str) -> tuple[int, str]:
    """(exit code, what the other stream says) of a program of which nobody reads stdout or stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), **variables)
    process = subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, env=environment, text=True, **streams)
    os.close(writer)
    told = process.communicate(timeout=120)
    return process.returncode, told[stream == "stdout"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_nobody_reads_ends_without_a_word(name: str) -> None:
    assert unread(COMMANDS[name], "stdout", PYTHONUNBUFFERED="") == (128 + signal.SIGPIPE, "")
    code, said = unread(COMMANDS[name], "stdout", PYTHONUNBUFFERED="1")
    assert said == ""
    assert code == 128 + signal.SIGPIPE or (code == 0 and "help" in name)  # some argparse passes over what is not read


def test_a_refusal_that_nobody_reads_ends_without_a_word() -> None:
    code, said = unread(["-m", "pipeline", "presets", "nosuch"], "stderr")
    assert (code, said) == (128 + signal.SIGPIPE, "")


def test_the_first_lines_of_a_list() -> None:
    command = f"{sys.executable} -m pipeline presets | head -n 1"
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(
        command, shell=True, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
