"""The readiness checks by name: each returns when the part serves and raises NotReady, saying why, when not yet."""

from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.stack import envoy, objects, redis
from gateway.stack.parts import NotReady, Part


def serves_grpc(part: Part) -> None:
    """The standard health service of the process answers SERVING for the whole server. Raises NotReady."""
    with grpc.insecure_channel(part.address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.RpcError as error:
            raise NotReady(f"health: {error.code().name}") from error
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise NotReady(f"health: {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}")


CHECKS: dict[str, Callable[[Part], None]] = {
    "redis": redis.answers,
    "s3": objects.takes_objects,
    "grpc": serves_grpc,
    "envoy": envoy.serves,
}
