"""Models: which description of a model is the active one, from live workers or from the catalogue.

Order: the configured revision; else the newest healthy worker's; else what was known last; else what the catalogue
says. So hits are served with every worker gone, also by a gateway that has just started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from cache.catalogue import Catalogue
from cache.description import Description
from cache.errors import TierError
from gateway.errors import InvalidField, NotFound, Unavailable
from gateway.workers import Fleet

_RETRY = 2.0  # seconds, for callers, and between two looks into the catalogue
_PATIENCE = 2.0  # seconds for all of a look into the catalogue, and until a worker describes what it serves now
_MOST_NAMED = 8  # of the models that are served, to whoever asks for another
_log = structlog.get_logger(__name__)


class Models:
    def __init__(
        self,
        fleet: Fleet,
        catalogue: Catalogue | None,
        *,
        revisions: Mapping[str, str],
        defaults: Mapping[str, str],
        aliases: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._revisions = revisions
        self._defaults = defaults
        self._aliases = aliases
        self._known: dict[str, Description] = {}
        self._clock = clock
        self._next_recall = float("-inf")

    async def recall(self) -> None:
        """Learn from the catalogue what this gateway does not know yet. Does nothing if it did so just now: anybody
        may ask for models that do not exist.
        """
        if self._catalogue is None or self._clock() < self._next_recall:
            return
        self._next_recall = self._clock() + _RETRY
        try:
            async with asyncio.timeout(_PATIENCE):
                for model in await self._catalogue.models():
                    if model not in self._known and (description := await self._catalogue.active(model)):
                        self._known[model] = description
        except (TierError, TimeoutError) as error:
            _log.warning("catalogue not readable", error=type(error).__name__)

    async def describe(self, model: str, task: str) -> Description:
        """The active description of a model, or of the task's default if no model is named.

        Raises NotFound, Unavailable, or InvalidField if the model has another task.
        """
        description = self.active(model, task)
        if description is None:
            await self.recall()
            description = self.active(model, task)
        if description is None:
            raise self._missing(self._name(model, task), task)
        if description.task != task:
            raise InvalidField("model", f"this model does another task, {description.task}{self._instead(task)}")
        return description

    async def successor(self, old: Description) -> Description | None:
        """The description of the same model and task that is active in its place. A worker that has just begun may
        not have told it yet: None if none does within a few seconds.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                while (known := self._active(old.model)) is None or known == old:
                    await self._fleet.changed.wait()
        except TimeoutError:
            return None
        return known if known.task == old.task else None

    def active(self, model: str, task: str) -> Description | None:
        """The same, of whatever task, as far as it is known without looking anywhere."""
        name = self._name(model, task)
        return self._active(name) if name else None

    def _name(self, model: str, task: str) -> str | None:
        """What workers call the model that a request names, or none."""
        name = model or self._default(task)
        return self.name_of(name) if name else None

    def name_of(self, name: str) -> str:
        """What workers call the model that callers and operators call so."""
        return self._aliases.get(name, name)

    def _active(self, model: str) -> Description | None:
        revision = self._revisions.get(model)
        if (live := self._fleet.newest_description(model, revision)) is not None:
            self._known[model] = live
        known = self._known.get(model)
        return known if known is not None and revision in (None, known.revision) else None

    def _default(self, task: str) -> str | None:
        if task in self._defaults:
            return self._defaults[task]
        for model in sorted(self._fleet.models()):
            self._active(model)
        return next((name for name, known in sorted(self._known.items()) if known.task == task), None)

    def _missing(self, name: str | None, task: str) -> NotFound | Unavailable:
        # With nothing known at all, the model may well exist: its worker has just not spoken yet. And one that is known
        # in another revision than the configured one does exist.
        known = self._fleet.models() | self._known.keys()
        if known and name not in known:
            message = f"no model of this name is served here{self._instead(task)}" if name else f"no model does {task}"
            return NotFound("MODEL_UNKNOWN", message, field="model")
        return Unavailable("NEVER_DESCRIBED", retry_after=_RETRY)

    def _instead(self, task: str) -> str:
        """What to ask for, in words: some of the models that do this task."""
        able = [model for model in sorted(self._fleet.models() | self._known.keys()) if self._does(model, task)]
        more = f" and {len(able) - _MOST_NAMED} more" if len(able) > _MOST_NAMED else ""
        return f"; ask for {', '.join(able[:_MOST_NAMED])}{more}" if able else f"; none does {task}"

    def _does(self, model: str, task: str) -> bool:
        description = self._active(model)
        return description is not None and description.task == task
