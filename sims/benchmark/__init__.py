"""Measurements of generative modules and of federations, one command each: ``python -m sims.benchmark COMMAND``.

``modules`` (speed, size, memory), ``evaluations`` (accuracy against network evaluations), ``pool`` (fewer and dearer samples, or
more and cheaper), ``synthesis`` (many nodes on one machine), ``curve`` (accuracy against total seconds), ``wire`` (types of the
weights in the file), ``batched`` (modules one after the other or stacked); ``scale`` (collecting and broadcasting many modules),
``growth`` (whole runs of more and more nodes), ``soak`` (whether run after run leaves anything behind).

A command prints its table; with ``--write`` its rows also go into ``sims/results/<command>.json``, where a row that was there for
the same settings is replaced and all others stay. Test images are only reported on, never chosen by.
"""
