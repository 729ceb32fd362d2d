"""Whether a run directory is whole: every hash and every cross reference, looked at without changing anything.

`verify_run` reads what a run left behind as a stranger would, and returns what it finds, each `Finding` with the place, the rule,
and whether the rule is broken or only worth a remark:

=====================  ========================================================================================================
rule                   what is found
=====================  ========================================================================================================
``format-version``     the directory was made by another version of its format
``spec``               spec.json is not a spec, or does not have the digest that it says
``json``               a file that should hold JSON does not, or not what belongs there
``receipt``            the output of a finished stage is missing or changed, or stands in a receipt under no plain name
``receipt-inputs``     a stage was finished with other inputs than the spec and modules that are here
``module-missing``     a module that its owner reported is neither registered nor in quarantine
``module-unreported``  a module that its owner did not report, or reported for two classes
``claims``             a module says something else of itself than its owner reported
``label-table``        two files name the classes differently, or count images differently
``answer``             an answer is not of its node, or not about the run's classes
``synthetic-digest``   nodes built different synthetic sets (a remark: rounding differs between machines)
``weights``            a classifier or logits that do not load, are not finite, or are of another shape
``quarantine``         a report of a refusal that cannot be read, or bytes that are not those it names
``ledger``             the transfers do not add up to the bytes that the results name
``forgotten``          something of a forgotten module or owner is still there
``unexpected``         a file or link that no run leaves behind, or a folder in the place of a file
``unfinished``         a part of a file that was being written (a remark)
=====================  ========================================================================================================

A module file and its signature break the rules of `registry` and of `vetting.check_cost`.
"""

from .contents import Finding, RunContents, is_plain
from .modules import OpenedModule, open_file
from .run import verify_run

__all__ = ["Finding", "OpenedModule", "RunContents", "is_plain", "open_file", "verify_run"]
