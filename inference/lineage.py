"""Lineage: of what the outputs of a run are made, as records say it: upstream names, and the tags for any distance.

What is made has it from what it reads; what was found brings its own along, because it may have been made in another
run, of which nobody here knows more than its record says.
"""

from __future__ import annotations

from cache import tags
from cache.description import Stage
from cache.digest import Digest
from cache.parts import whole_name
from cache.record import Record
from inference.meaning import Meaning
from inference.plan import Plan


class Lineage:
    """Stages are called as in the request, and their tags as in the description."""

    def __init__(self, plan: Plan, meaning: Meaning) -> None:
        self._plan = plan
        self._meaning = meaning
        self._stages = {stage.name: stage for stage in meaning.stages}
        self._handed_on: dict[str, frozenset[str]] = {}  # by stage: to whatever is made of its output
        for stage in meaning.stages:
            if (digest := meaning.digests.get(stage.name)) is not None:
                self.make(stage)
                self.name(stage, digest)

    def find(self, stage: Stage, record: Record) -> None:
        """A stage's output is read: it is what its record says."""
        made_of = {tag for tag in record.tags if tags.is_lineage(tag)}
        self._handed_on[stage.name] = self._media(stage) | made_of
        self.name(stage, record.output.digest)

    def make(self, stage: Stage) -> None:
        """A stage ran, and its output has no name yet."""
        self._handed_on[stage.name] = self.of(stage)

    def name(self, stage: Stage, digest: Digest) -> None:
        """Of what is made from now on of this output, it is said that it was this one."""
        self._handed_on[stage.name] |= {tags.of_ancestor(digest.hex)}

    def of(self, stage: Stage) -> frozenset[str]:
        """What a stage's output is made of. All that it reads has been found or made."""
        made_of = self._upstream(stage).values()
        ids = frozenset(tags.of_ancestor(self._meaning.ids[name]) for name in made_of)
        stages = frozenset(tags.of_stage(whole_name(name)) for name in made_of)
        return self._media(stage).union(ids, stages, *(self._handed_on[name] for name in made_of))

    def names(self, stage: Stage) -> dict[str, str]:
        """What a record says that an output was made of, by role. Where that is never kept, also what it was made of
        itself, under "role.role": so that the way from a file to the encodings it was made of does not end there.
        """
        names: dict[str, str] = {}
        for role, name in self._upstream(stage).items():
            digest, read = self._meaning.digests.get(name), self._stages[name]
            names[role] = digest.hex if digest is not None else self._meaning.ids[name]
            if digest is None and not read.cached:
                names |= {f"{role}.{theirs}": made_of for theirs, made_of in self.names(read).items()}
        return names

    def _upstream(self, stage: Stage) -> dict[str, str]:
        return {role: name for role, name in stage.upstream.items() if name in self._meaning.ids}

    def _media(self, stage: Stage) -> frozenset[str]:
        return frozenset(tags.of_media(mark) for name in stage.media for mark in self._plan.media[name].marks)
