"""pytest-benchmark entries over the same registry: python -m pytest benchmarks --benchmark-only"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import cases, peers

pytest.importorskip("pytest_benchmark")
SAMPLES = 4096


@pytest.mark.parametrize("chain", cases.CHAINS, ids=lambda chain: chain.name)
def test_chain(benchmark: Any, chain: cases.Chain) -> None:
    benchmark.pedantic(chain.ours, (SAMPLES,), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("make", peers.CHAIN_PEERS, ids=lambda make: make.name.replace(" ", "-"))
@pytest.mark.parametrize("chain", cases.CHAINS, ids=lambda chain: chain.name)
def test_chain_peer(benchmark: Any, chain: cases.Chain, make: Any) -> None:
    if make is peers.JaxScan:
        pytest.importorskip("jax")
    peer = make(chain.model, chain.activation)
    benchmark.pedantic(peer.chunk, (SAMPLES,), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("latency", cases.LATENCIES, ids=lambda latency: latency.name)
def test_latency(benchmark: Any, latency: cases.Latency) -> None:
    benchmark(latency.chain.ours, latency.samples)
