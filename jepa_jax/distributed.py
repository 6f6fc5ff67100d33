"""Many processes as one run: when to connect them, how they agree, how they end together.

| launcher | what it sets, and what happens |
|---|---|
| none | nothing: one process |
| SLURM, Open MPI | its own variables; connected when a step has more than one task |
| TPU VMs, GKE | `JEPA_JAX_DISTRIBUTED=1` by our launch scripts; JAX asks the machine for the rest |
| plain hosts | `JEPA_JAX_COORDINATOR=HOST:PORT`, `JEPA_JAX_PROCESSES`, `JEPA_JAX_PROCESS` |

`JEPA_JAX_DISTRIBUTED=0` keeps a process alone whatever else is set.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jepa_jax import scratch
from jepa_jax.errors import QUEUE_AGAIN, STOPPED, ConfigError, Interrupted

log = logging.getLogger(__name__)

SWITCH = 'JEPA_JAX_DISTRIBUTED'
PLAIN = ('JEPA_JAX_COORDINATOR', 'JEPA_JAX_PROCESSES', 'JEPA_JAX_PROCESS')
# launcher -> number of tasks, index of this one
LAUNCHERS = {
    'SLURM': ('SLURM_NTASKS', 'SLURM_PROCID'),
    'Open MPI': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
}
CONNECT = 300  # seconds to wait for the other processes at the start
RESOLVE = 30  # seconds until the coordinator's name must be known: a cluster's may come late
SILENCE = 60  # seconds without a sign of life after which a process counts as lost
CLOSING = 3600  # seconds that the others wait while process 0 writes the report

_alone = True  # nothing to agree on
_broken = False  # ends without waiting for the others
_told = False  # to end, by a SIGTERM


def settings(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What jax.distributed.initialize is to be called with; None: one process, no call.

    Raises:
      ConfigError: variables that contradict each other, or only some of those needed.
    """
    switch = environment.get(SWITCH, '')
    if switch not in ('', '0', '1'):
        raise ConfigError(f"{SWITCH} = '{switch}': must be 0 or 1")
    if switch == '0':
        return None
    told = [name for name in PLAIN if environment.get(name)]
    if told:
        return _plain(environment, told)
    if switch == '1':
        return {}
    for launcher, (count, index) in LAUNCHERS.items():
        if index in environment and _number(environment, count, 1) > 1:
            log.debug('%s runs %s tasks', launcher, environment[count])
            return {}
    return None


def _plain(environment: Mapping[str, str], told: list[str]) -> dict[str, Any]:
    if missing := [name for name in PLAIN if name not in told]:
        raise ConfigError(f'{told[0]} is set but {missing[0]} is not: need {", ".join(PLAIN)}')
    address, count, index = PLAIN
    place = re.fullmatch(r'.+:(\d{1,5})', environment[address])
    if not place or not 0 < int(place[1]) < 2**16:
        raise ConfigError(
            f"{address} = '{environment[address]}': must be HOST:PORT, a port from 1 to 65535"
        )
    processes = _number(environment, count, 1)
    process = _number(environment, index, 0)
    if process >= processes:
        raise ConfigError(f'{index} = {process}: must be below {count} = {processes}')
    return {
        'coordinator_address': environment[address],
        'num_processes': processes,
        'process_id': process,
        'cluster_detection_method': 'deactivate',
    }


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment.get(name, '')
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} = '{text}': must be a whole number of at least {least}")
    return int(text)


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Connects the processes of a run, before anything touches a device.

    Raises:
      ConfigError: see `settings`; the coordinator has no such name, or its port is in use.
    """
    global _alone, _broken
    import jax

    how = settings(os.environ)
    if how is None:
        yield
        return
    if how:
        _check_coordinator(how)
        log.info(
            'process %d of %d at %s: waits up to %d s for the others',
            how['process_id'], how['num_processes'], how['coordinator_address'], CONNECT,
        )  # fmt: skip
    # its handler would swallow a SIGTERM that comes before the loop has its own
    jax.config.update('jax_enable_preemption_service', False)
    try:
        with _patience(how):
            jax.distributed.initialize(
                **how,
                initialization_timeout=2 * CONNECT,  # then it aborts with a trace of its stack
                heartbeat_timeout_seconds=SILENCE,
                shutdown_timeout_seconds=CLOSING,
            )
    except (ValueError, RuntimeError) as error:
        _broken = True
        reason = _short(error)
        if not how and 'coordinator_address' in reason:
            reason = f'JAX knows no cluster here; set {", ".join(PLAIN)} in place of {SWITCH}'
        raise ConfigError(f'the processes of this run cannot be connected: {reason}') from error
    _alone = jax.process_count() == 1
    if jax.process_index():
        logging.getLogger('jepa_jax').setLevel(logging.WARNING)  # process 0 tells the story
    try:
        yield
    except Interrupted:
        raise  # all of them, at the same step
    except BaseException:
        _broken = True
        raise


def _place(how: dict[str, Any]) -> tuple[str, int]:
    host, port = how['coordinator_address'].rsplit(':', 1)
    return host.strip('[]'), int(port)


def _check_coordinator(how: dict[str, Any]) -> None:
    """Raises ConfigError for a name that is not known within RESOLVE seconds, or, in process 0,
    which is to listen there, a port in use."""
    host, port = _place(how)
    told = f"{PLAIN[0]} = '{how['coordinator_address']}'"
    until = time.monotonic() + RESOLVE
    while True:
        try:
            socket.getaddrinfo(host, port)
            break
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(f'{told}: no host of that name is known: {error}') from error
            time.sleep(1)
    if how['process_id']:
        return
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(('', port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        words = f'{told}: process 0 cannot listen there: {os.strerror(error.errno)}'
        raise ConfigError(words) from error


@contextlib.contextmanager
def _patience(how: dict[str, Any]) -> Iterator[None]:
    """While JAX waits for the others no handler of Python runs, and at the end of its patience it
    aborts. So a thread ends the process when CONNECT seconds are over or a signal comes for which
    there is a handler."""
    ours, signals = socket.socketpair()
    signals.setblocking(False)

    def watch() -> None:
        ready = select.select([ours], [], [], CONNECT)[0]
        received = ours.recv(1) if ready else b''
        if ready and not received:
            return  # connected
        again = 'start the same command again to resume'
        if received:
            name = signal.Signals(received[0]).name
            words = f'{name} while waiting for the other processes; {again}'
        else:
            words = f'waited {CONNECT} s for the other processes{_unanswered(how)}; {again}'
        print(f'interrupted: {words}', file=sys.stderr, flush=True)
        os._exit(STOPPED if received == bytes([signal.SIGINT]) else QUEUE_AGAIN)

    before = signal.set_wakeup_fd(signals.fileno())
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signals.close()
        thread.join()
        ours.close()


def _unanswered(how: dict[str, Any]) -> str:
    """In words that follow, whether it is the coordinator who did not come."""
    if not how:
        return ', and not all came'
    where = how['coordinator_address']
    try:
        socket.create_connection(_place(how), timeout=5).close()
    except OSError as error:
        return f', and nothing answers at {PLAIN[0]} = {where} ({error})'
    return f', and not all {how["num_processes"]} came to {where}'


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Ends this process at once, to be queued again, when a collective fails because another
    process is gone. Nothing is unwound: a save under way would wait for the other one's part."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _alone or not _is_loss(error):
            raise
        who = f'process {jax.process_index()} of {jax.process_count()}'
        print(
            f'interrupted: {who} lost another process ({_short(error)}); start the same command '
            'again to resume from the last checkpoint',
            file=sys.stderr,
            flush=True,
        )
        os._exit(QUEUE_AGAIN)


@contextlib.contextmanager
def termination() -> Iterator[None]:
    """Within it a SIGTERM ends the process to be queued again, whatever it is at; the loop, which
    saves first, has its own handler for as long as it runs. Of several processes each ends there
    and then: the others may be waiting for it in a collective."""
    global _told

    def end(*_: Any) -> None:
        global _told
        _told = True
        error = Interrupted('SIGTERM before or after the training steps')
        if _alone:
            raise error
        print(f'interrupted: {error}; start the same command again to resume', file=sys.stderr)
        sys.stderr.flush()
        os._exit(QUEUE_AGAIN)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _told = False


def told() -> bool:
    """Whether a SIGTERM came within `termination` and the process is still there: Python drops
    what is raised in a callback of its garbage collector, and JAX has one."""
    return _told


@contextlib.contextmanager
def first(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters a context in process 0 on behalf of all, see `together`."""
    import jax

    with together(contextlib.nullcontext() if jax.process_index() else context):
        yield


