from typing import NamedTuple


class Access(NamedTuple):
    at: float
    key: str
    size: int
    cost: float
