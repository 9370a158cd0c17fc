"""Differential fuzzing: random nodes and packets through the loaded programs and a model of them.

``model`` is what docs/datapath.md says, in plain Python. ``topology`` and ``packets`` make the input up,
``kernel`` and ``trial`` give it to the real programs, ``session`` and ``compare`` tell what differs and
``shrink`` how little is needed for it. ``python -m tests.fuzz -h`` says how to run it.
"""
