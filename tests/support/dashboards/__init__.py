"""The Grafana dashboards, described in Python: `./run dashboards` writes them as JSON into `k8s/components/monitoring`.

`model` has the words of a description and turns them into Grafana's JSON; `ocsp`, `tsa`, `registry`, `keys` and `probe`
are the dashboards. What is committed is what they give, and every series and label in them is one that a service really
has (tests/deploy/test_dashboards.py); a real Prometheus evaluates every expression (tests/service/test_prometheus.py).
"""

from __future__ import annotations

from support.dashboards.keys import KEYS
from support.dashboards.ocsp import OCSP
from support.dashboards.probe import PROBE
from support.dashboards.registry import REGISTRY
from support.dashboards.tsa import TSA

DASHBOARDS = (OCSP, TSA, REGISTRY, KEYS, PROBE)
