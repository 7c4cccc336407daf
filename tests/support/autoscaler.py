"""What KEDA and Kubernetes' autoscaler make of a ScaledObject, step by step, with a clock of the caller's.

KEDA (pkg/scaling/executor/scale_scaledobjects.go, pkg/scalers/metrics_api_scaler.go as of release 2.19) looks every
`pollingInterval`:

- A trigger is active where its value is above `activationTargetValue`; 0 workers then become `minReplicaCount` or 1.
- Where it has not been active for `cooldownPeriod`, and `minReplicaCount` is 0, all workers stop.
- Where the value cannot be had nothing changes, as no `fallback` is set.

In between, from 1 worker on, Kubernetes' HorizontalPodAutoscaler (pkg/controller/podautoscaler: horizontal.go,
replica_calculator.go) looks every 15 s. With a target of AverageValue it wants ceil(value / targetValue) workers,
unless that is within a tenth of what there are. Before there are fewer, it takes the highest of what it wanted within
`stabilizationWindowSeconds`. It goes by the policies of `behavior`, and stays between the least and the most.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

TOLERANCE: Final = 0.1
SYNC_EVERY_S: Final = 15.0
_COOLDOWN_S: Final = 300
_UP: Final = [{"type": "Percent", "value": 100, "periodSeconds": 15}, {"type": "Pods", "value": 4, "periodSeconds": 15}]
_DOWN: Final = [{"type": "Percent", "value": 100, "periodSeconds": 15}]


class Autoscaler:
    """How many workers there are.

    Args:
        spec: Of a ScaledObject with one trigger.
        ask: Returns the trigger's value; None where it cannot be had.
        clock: Seconds.
    """

    def __init__(self, spec: dict[str, Any], ask: Callable[[], float | None], clock: Callable[[], float]) -> None:
        [trigger] = spec["triggers"]
        assert trigger.get("metricType", "AverageValue") == "AverageValue"
        self._ask, self._clock = ask, clock
        self._target = float(trigger["metadata"]["targetValue"])
        self._activation = float(trigger["metadata"].get("activationTargetValue", "0"))
        self._least: int = spec.get("minReplicaCount", 0)
        self._most: int = spec.get("maxReplicaCount", 100)
        self._cooldown_s: float = spec.get("cooldownPeriod", _COOLDOWN_S)
        behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
        self._up, self._down = behavior.get("scaleUp", {}), behavior.get("scaleDown", {})
        self._wanted: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()
        self._active_at: float | None = None
        self.replicas: int = self._least

    def poll(self) -> None:
        """What KEDA does at each look: from none to some, and back."""
        value = self._ask()
        if value is None:
            return
        now = self._clock()
        if value > self._activation:
            self._active_at = now
            if self.replicas == 0:
                self.replicas = max(self._least, 1)
        elif (
            self.replicas and not self._least and (self._active_at is None or now - self._active_at > self._cooldown_s)
        ):
            self.replicas = 0
            self._wanted.clear()
            self._changes.clear()

    def sync(self) -> None:
        """What the autoscaler does at each look: more, and fewer down to one."""
        if not self.replicas:
            return  # it rests while there is none
        value = self._ask()
        if value is None:
            return
        now = self._clock()
        new = self._by_policies(self._stabilized(self._desired(value), now), now)
        new = min(max(new, self._least, 1), self._most)
        if new != self.replicas:
            self._changes.append((now, new - self.replicas))
            self.replicas = new

    def _desired(self, value: float) -> int:
        # It is sent in thousandths.
        value, target = math.trunc(value * 1000), math.trunc(self._target * 1000)
        if abs(1 - value / (target * self.replicas)) <= TOLERANCE:
            return self.replicas
        return min(max(math.ceil(value / target), self._least, 1), self._most)

    def _stabilized(self, desired: int, now: float) -> int:
        up_s = self._up.get("stabilizationWindowSeconds", 0)
        down_s = self._down.get("stabilizationWindowSeconds", 300)
        self._wanted.append((now, desired))
        while self._wanted[0][0] < now - max(up_s, down_s):
            self._wanted.popleft()
        least = min(wanted for at, wanted in self._wanted if at >= now - up_s)
        most = max(wanted for at, wanted in self._wanted if at >= now - down_s)
        return min(max(self.replicas, least), most)

    def _by_policies(self, wanted: int, now: float) -> int:
        rules, usual, sign = (self._up, _UP, 1) if wanted > self.replicas else (self._down, _DOWN, -1)
        if wanted == self.replicas or rules.get("selectPolicy") == "Disabled":
            return self.replicas
        limits: list[int] = []
        for policy in rules.get("policies", usual):
            recent = [
                change for at, change in self._changes if at > now - policy["periodSeconds"] and change * sign > 0
            ]
            before = self.replicas - sum(recent)
            amount = policy["value"] if policy["type"] == "Pods" else math.ceil(before * policy["value"] / 100)
            limits.append(before + sign * amount)
        widest = rules.get("selectPolicy", "Max") == "Max"
        limit = max(limits) if (sign > 0) is widest else min(limits)
        return min(wanted, limit) if sign > 0 else max(wanted, limit)