@contextlib.contextmanager
def together(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters a context of its own in every process; if that fails in one, all fail.

    Raises:
      ConfigError: another process has an error, which it tells itself.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(context)
        except BaseException:
            any_process(True)
            raise
        if any_process(False):
            raise ConfigError('another process cannot begin and says why')
        yield


def _is_loss(error: Exception) -> bool:
    """Whether a collective failed because a process is gone: gloo, NCCL, coordination service."""
    words = 'gloo|nccl|connection (closed|reset)|peer|heartbeat|coordination service|unavailable'
    return re.search(words, str(error), flags=re.I) is not None


def _short(error: Exception) -> str:
    return ' '.join(str(error).split())[:200]


def leave(status: int) -> int:
    """The exit status again; after a failure it ends the process there and then. Waiting for the
    others, as JAX does at the end, would take minutes, and they end when they see that this one is
    gone."""
    if _broken:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; all must ask at the same point."""
    return bool(largest(flag))


def largest(value: int) -> int:
    """The largest `value` of any process; all must ask at the same point."""
    if _alone:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.asarray(value)).max())


def machines() -> list[int]:
    """For each process the first one on its machine, where both see the same folders as far as one
    can tell; all must ask."""
    if _alone:
        return [0]
    import numpy as np
    from jax.experimental import multihost_utils

    here = int(scratch.MARK.search(scratch.mark())[1], 16) >> 1  # within 31 bits
    places = multihost_utils.process_allgather(np.asarray(here)).tolist()
    return [places.index(place) for place in places]


def all_see(folder: pathlib.Path) -> bool:
    """Whether what process 0 writes into a folder of that name is there for all; all must ask."""
    import jax

    here = not jax.process_index()
    path = folder / f'.seen-{largest(os.getpid() if here else 0)}'
    if here:
        path.touch()
    any_process(False)  # it is there
    shared = not any_process(not path.exists())
    if here:
        path.unlink()
    return shared


def on_process_0(leaf):
    """An array on the mesh as numpy in process 0; in the others, which all must call it, None."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    elsewhere = jax.process_index()
    if leaf.is_fully_replicated:  # copied: on a CPU it would be the device's own memory
        return None if elsewhere else np.array(leaf.addressable_data(0))
    value = multihost_utils.process_allgather(leaf, tiled=True)
    return None if elsewhere else value


def whole(tree):
    """A pytree of arrays on the mesh as numpy, in every process."""
    import jax
    from jax.experimental import multihost_utils

    return jax.device_get(tree) if _alone else multihost_utils.process_allgather(tree, tiled=True)
