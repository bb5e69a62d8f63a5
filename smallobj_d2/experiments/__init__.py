"""The experiments: Tables 3 to 8 rerun, and what was measured set beside what was published.

``scales`` says how large an experiment is, ``runs`` what one run of it is and how far it has come,
``sweep`` does all that are missing. ``results`` turns run folders into one small file, ``claims``
judges the paper's conclusions by it, ``figures`` and ``report`` show it.
"""
