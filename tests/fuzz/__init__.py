"""Differential fuzzing: random nodes and packets through the loaded programs and a model of them.

``model`` is what docs/datapath.md says, in plain Python. ``topology``, ``packets`` and ``places`` make the
input up, ``opening``, ``kernel`` and ``trial`` give it to the real programs, ``session`` and ``compare`` tell
what differs and ``shrink`` how little is needed for it. ``python -m tests.fuzz -h`` says how to run it.

What the programs are free to choose, the port of a masqueraded flow, the model is told and holds to the
rules. What a test run does not show: the segments of a large packet, checksums left to a device, more than
one CPU.
"""
