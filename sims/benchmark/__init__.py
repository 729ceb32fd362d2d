"""Measurements of generative modules and of federations, one command each: ``python -m sims.benchmark COMMAND``.

``modules`` (speed, size, memory), ``evaluations`` (accuracy against network evaluations), ``pool`` (fewer and dearer samples, or
more and cheaper), ``synthesis`` (many nodes on one machine), ``curve`` (accuracy against total seconds), ``wire`` (types of the
weights in the file), ``batched`` (modules one after the other or stacked); ``scale`` (collecting and broadcasting many modules),
``growth`` (whole runs of more and more nodes), ``soak`` (whether run after run leaves anything behind).

A command prints its table; with ``--write`` its rows also go into ``sims/results/<command>.json``, where a row of the same data
set, kind, number and so on is replaced, whatever other settings it had, and all others stay. Each row names the machine where it
was measured. Test images are only reported on, never chosen by.
"""
