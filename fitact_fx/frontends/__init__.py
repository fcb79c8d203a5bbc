"""Front ends: the ways in which a model becomes a graph, from the one that sees most to the one that always works.

Each takes a copy of the model that owns its modules and shares its Parameters (`ownership.owned_copy`), and
gives a `TracedModule`, or raises TracingError with the reason why it cannot.
"""
