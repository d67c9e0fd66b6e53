"""`./run dashboards`: write the Grafana dashboards that the monitoring component ships; with `--plot`, draw one."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from support.dashboards import DASHBOARDS
from support.dashboards.load import live
from support.dashboards.plot import draw
from support.scraped import scraped

FOLDER = Path(__file__).parents[3] / "k8s" / "components" / "monitoring" / "dashboards"
# Prometheus scrapes once more after the last request.
_AFTERWARDS_SECONDS = 4


@click.command()
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw a dashboard into this SVG, by a real Prometheus that scrapes a demo under load.",
)
@click.option("--uid", default="lakthan-ocsp", show_default=True, help="Which one.")
@click.option("--minutes", type=click.FloatRange(0.2), default=4.0, show_default=True, help="How long the load runs.")
def main(plot: Path | None, uid: str, minutes: float) -> None:
    """Write every dashboard's JSON, which is committed with its description; or draw one."""
    if plot is not None:
        _plot(plot, uid, minutes)
        return
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        path = FOLDER / f"{dashboard.uid}.json"
        path.write_text(dashboard.encode(), encoding="utf-8")
        click.echo(f"{path.relative_to(FOLDER.parents[3])}: {len(dashboard.panels)} panels")


def _plot(path: Path, uid: str, minutes: float) -> None:
    dashboard = {each.uid: each for each in DASHBOARDS}[uid]
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="lakthan-dashboards-") as folder,
        console.status("starting …") as status,
        scraped(Path(folder), "2s") as world,
    ):
        here = world.prometheus
        here.until(lambda: here.value("count(up == 1) == count(up)"))
        span = live(world, minutes * 60, lambda share: status.update(f"load: {share:.0%}"))
        time.sleep(_AFTERWARDS_SECONDS)
        said = (
            f"a demo with everything beside it on {os.cpu_count()} cores, {minutes:g} minutes of load in waves; "
            "scraped every 2 s by a real Prometheus, which evaluated the dashboard's own expressions"
        )
        path.write_text(draw(dashboard, here, span, said), encoding="utf-8")
    console.print(f"{path}: {dashboard.title}")


if __name__ == "__main__":
    main()
