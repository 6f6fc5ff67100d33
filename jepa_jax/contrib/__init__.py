"""What serves a page of docs and nobody's run, with the page and the command that measures it.

Nothing else imports it: a row of jepa_jax.commands names its command, `jepa two-rooms`.
"""
