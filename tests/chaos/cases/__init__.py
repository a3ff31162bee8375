"""The fault matrix, a file for each part that fails. Importing this registers all cases, in the order of the matrix."""

from tests.chaos.cases import bounds, callers, gateways, life, machine, poison, sentinel, tier2, tier3, workers  # noqa: F401
