"""Planning: one path from a request of any task to its plan, or to the one field that must be changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from cache import tags
from cache.description import Description, Scope
from cache.digest import Digest
from cache.keys import Principal, namespaces
from cache.near import USUAL_DISTANCE
from cache.switches import Subject, Switches
from gateway.darkroom import Darkroom
from gateway.errors import InvalidField, Unavailable
from gateway.framing import Framing
from gateway.live import FORMATS, can_be_heard
from gateway.models import Models
from gateway.plan import DefaultPolicy, Plan, Policy, choose_seed, default_policy, make_plan
from gateway.reception import Fetch, Medium
from gateway.studio import Studio
from gateway.tasks import Request, task_of
from gateway.tracks import ANY
from gateway.uploads import Uploads
from gateway.validate import complete, folded, given_fields
from reprise.v1 import common_pb2 as pb
from reprise.v1 import media_pb2 as media


class Planner:
    def __init__(
        self,
        models: Models,
        darkroom: Darkroom,
        studio: Studio,
        uploads: Uploads,
        switches: Switches,
        *,
        secret: bytes,
        default_seed: int,
        policies: Sequence[DefaultPolicy] = (),
        similar_by_default: Callable[[str, str], bool] = lambda model, tenant: False,
    ) -> None:
        self._models = models
        self._darkroom = darkroom
        self._studio = studio
        self._uploads = uploads
        self._switches = switches
        self._secret = secret
        self._default_seed = default_seed
        self._policies = tuple(policies)
        self._similar = similar_by_default
        self.namespaces = lru_cache(maxsize=4096)(lambda principal: namespaces(secret, principal))

    async def plan(self, request: Request, principal: Principal, *, file: bytes | None = None) -> Plan:
        """The plan of a request on behalf of this principal. Its file may come beside it. Raises Refused."""
        delivery, live = _delivery(request), isinstance(request, media.SynthesizeSpeechRequest) and request.live
        description = await self._models.describe(request.model, task_of(request).name)
        given, extra = given_fields(request)
        policy = self._policy(request, description, principal, seeded="seed" in given)
        parameters = complete(description, choose_seed(given, policy), extra, defaults={"seed": self._default_seed})
        changed: tuple[str, ...] = ()
        if policy.lines:
            parameters, changed = folded(description, parameters)
        if live and not can_be_heard(parameters):
            raise InvalidField("live", f"samples can be had as they are made with the format {' or '.join(FORMATS)}")
        medium = await self._medium(request, file, principal, description)
        return make_plan(
            description,
            parameters,
            {task_of(request).medium: medium},
            self.namespaces(principal),
            policy,
            tags=tuple(tags.of_label(self._secret, label) for label in policy.labels),
            delivery=delivery,
            live=live,
            folded=changed,
        )

    async def plan_anew(self, plan: Plan) -> Plan:
        """The same request, now that workers describe its model in another way. Raises Unavailable if they do not, if
        its file must be looked at again, or if the model does not take all its parameters any more.
        """
        old = plan.description
        description = await self._models.successor(old)
        if description is None or description.recordings != old.recordings:
            raise Unavailable("WORKER_CHANGED")
        # Some who share it took for granted what others said, so all of it is kept, defaults of the old model and
        # folded texts too, and what is wrong with it now is told to each who asks again.
        elsewhere = {parameter.name for parameter in description.parameters if parameter.extra}
        given = {name: value for name, value in plan.parameters.items() if name not in elsewhere}
        extra = {name: value for name, value in plan.parameters.items() if name in elsewhere}
        try:
            parameters = complete(description, given, extra, defaults={"seed": self._default_seed})
        except InvalidField as error:
            raise Unavailable("WORKER_CHANGED") from error
        return plan.anew(description, parameters)

    def is_off(self, description: Description, principal: Principal) -> bool:
        """Whether an operator has taken the model or the tenant off the cache."""
        tenant = self.namespaces(principal)[Scope.TENANT]
        return not (self._switches.on(Subject.MODEL, description.model) and self._switches.on(Subject.TENANT, tenant))

    def own_files(self, principal: Principal) -> str:
        """The namespace of what this principal uploads."""
        return self.namespaces(principal)[Scope.USER]

    def _policy(self, request: Request, description: Description, principal: Principal, *, seeded: bool) -> Policy:
        default = default_policy(self._policies, description.model, principal.tenant)
        policy = Policy.of(request.cache_policy, default, seeded=seeded)
        if not request.cache_policy.HasField("similarity") and self._similar(description.model, principal.tenant):
            policy = replace(policy, similarity=USUAL_DISTANCE, lines=True)
        return policy.off() if self.is_off(description, principal) else policy

    async def _medium(
        self, request: Request, file: bytes | None, principal: Principal, description: Description
    ) -> Medium:
        task, namespace = task_of(request), self.own_files(principal)
        identify: Callable[[str, bytes], Awaitable[Medium]]
        recognise: Callable[[str, Digest, Fetch], Awaitable[Medium]]
        match request:
            case media.AnimateImageRequest():
                framing = Framing.of(request.framing)
                identify = partial(self._darkroom.identify, framing=framing)
                recognise = partial(self._darkroom.recognise, framing=framing)
            case media.SynthesizeSpeechRequest():
                limits = description.recordings.get(task.medium, ANY)
                identify = partial(self._studio.identify, limits=limits)
                recognise = partial(self._studio.recognise, limits=limits)
        if (named := upload_in(request)) is not None:
            medium = await recognise(namespace, named, partial(self._uploads.fetch, namespace, named))
            await self._uploads.used(namespace, named)
            return medium
        if file is None:
            if request.WhichOneof(task.source) is None:
                raise InvalidField(task.medium, f"give a {task.source}, or the digest of one that was uploaded")
            file = task.file_of(request)
        return await identify(namespace, file)


def upload_in(request: Request) -> Digest | None:
    """The file that a request names, if it names one. Raises InvalidField for what names nothing."""
    task = task_of(request)
    named = task.named_in(request)
    return read_digest(named, task.digest) if named is not None else None


def read_digest(message: pb.Digest, field: str) -> Digest:
    """Raises InvalidField."""
    if len(message.hex) != 64 or not set(message.hex) <= set("0123456789abcdef"):
        raise InvalidField(f"{field}.hex", "must be 64 lower-case hexadecimal digits")
    return Digest(message.hex, message.size)


def _delivery(request: Request) -> media.Delivery:
    if request.delivery not in media.Delivery.values():
        raise InvalidField("delivery", "must be one that this gateway knows")
    return request.delivery
