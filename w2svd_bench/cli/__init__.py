"""The command line: a thin typer app, one function a command."""
