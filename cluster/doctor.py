"""``bts doctor``: is this machine, with this config, ready to run?  Each check stands alone and names its remedy."""

from collections.abc import Callable, Iterator

from rich.markup import escape

from bts_dist.config import Config
from cluster import console, doctor_machine, doctor_services, doctor_stores
from cluster.finding import Finding

CHECKS: tuple[Callable[[Config], list[Finding]], ...] = (
    lambda _: doctor_machine.versions(),
    lambda _: doctor_machine.cpus(),
    lambda _: doctor_machine.memory(),
    doctor_machine.disks,
    doctor_machine.gpus,
    doctor_machine.own_speeds,
    lambda _: doctor_machine.exchange(),
    doctor_stores.credentials,
    doctor_stores.stores,
    doctor_stores.source,
    doctor_stores.shared_places,
    doctor_stores.clock,
    doctor_services.wandb,
    doctor_services.cluster,
)

_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def doctor(config: Config) -> bool:
    """Make every check, show what it found and what to do; whether no check found an error."""
    found = list(examine(config))
    rows = [("check", "state", "found")]
    rows += [(escape(f.check), f"[{_COLOURS[f.state]}]{f.state}[/]", escape(f.found)) for f in found]
    console.show_table("bts doctor", rows)
    for finding in found:
        if finding.remedy:
            line = f"[{_COLOURS[finding.state]}]{finding.state}[/] {escape(f'{finding.check}: {finding.remedy}')}"
            console.out.print(line)
    counts = {state: sum(f.state == state for f in found) for state in _COLOURS}
    console.stage("doctor", ", ".join(f"{count} {state}" for state, count in counts.items()))
    return counts["error"] == 0


def examine(config: Config) -> Iterator[Finding]:
    """What every check finds, in turn."""
    for number, check in enumerate(CHECKS):
        with console.progress("doctor") as update:
            update(number, len(CHECKS))
            findings = check(config)
        yield from findings
