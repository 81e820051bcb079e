"""``tierpage report``: one page that stands alone, made from a trace.

``reading`` takes a trace in and checks it, ``aggregating`` counts, ``drawing`` draws, ``page`` lays it out, ``markup``
escapes, ``command`` is the command.
"""
