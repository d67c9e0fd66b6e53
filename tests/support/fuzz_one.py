"""One target under libFuzzer, by atheris: `python -m support.fuzz_one NAME CORPUS SEEDS… -max_total_time=60`.

The parsers are instrumented when they are imported, so this module imports nothing of them before.
"""

from __future__ import annotations

import logging
import sys

import atheris  # type: ignore[import-untyped]

PACKAGES = ["lakthan", "lakthan_ocsp", "lakthan_tsa", "lakthan_registry", "lakthan_cli"]


def main() -> None:
    """Hand over to libFuzzer, which ends the process."""
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=PACKAGES):
        from support.fuzz_targets import TARGETS  # noqa: PLC0415 - see above
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
