"""The command line: `reprise`. Each module of this package holds related commands; this one lists them."""

import click

from gateway.cli import (
    animate,
    control,
    doctor,
    explain,
    follow,
    gc,
    inspect,
    models,
    savings,
    simulate,
    sizing,
    speak,
    stack,
    stats,
    trace,
    warm,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Generative media that is never computed twice."""


for command in (
    *(stack.up, stack.down, animate.animate, speak.speak, explain.explain),
    *(follow.watch, follow.cancel, stats.stats, trace.trace),
    *(control.invalidate, control.switch, control.pin, warm.warm, savings.savings),
    *(inspect.inspect, gc.gc, doctor.doctor, models.models, simulate.simulate, sizing.sizing),
):
    main.add_command(command)
