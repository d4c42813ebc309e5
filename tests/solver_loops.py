"""The published algorithms as loops in float64, written apart from the solvers that they test.

Each loop goes over x / signal and sigma = noise / signal of a mixture's exact denoiser D(x, sigma), yields
(x, sigma) after every network evaluation, and draws its noise with z() where it needs some.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from solver_targets import MIXTURE

Array = Any
Steps = Iterator[tuple[Array, float]]


def D(x: Array, sigma: float) -> Array:
    """E[x0 | x0 + sigma n = x]."""
    return MIXTURE.denoised(x, 1.0, sigma)


def euler(x: Array, sigmas: list[float], z: Callable[[], Array]) -> Steps:
    for s, s_next in itertools.pairwise(sigmas):
        x = x + (s_next - s) * (x - D(x, s)) / s
        yield x, s_next


def ancestral_sigmas(s: float, s_next: float, eta: float) -> tuple[float, float]:
    up = min(s_next, eta * (s_next**2 * (s**2 - s_next**2) / s**2) ** 0.5)
    return (s_next**2 - up**2) ** 0.5, up


def euler_ancestral(x: Array, sigmas: list[float], z: Any, eta: float, s_noise: float) -> Steps:
    for s, s_next in itertools.pairwise(sigmas):
        down, up = ancestral_sigmas(s, s_next, eta)
        x = x + (x - D(x, s)) / s * (down - s)
        if s_next > 0:
            x = x + z() * s_noise * up
        yield x, s_next


def edm(
    x: Array,
    sigmas: list[float],
    z: Any,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = np.inf,
    s_noise: float = 1.0,
    order: int = 2,
) -> Steps:
    """Karras et al. 2022, Algorithm 2; with s_churn = 0 Algorithm 1."""
    for t, t_next in itertools.pairwise(sigmas):
        gamma = min(s_churn / (len(sigmas) - 1), 2**0.5 - 1) if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma * t
        x_hat = x
        if gamma > 0:
            x_hat = x + (t_hat**2 - t**2) ** 0.5 * s_noise * z()
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        yield x, t_next
        if t_next != 0 and order == 2:
            d_prime = (x - D(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d / 2 + d_prime / 2)
            yield x, t_next


def dpm_solver_2(x: Array, sigmas: list[float], z: Any) -> Steps:
    """Lu et al. 2022, Algorithm 1 with r1 = 1/2, for VE: alpha = 1, lambda = -log(sigma)."""
    for s, s_next in itertools.pairwise(sigmas):
        eps = (x - D(x, s)) / s
        if s_next == 0:
            yield x - s * eps, 0.0
            return
        h = np.log(s / s_next)
        s_mid = s * np.exp(-h / 2)
        u = x - s_mid * (np.exp(h / 2) - 1) * eps
        yield u, s_mid
        x = x - s_next * (np.exp(h) - 1) * (u - D(u, s_mid)) / s_mid
        yield x, s_next


def dpmpp_2m(x: Array, sigmas: list[float], z: Any, solver_type: str = "midpoint") -> Steps:
    old, h_last = None, 0.0
    for s, s_next in itertools.pairwise(sigmas):
        m = D(x, s)
        if s_next == 0:
            yield m, 0.0
            return
        h = np.log(s / s_next)
        x = s_next / s * x - np.expm1(-h) * m
        if old is not None:
            d = (m - old) * h / h_last
            x = x - (np.expm1(-h) / 2 if solver_type == "midpoint" else -(np.expm1(-h) / h + 1)) * d
        old, h_last = m, h
        yield x, s_next


def dpmpp_2s_ancestral(x: Array, sigmas: list[float], z: Any, eta: float, s_noise: float) -> Steps:
    for s, s_next in itertools.pairwise(sigmas):
        down, up = ancestral_sigmas(s, s_next, eta)
        m = D(x, s)
        if down == 0:
            x = m
        else:
            t, t_next = -np.log(s), -np.log(down)
            h = t_next - t
            mid = np.exp(-(t + h / 2))
            u = mid / s * x - np.expm1(-h / 2) * m
            yield u, mid
            x = down / s * x - np.expm1(-h) * D(u, mid)
        if s_next > 0:
            x = x + z() * s_noise * up
        yield x, s_next


def dpmpp_2m_sde(
    x: Array, sigmas: list[float], z: Any, eta: float, s_noise: float, solver_type: str = "midpoint"
) -> Steps:
    old, h_last = None, 0.0
    for s, s_next in itertools.pairwise(sigmas):
        m = D(x, s)
        if s_next == 0:
            yield m, 0.0
            return
        h = np.log(s / s_next)
        eta_h = eta * h
        weight = -np.expm1(-h - eta_h)
        x = s_next / s * np.exp(-eta_h) * x + weight * m
        if old is not None:
            r = h_last / h
            second = 0.5 * weight if solver_type == "midpoint" else weight / (-h - eta_h) + 1
            x = x + second / r * (m - old)
        if eta:
            x = x + z() * s_next * np.sqrt(-np.expm1(-2 * eta_h)) * s_noise
        old, h_last = m, h
        yield x, s_next


def dpmpp_3m_sde(x: Array, sigmas: list[float], z: Any, eta: float, s_noise: float) -> Steps:
    m_1 = m_2 = h_1 = h_2 = None
    for s, s_next in itertools.pairwise(sigmas):
        m = D(x, s)
        if s_next == 0:
            yield m, 0.0
            return
        h = np.log(s / s_next)
        h_eta = h * (eta + 1)
        x = np.exp(-h_eta) * x + -np.expm1(-h_eta) * m
        phi_2 = np.expm1(-h_eta) / h_eta + 1
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (m - m_1) / r0, (m_1 - m_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif h_1 is not None:
            x = x + phi_2 * (m - m_1) / (h_1 / h)
        if eta:
            x = x + z() * s_next * np.sqrt(-np.expm1(-2 * h * eta)) * s_noise
        m_1, m_2, h_1, h_2 = m, m_1, h, h_1
        yield x, s_next


def unipc(
    x: Array, sigmas: list[float], z: Any, order: int = 2, kind: str = "bh2", lower_order_final: bool = True
) -> Steps:
    """Zhao et al. 2023, UniPC-p for data prediction with alpha = 1; x_c is the corrected sample."""
    n = len(sigmas) - 1
    lam = [-np.log(s) if s else np.inf for s in sigmas]
    ms: list[Array] = []
    x_c, p = x, 0

    def psi(k: int, h: float) -> float:  # j! h phi_{j+1}, by the recursion of the paper's appendix
        value = np.expm1(-h) / -h
        for j in range(1, k + 1):
            value = (value - 1 / float(np.prod(range(1, j + 1)))) / -h
        return value

    def step(x_from: Array, i: int, p: int, corrector: Array | None) -> Array:
        """From level i to i + 1 with the predictions up to i, and at i + 1 with a corrector."""
        h = lam[i + 1] - lam[i]
        base = sigmas[i + 1] / sigmas[i] * x_from - np.expm1(-h) * ms[i]
        r = [(lam[i - k] - lam[i]) / h for k in range(1, p)]
        D1 = [(ms[i - k] - ms[i]) / r_k for k, r_k in zip(range(1, p), r, strict=True)]
        if corrector is not None:
            r, D1 = [*r, 1.0], [*D1, corrector - ms[i]]
        if not r:
            return base
        B = -h if kind == "bh1" else np.expm1(-h)
        b = [float(np.prod(range(1, j + 1))) * -h * psi(j, h) / B for j in range(1, len(r) + 1)]
        R = np.array([[r_k ** (j - 1) for r_k in r] for j in range(1, len(r) + 1)])
        rho = [0.5] if len(r) == 1 else np.linalg.solve(R, b)
        return base - B * sum(w * d for w, d in zip(rho, D1, strict=True))

    for i in range(n):
        m = D(x, sigmas[i])
        if i > 0:
            x_c = step(x_c, i - 1, p, m)
        ms.append(m)
        p = min(order, i + 1)
        if lower_order_final or i == n - 1:
            p = min(p, n - i)
        x = m if i == n - 1 else step(x_c, i, p, None)
        yield x, sigmas[i + 1]


def lms(x: Array, sigmas: list[float], z: Any, order: int = 4) -> Steps:
    ds: list[Array] = []
    for i, (s, s_next) in enumerate(itertools.pairwise(sigmas)):
        ds.append((x - D(x, s)) / s)
        k = min(i + 1, order)
        nodes = [sigmas[i - j] for j in range(k)]
        for j in range(k):  # the integral of the Lagrange polynomial of node j, by its primitive
            basis = np.poly1d([1.0])
            for node in nodes[:j] + nodes[j + 1 :]:
                basis *= np.poly1d([1.0, -node]) / (nodes[j] - node)
            primitive = basis.integ()
            x = x + (primitive(s_next) - primitive(s)) * ds[i - j]
        yield x, s_next


def plms(x: Array, sigmas: list[float], z: Any) -> Steps:
    """PNDM's pseudo linear multi-step with the second step in the place of its Runge-Kutta start."""
    ets: list[Array] = []
    first = x
    queue = list(itertools.pairwise(sigmas))
    for counter, (s, s_next) in enumerate([queue[0], queue[0], *queue[1:]]):
        at = s_next if counter == 1 else s
        e = (x - D(x, at)) / at
        if counter == 1:
            x = first + (s_next - s) * (e + ets[-1]) / 2
            yield x, s_next
            continue
        ets = [*ets[-3:], e]
        if len(ets) == 2:
            e = (3 * ets[-1] - ets[-2]) / 2
        elif len(ets) == 3:
            e = (23 * ets[-1] - 16 * ets[-2] + 5 * ets[-3]) / 12
        elif len(ets) == 4:
            e = (55 * ets[-1] - 59 * ets[-2] + 37 * ets[-3] - 9 * ets[-4]) / 24
        x = x + (s_next - s) * e
        yield x, s_next
