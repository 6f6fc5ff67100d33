"""Planning: actions that are predicted to lead to a goal image.

Letters beside those of models/__init__.py: S samples, H horizon (actions), J iterations, U width of
an action, P numbers of an action that are planned, V width of a state.
"""
