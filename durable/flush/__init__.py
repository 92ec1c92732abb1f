"""From the log into the repository: the flusher and its circuit breaker."""

from durable.flush.breaker import Breaker, BreakerState
from durable.flush.flusher import Flusher

__all__ = ["Breaker", "BreakerState", "Flusher"]
