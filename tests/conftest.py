"""What every test shares: the `--require` option, and the rule that with `--require=all` nothing is skipped."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator

# Imported early on purpose: its plugin would do so while a failing run is being summed up, deep in the stack, where
# CPython 3.11's parser can lose count and hide the summary.
import hypothesis  # noqa: F401
import pytest
import structlog

from support import programs

pytest_plugins = ["support.database"]

# A service in the test's own process logs as it does without a configuration, but never to standard output, which may
# be what a test looks at.
structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--require`."""
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="NAME,NAME|all",
        help="a test that misses this program fails instead of being skipped; with all, no test may be skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read `--require`, and refuse names that no test asks for."""
    # A shell has what it starts in the background ignore Ctrl-C, and so do that one's children; tests press it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    names = {name for value in config.getoption("--require") for name in value.split(",") if name}
    known = {*programs.PACKAGES, "bouncycastle", "root", "all"}
    if not names <= known:
        unknown = ", ".join(sorted(names - known))
        raise pytest.UsageError(f"--require: unknown {unknown}; known are {', '.join(sorted(known))}")
    programs.required.update(names)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With `--require=all` a skip of any kind is a failure, because somebody meant the whole suite to run."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and "all" in programs.required:
        report.outcome = "failed"
        report.longrepr = f"skipped although --require=all: {report.longrepr}"
    return report
