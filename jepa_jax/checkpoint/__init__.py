"""Checkpoints: `files` is one folder of arrays, `run` the checkpoints of a run."""

from jepa_jax.checkpoint.files import FORMAT as FORMAT
from jepa_jax.checkpoint.files import MANIFEST as MANIFEST
from jepa_jax.checkpoint.files import check_room as check_room
from jepa_jax.checkpoint.files import hash_arrays as hash_arrays
from jepa_jax.checkpoint.files import leaves as leaves
from jepa_jax.checkpoint.files import problems as problems
from jepa_jax.checkpoint.files import read_manifest as read_manifest
from jepa_jax.checkpoint.files import read_on_host as read_on_host
from jepa_jax.checkpoint.files import restore as restore
from jepa_jax.checkpoint.files import stored_abstract as stored_abstract
from jepa_jax.checkpoint.files import write as write
from jepa_jax.checkpoint.run import Checkpoints as Checkpoints
from jepa_jax.checkpoint.run import complete_steps as complete_steps
from jepa_jax.checkpoint.run import find as find
from jepa_jax.checkpoint.run import newest_intact as newest_intact
