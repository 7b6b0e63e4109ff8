"""The ``bitnet`` command: one file per subcommand, each with ``add_parser`` and ``run``.

Nothing here imports PyTorch before a command runs, so help and usage errors come at once.
"""
