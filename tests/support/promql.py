"""What a PromQL expression asks for, as a real parser of the language reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import promql_parser

# What Grafana puts in, for who is not Grafana.
_GRAFANA = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}
# Labels that Prometheus or the supervisor of several workers adds.
ADDED = {"job", "instance", "worker", "le", "__name__", "alertname", "alertstate"}


@dataclass(slots=True)
class Asked:
    """`selectors`: the name, or pattern of names, of each series, and the labels that are compared; `grouped`: the
    labels that sums are by, or sides are matched on.
    """

    selectors: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def plain(expression: str, **chosen: str) -> str:
    """The expression for all processes and jobs, as Prometheus itself can take it. `chosen`: other values, by name."""
    for variable, value in {**_GRAFANA, **{f"${name}": value for name, value in chosen.items()}}.items():
        expression = expression.replace(variable, value)
    return expression


def asked(expression: str) -> Asked:
    """Parse it. Raises `ValueError` when it is not PromQL."""
    found = Asked()

    def see(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            _selector(node, found)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.grouped |= set(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            matching = node.modifier.matching
            found.grouped |= set(matching.labels if matching is not None else ())
        return True

    promql_parser.walk(promql_parser.parse(plain(expression)), see)
    return found


def matching(name: str, series: dict[str, frozenset[str]]) -> list[str]:
    """The series of that name, or of that pattern; `…_bucket` and the like are those of a histogram."""
    pattern = re.compile(name)
    suffixes = ("", "_bucket", "_sum", "_count")
    return [each for each in series if any(pattern.fullmatch(each + suffix) for suffix in suffixes)]


def _selector(selector: promql_parser.VectorSelector, found: Asked) -> None:
    matchers = {each.name: each.value for each in selector.matchers.matchers}
    found.selectors.append((selector.name or matchers["__name__"], frozenset(matchers)))
