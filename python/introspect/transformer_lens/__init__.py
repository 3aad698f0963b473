"""What TransformerLens has beside the model itself: hooks in modules of one's own, evaluations, names of models.

Everything is also found under ``introspect``; ``left_out`` lists what is not here, and what to use instead.
"""
