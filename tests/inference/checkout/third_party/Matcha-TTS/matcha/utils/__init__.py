"""Begins as the real one does: with what only training needs, and nobody here has."""

import hydra  # type: ignore[import-not-found]  # noqa: F401
