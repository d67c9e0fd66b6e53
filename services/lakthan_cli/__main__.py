"""The `lakthan` command.

A subcommand's module is loaded when it is used, so that `lakthan --help` needs no database driver. An error that a
person can act on is one line and exit code 1; a wrong command line is exit code 2.
"""

from __future__ import annotations

import importlib
import keyword
from importlib.metadata import version

import click

from lakthan.errors import LakthanError

# name → (module of `lakthan_cli.commands`, what `lakthan --help` says)
_COMMANDS = {
    "demo": ("demo", "Run a whole national PKI with OCSP and time-stamps on this machine."),
    "serve": ("serve", "Run one service: ocsp, tsa, registry or publisher."),
    "check-config": ("check_config", "Open everything a configuration names, and say what is wrong."),
    "keys": ("keys", "Make the keys of responders and units, ask for their certificates, try them."),
    "db": ("db", "Bring the database's schema up to date, or show how far it is."),
    "authority": ("authority", "Add authorities (CAs), look at them, say where their CRLs are."),
    "credential": ("credential", "Make and revoke what CAs and registrars show the registry."),
    "import": ("imports", "Import a CA's list of issued certificates."),
    "crl": ("crl", "Import CRLs, look into them, compare them."),
    "revoke": ("changes", "Revoke a certificate, for good."),
    "hold": ("changes", "Suspend a certificate."),
    "unhold": ("changes", "Make a suspended certificate good again."),
    "status": ("status", "Show a certificate's status and its history."),
    "ceremony": ("ceremony", "Sign the status of sub-CAs with an offline root's key, and import it."),
    "publish": ("publish", "Write the published answers as files, for nginx or a CDN."),
    "audit": ("audit", "Check the audit chain, note where it ends, read it."),
    "monitor": ("monitor", "Compare the CRLs that CAs publish with what OCSP says."),
    "ocsp": ("ocsp", "Ask any OCSP responder, look into OCSP messages, verify answers."),
    "tsa": ("tsa", "Have files stamped, look into time-stamps, verify them; run an authority."),
    "probe": ("probe", "Ask a running installation from outside, and say what is wrong with its answers."),
    "doctor": ("doctor", "Look at a machine, its services' configuration and database, and say what to do."),
}


class _Commands(click.Group):
    """The subcommands, loaded late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"lakthan_cli.commands.{_COMMANDS[cmd_name][0]}")
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(module, f"{name}_" if keyword.iskeyword(name) else name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LakthanError as error:
            raise click.ClickException(str(error)) from error


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("lakthan"), prog_name="lakthan")
def main() -> None:
    """OCSP responder and time-stamp authority for a national PKI."""


if __name__ == "__main__":
    main(prog_name="lakthan")
