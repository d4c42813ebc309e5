"""The phi functions of exponential integrators."""

from __future__ import annotations

import math


def phi(k: int, z: float) -> float:
    """phi_0 = e^z, phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z = sum_j z^j / (j + k)!.

    The recursion divides by z and cancels; near 0 the series is summed instead.
    """
    if abs(z) < 1.0:
        return sum(z**j / math.factorial(j + k) for j in range(18))  # 18! > 1e15
    value = math.exp(z)
    for i in range(k):
        value = (value - 1 / math.factorial(i)) / z
    return value
