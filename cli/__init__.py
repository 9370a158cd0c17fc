"""The `fimbria` command: a client of every service, and the lab.

`cli.__main__` holds the command tree; the commands themselves live in `cli.commands` and are
imported when they are called, so that `fimbria --help` starts at once. `cli.lab` is a library
as well: tests bring up a cluster with `cli.lab.lab.Lab` inside their own process.
"""
