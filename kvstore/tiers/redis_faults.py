"""Answers of a tier for the errors of redis-py."""

from __future__ import annotations

from kvstore.tiers.base import Miss, MissReason, PutResult, PutStatus


def redis_errors() -> tuple[type[Exception], ...]:
    """Everything that a server, a network or a passed deadline can cause."""
    from redis.exceptions import RedisClusterException, RedisError

    # OSError: the builtin time-out of a deadline as well
    return (RedisError, RedisClusterException, OSError)


def failed_put(error: Exception) -> PutResult:
    """`FULL` where the server has no memory left and may evict nothing."""
    if _is_timeout(error):
        return PutResult(PutStatus.TIMEOUT, _detail(error))
    if "syntax error" in str(error):
        # an option of SET that this tier uses
        return PutResult(PutStatus.UNAVAILABLE, f"Redis 6.2 or Valkey is needed: {error}")
    # the class is lost where a pipeline wraps the server's error
    status = PutStatus.FULL if "maxmemory" in str(error) else PutStatus.UNAVAILABLE
    return PutResult(status, _detail(error))


def failed_get(error: Exception) -> Miss:
    """`CORRUPT` where something lies under the key that cannot be a value of ours."""
    if _is_timeout(error):
        return Miss(MissReason.TIMEOUT, _detail(error))
    reason = MissReason.CORRUPT if is_wrong_type(error) else MissReason.UNAVAILABLE
    return Miss(reason, _detail(error))


def is_wrong_type(error: Exception) -> bool:
    return "WRONGTYPE" in str(error)


def _is_timeout(error: Exception) -> bool:
    from redis.exceptions import TimeoutError as RedisTimeout

    return isinstance(error, RedisTimeout | TimeoutError)


def _detail(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
