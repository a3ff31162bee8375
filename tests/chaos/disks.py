"""Small disks that can be filled: file systems in memory, in a mount namespace that outlives the servers on them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from gateway.stack import Part

_KEEP = (
    'for each in "$@"; do mount -t tmpfs -o "size=${each%%:*}" tmpfs "${each#*:}" || exit 1; done; echo ready; exec cat'
)
_FILLER = "filler"


class NoDisks(Exception):
    """This machine lets us make no file systems."""


class Disks:
    """File systems by the folders where the servers on them see them. Nobody else sees what is there.

    Use as a context manager. Raises NoDisks.
    """

    def __init__(self, sizes: dict[Path, str]) -> None:
        self._sizes = sizes
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for folder in self._sizes:
            folder.mkdir(parents=True, exist_ok=True)
        wanted = [f"{size}:{folder}" for folder, size in self._sizes.items()]
        command = ["unshare", "-Urm", "sh", "-c", _KEEP, "sh", *wanted]
        try:
            self._keeper = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise NoDisks(str(error)) from error
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"ready\n":
            self.__exit__()
            raise NoDisks("unshare or mount is not permitted")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._keeper is not None:
            self._keeper.communicate()  # its input ends, and so does it
            self._keeper = None

    def on(self, part: Part, command: Sequence[str]) -> Part:
        """The part, run where the disks are to be seen, by this command."""
        assert self._keeper is not None
        within = ("nsenter", "-t", str(self._keeper.pid), "-U", "-m", "--preserve-credentials", "--")
        return replace(part, command=(*within, "sh", "-c", 'cd "$0" && exec "$@"', str(part.folder), *command))

    def seen(self, path: Path) -> Path:
        """Where we see what they see there."""
        assert self._keeper is not None
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    def fill(self, folder: Path) -> None:
        """Nothing more can be written there."""
        with contextlib.suppress(OSError), (self.seen(folder) / _FILLER).open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self, folder: Path) -> None:
        (self.seen(folder) / _FILLER).unlink(missing_ok=True)
