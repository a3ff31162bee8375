"""Rights: what we ask of a Redis, and so all that our user there needs. What is not listed here is not granted.

`deploy/redis/users.acl` grants it; the doctor says what of it is missing, and whether there is more.
"""

from __future__ import annotations

COMMANDS = {
    "getex": "records and blobs are read, which makes them younger",
    "get": "and still read when Redis takes no writes, as which it counts a new age",
    "set": "and written",
    "unlink": "and removed",
    "lpush": "what callers asked lately is noted",
    "ltrim": "and bounded",
    "lrange": "and read",
    "pexpire": "and goes by itself",
    "zincrby": "how often it was asked is counted",
    "zscore": "and read",
    "zremrangebyrank": "and bounded",
    "zrevrange": "and ranked",
    "publish": "orders are told to other processes",
    "subscribe": "and heard",
    "ping": "a silent connection is asked for a sign of life",
    "select": "another database than 0",
    "info": "sizes and evictions, for `reprise stats` and the doctor",
    "config|get": "whether it takes snapshots, for the doctor",
    "time": "its clock, for the doctor",
    "acl|whoami": "as whom we came, for the doctor",
}
NAMES = ("r/*", "b/*", "h/*", "f/*")  # records, blobs, histories, frequencies
CHANNELS = ("reprise:*",)


def rights() -> str:
    """As an access list has them, after the user's name and password."""
    names = [f"~{name}" for name in NAMES]
    channels = [f"&{channel}" for channel in CHANNELS]
    commands = [f"+{command}" for command in COMMANDS]
    return " ".join(["resetkeys", *names, "resetchannels", *channels, "-@all", *commands])
