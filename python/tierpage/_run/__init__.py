"""``tierpage run``: paging for a program that is not edited.

``command`` switches tierpage on, ``program`` runs the code as Python itself would, ``status`` draws one line meanwhile.
"""
