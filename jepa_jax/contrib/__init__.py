"""What serves a page of docs and nobody's run.

The rest of the package does not import it; tools/two_rooms.py and tests do.
"""
