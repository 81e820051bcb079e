"""``tierpage top``: what the programs of this user that page are doing now.

``publishing`` is in the programs: it answers those who ask. ``places`` says where both sides meet. The command's side:
``reading`` asks and checks the answers, ``figures`` makes rates of two answers, ``drawing`` makes text of them,
``screen`` owns the terminal, ``command`` joins these.
"""
