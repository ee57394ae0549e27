"""What each command does, free of Typer, one file a command: from options to files and a rendered result.

They put the stages together and hand them what they must not know of one another. Used by `cli` and `demo`.
"""
