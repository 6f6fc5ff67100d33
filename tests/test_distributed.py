"""Two processes make one run: the same losses, one end for both, and any mesh to resume on."""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
import yaml
from small_run import ROOT, STEPS, copy_until, lines, parents

from jepa_jax import (
    build,
    checkpoint,
    cli,
    distributed,
    loop,
    metrics,
    optim,
    sharding,
    start,
    train,
)
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.data.stream import FailureLog
from jepa_jax.data.videos import VideoStream
from jepa_jax.distributed import SILENCE, settings
from jepa_jax.errors import ConfigError, Interrupted
from jepa_jax.origin import origin_of

SLURM = {
    'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'node[001-002]', 'SLURM_NTASKS': '16',
    'SLURM_PROCID': '3', 'SLURM_LOCALID': '3',
}  # fmt: skip
PLAIN = {
    'JEPA_JAX_COORDINATOR': 'a:1234', 'JEPA_JAX_PROCESSES': '2', 'JEPA_JAX_PROCESS': '1',
}  # fmt: skip
PLAIN_HOST = 'JEPA_JAX_COORDINATOR'
GKE = {
    'TPU_WORKER_ID': '0', 'TPU_WORKER_HOSTNAMES': 'h0,h1',
    'MEGASCALE_NUM_SLICES': '1', 'MEGASCALE_SLICE_ID': '0',  # else asked of the machine
}  # fmt: skip


def test_connects_only_when_told():
    assert settings({}) is None
    assert settings({**SLURM, 'SLURM_NTASKS': '1'}) is None
    assert settings({'SLURM_NTASKS': '16'}) is None  # sbatch's own shell is no task of the step
    assert settings(SLURM) == {}  # JAX reads the rest
    assert settings({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'}) == {}
    assert settings(GKE) is None
    assert settings({**GKE, 'JEPA_JAX_DISTRIBUTED': '1'}) == {}
    for environment in (SLURM, PLAIN):
        assert settings({**environment, 'JEPA_JAX_DISTRIBUTED': '0'}) is None
    assert settings(PLAIN) == {
        'coordinator_address': 'a:1234', 'num_processes': 2, 'process_id': 1,
        'cluster_detection_method': 'deactivate',
    }  # fmt: skip


def test_a_sigterm_outside_the_steps_asks_to_be_queued_again(monkeypatch, capsys):
    """While a run compiles, starts or writes its report: no scheduler queues status 143 again."""
    before = signal.getsignal(signal.SIGTERM)

    def at_work(config, workdir):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # raised here

    monkeypatch.setattr(train, 'train', at_work)
    with pytest.raises(Interrupted, match='before or after the training steps'):
        train.run(MaskedVideoConfig(), 'nowhere')
    assert signal.getsignal(signal.SIGTERM) == before

    class Ended(BaseException):
        """In place of the process."""

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(distributed, '_alone', False)  # the others may wait in a collective
    monkeypatch.setattr(os, '_exit', end)
    with pytest.raises(Ended, match='75'):
        train.run(MaskedVideoConfig(), 'nowhere')
    assert 'start the same command again to resume' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'JEPA_JAX_DISTRIBUTED': 'yes'}, "JEPA_JAX_DISTRIBUTED = 'yes': must be 0 or 1"),
        ({'JEPA_JAX_PROCESS': ''}, 'JEPA_JAX_COORDINATOR is set but JEPA_JAX_PROCESS is not'),
        ({'JEPA_JAX_COORDINATOR': 'a'}, "JEPA_JAX_COORDINATOR = 'a': must be HOST:PORT"),
        ({'JEPA_JAX_COORDINATOR': 'a:99999'}, 'must be HOST:PORT, a port from 1 to 65535'),
        ({'JEPA_JAX_COORDINATOR': 'a:0'}, 'must be HOST:PORT, a port from 1 to 65535'),
        ({'JEPA_JAX_PROCESS': '2'}, 'JEPA_JAX_PROCESS = 2: must be below JEPA_JAX_PROCESSES = 2'),
        ({'JEPA_JAX_PROCESSES': 'two'}, "JEPA_JAX_PROCESSES = 'two': must be a whole number"),
    ],
)
def test_half_a_configuration_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        settings({**PLAIN, **change})


def test_what_a_process_waits_for_is_said(monkeypatch, caplog):
    """For up to five minutes; and that there is no cluster, in place of an argument of JAX's."""
    for name in (*SLURM, *PLAIN, *GKE):
        monkeypatch.delenv(name, raising=False)

    def refused(**how):
        told = how.get('coordinator_address')
        raise ValueError('no answer' if told else 'coordinator_address should be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', refused)
    monkeypatch.setattr(jax.config, 'update', lambda *_: None)
    monkeypatch.setattr(distributed, '_broken', False)  # put back at the end
    monkeypatch.setenv('JEPA_JAX_DISTRIBUTED', '1')
    with pytest.raises(ConfigError, match='JAX knows no cluster here; set JEPA_JAX_COORDINATOR, '):
        with distributed.session():
            pass
    monkeypatch.delenv('JEPA_JAX_DISTRIBUTED')
    for name, value in {**PLAIN, 'JEPA_JAX_COORDINATOR': 'localhost:1234'}.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level('INFO', 'jepa_jax'), pytest.raises(ConfigError, match='no answer'):
        with distributed.session():
            pass
    assert 'process 1 of 2 at localhost:1234: waits up to 300 s for the others' in caplog.text


def test_a_coordinator_that_cannot_be_is_one_line(monkeypatch):
    """A name that nobody knows, within seconds; a port in use, where it is to be listened at."""
    monkeypatch.setattr(distributed, 'RESOLVE', 0)
    with pytest.raises(
        ConfigError, match=r"COORDINATOR = 'no\.invalid:1234': no host of that name"
    ):
        distributed._check_coordinator(settings({**PLAIN, PLAIN_HOST: 'no.invalid:1234'}))
    with socket.create_server(('', 0)) as taken:
        where = f'localhost:{taken.getsockname()[1]}'
        how = settings({**PLAIN, PLAIN_HOST: where, 'JEPA_JAX_PROCESS': '0'})
        with pytest.raises(ConfigError, match=f"'{where}': process 0 cannot listen there: Address"):
            distributed._check_coordinator(how)
        distributed._check_coordinator({**how, 'process_id': 1})
    distributed._check_coordinator(how)


WAITS = """
import os, signal, sys
from jepa_jax import distributed
distributed.CONNECT = int(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: None)
print('ready', flush=True)
with distributed.session():
    pass
"""


@pytest.mark.parametrize(
    ('patience', 'words'),
    [
        (2, 'interrupted: waited 2 s for the other processes, and nothing answers at JEPA_JAX_'),
        (100, 'interrupted: SIGTERM while waiting for the other processes; start the same command'),
    ],
)
def test_waiting_for_the_others_ends_in_one_line(patience, words):
    """Not by JAX's abort with a trace, and at once when it is told to end."""
    with socket.create_server(('', 0)) as free:
        where = f'127.0.0.1:{free.getsockname()[1]}'
    command = [sys.executable, '-c', WAITS, str(patience)]
    environment = {**os.environ, **PLAIN, PLAIN_HOST: where, 'JAX_PLATFORMS': 'cpu'}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == 'ready\n'
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            if patience > 2:  # again, if it did not listen yet
                process.send_signal(signal.SIGTERM)
            time.sleep(1)
        process.kill()
        said = process.stderr.read().splitlines()
    assert process.returncode == 75
    assert said[-1].startswith(words) and not any('stack trace' in line for line in said)


def test_jax_reads_the_clusters_of_our_launchers(monkeypatch):
    """What `settings` leaves to JAX is there: SLURM's and GKE's variables, as they set them."""
    from jax._src.clusters import SlurmCluster
    from jax._src.clusters.cloud_tpu_cluster import GkeTpuCluster

    for name, value in {**SLURM, **GKE}.items():
        monkeypatch.setenv(name, value)
    assert SlurmCluster.is_env_present()
    assert SlurmCluster.get_coordinator_address(1, None).startswith('node001:')
    assert (SlurmCluster.get_process_count(), SlurmCluster.get_process_id()) == (16, 3)
    assert (GkeTpuCluster.get_process_count(), GkeTpuCluster.get_process_id()) == (2, 0)


def launch(script: str, *arguments: str, **environment: str) -> list[str]:
    done = subprocess.run(
        ['bash', ROOT / 'launch' / script, *arguments], capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def commands_of(lines: list[str]) -> list[list[str]]:
    """The words of each command that a dry run prints over several lines."""
    whole = '\n'.join(line for line in lines if not line.startswith('#')).replace('\\\n', ' ')
    return [shlex.split(line) for line in whole.splitlines()]


def test_launchers_start_any_command():
    flags = 'embed', '--input', 'a b', '--out', 'x'
    local = launch('local.sh', '--dry-run', '2', *flags, PYTHON='python', JAX_PLATFORMS='cpu')
    for i, words in enumerate(commands_of(local), 1):
        assert words[:3] == ['env', 'JEPA_JAX_DISTRIBUTED=0', 'python']
        assert words[3:] == ['-m', 'jepa_jax', *flags, '--part', f'{i}/2']
    done = subprocess.run(
        ['bash', ROOT / 'launch/local.sh', '2', 'collect'], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith('collect runs as one process')
    outside = {name: v for name, v in os.environ.items() if not name.startswith('SLURM')}
    cloud = {'TPU': 'pod', 'ZONE': 'zone'}
    for script, argument, words in (
        ('slurm.sbatch', '--config=vitg', 'not within a job of SLURM: start it by sbatch'),
        ('tpu_pod.sh', 'creat', 'creat: allowed are create, queue, queued, install, run, logs,'),
    ):
        done = subprocess.run(
            ['bash', ROOT / 'launch' / script, argument], capture_output=True, text=True,
            env={**outside, **cloud},
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith(words)
        assert len(done.stderr.splitlines()) == 1
    words, *_ = commands_of(launch('slurm.sbatch', '--dry-run', 'collect', '--out', 'x'))
    assert words[2:5] == ['--nodes=1', '--ntasks=1', 'bash']
    assert words[8:] == ['python', '-m', 'jepa_jax', 'collect', '--out', 'x']
    run = '\n'.join(launch('tpu_pod.sh', '--dry-run', 'run', 'collect', '--out', 'x', **cloud))
    assert '--worker=0' in run
    assert 'JEPA_JAX_DISTRIBUTED=0 JAX_PLATFORMS=cpu ../venv/bin/python -m jepa_jax collect' in run
    for script in ('local.sh', 'slurm.sbatch', 'tpu_pod.sh'):
        said = '\n'.join(launch(script, '--help'))
        assert f'bash launch/{script} --help' in said and '#SBATCH' not in said


def test_the_queue_is_that_of_the_jobset():
    """What Kueue admits is what the JobSet asks for: its label, nodes and number of chips."""
    (jobs,) = yaml.safe_load_all((ROOT / 'launch/gke.yaml').read_text())
    text = (ROOT / 'launch/kueue.yaml').read_text()
    flavor, queue, local = yaml.safe_load_all(text)
    pods = jobs['spec']['replicatedJobs'][0]['template']['spec']
    pod = pods['template']['spec']
    assert pod['nodeSelector'] == flavor['spec']['nodeLabels']
    (group,) = queue['spec']['resourceGroups']
    (of,) = group['flavors']
    assert of['name'] == flavor['metadata']['name']
    asked = pod['containers'][0]['resources']['limits']
    assert [*asked] == group['coveredResources'] == [of['resources'][0]['name']]
    assert pods['parallelism'] * asked['google.com/tpu'] == of['resources'][0]['nominalQuota']
    assert local['spec']['clusterQueue'] == queue['metadata']['name']
    assert f'queue-name: {local["metadata"]["name"]}}}' in text
    assert '\n  name: jepa\n' in (ROOT / 'launch/gke.yaml').read_text()  # which `sed` extends


def test_launchers_print_what_they_would_run():
    config = '--config=configs/vitg.py'
    result = launch('local.sh', '--dry-run', '2', config, PYTHON='python', DEVICES_PER_PROCESS='4')
    for i, words in enumerate(commands_of(result)):
        assert words[:1] == ['env'] and words[2:6] == [
            'JEPA_JAX_PROCESSES=2', 'JAX_PLATFORMS=cpu', 'JAX_NUM_CPU_DEVICES=4',
            f'JEPA_JAX_PROCESS={i}',
        ]  # fmt: skip
        assert words[6:] == ['python', '-m', 'jepa_jax', 'train', config]
    words, *_, requeue = commands_of(
        launch('slurm.sbatch', '--dry-run', config, SLURM_CPUS_PER_TASK='10')
    )
    assert words[0] == 'srun' and words[2:6] == ['bash', '-c', 'TASK', 'jepa_jax-JOB.failed']
    assert words[6:] == [
        'env', 'JEPA_JAX_WORKERS=8', 'python', '-m', 'jepa_jax', 'train', config,
    ]  # fmt: skip
    one = launch('slurm.sbatch', '--dry-run', config, SLURM_CPUS_PER_TASK='1')
    assert 'JEPA_JAX_WORKERS=0' in commands_of(one)[0]
    assert 'requeue' in requeue
    cloud = {'TPU': 'pod', 'ZONE': 'zone', 'TYPE': 'v5p-128'}
    create = launch('tpu_pod.sh', '--dry-run', 'create', **cloud)
    assert 'tpu-vm create pod --zone=zone --accelerator-type=v5p-128' in ' '.join(
        commands_of(create)[0]
    )
    run = '\n'.join(launch('tpu_pod.sh', '--dry-run', 'run', config, **cloud))
    assert '--worker=all' in run
    assert f'JEPA_JAX_DISTRIBUTED=1 ../venv/bin/python -m jepa_jax train {config}' in run
    for action in ('logs', 'stop', 'delete', 'queue', 'queued', 'unqueue'):
        assert launch('tpu_pod.sh', '--dry-run', action, **cloud)[0].startswith('gcloud ')


# what is said of each task, and the highest status, as srun tells it
SRUN = """
while [[ $1 == --* ]]; do shift; done
worst=0
for i in 0 1; do
  SLURM_PROCID=$i "$@"; status=$?
  ((status <= worst)) || worst=$status
done
exit $worst
"""


def programs(folder, **scripts: str) -> str:
    """A PATH on which these stand before the real ones."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f'#!/bin/bash\n{script}\n')
        (folder / name).chmod(0o755)
    return f'{folder}:{os.environ["PATH"]}'


@pytest.mark.parametrize(
    ('statuses', 'status', 'again'), [('75 75', 0, True), ('1 75', 1, False), ('75 2', 2, False)]
)
def test_slurm_queues_no_error_again(tmp_path, statuses, status, again):
    """The peers of a process that failed end with 75, which srun tells, as it is higher."""
    python = f'set -- {statuses}; shift $SLURM_PROCID; exit $1'
    path = programs(tmp_path / 'bin', srun=SRUN, python=python, scontrol='echo "$@" > queued')
    (tmp_path / 'jepa_jax-7.failed').write_text('1\n')  # of an earlier try
    done = subprocess.run(
        ['bash', ROOT / 'launch/slurm.sbatch', '--config=vitg'], cwd=tmp_path, timeout=60,
        env={**os.environ, 'PATH': path, 'SLURM_JOB_ID': '7'}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert (tmp_path / 'queued').exists() == again
    assert ('a process failed' in done.stderr) != again


def test_a_pods_loop_takes_any_argument_and_ends(tmp_path):
    """Quotes included; where the others never come, each start waits and ends with 75."""
    gcloud = 'for last; do :; done; eval "${last#--command=}"; wait'
    path = programs(tmp_path / 'bin', gcloud=gcloud, sleep='')
    (tmp_path / 'jepa_jax').mkdir()
    (tmp_path / 'venv').mkdir()
    programs(tmp_path / 'venv/bin', python='printf "<%s>" "$@"; echo; exit 75')
    flags = '--config=vitg', '--config.name=it\'s a "b" \n$HOME &'
    done = subprocess.run(
        ['bash', ROOT / 'launch/tpu_pod.sh', 'run', *flags], cwd=tmp_path, timeout=60,
        env={**os.environ, 'PATH': path, 'TPU': 'pod', 'ZONE': 'zone'}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = ('-m', 'jepa_jax', 'train', *flags)
    line = ''.join(f'<{word}>' for word in words) + '\n'
    assert (tmp_path / 'train.log').read_text() == 5 * line


def test_a_failure_ends_locally_at_once(tmp_path):
    """What waits to kill those who do not end themselves does not outlive them."""
    path = programs(tmp_path / 'bin', python='sleep $JEPA_JAX_PROCESS; exit 2')
    began = time.monotonic()
    done = subprocess.run(
        ['bash', ROOT / 'launch/local.sh', '2', '--config=tiny'], capture_output=True, timeout=60,
        env={**os.environ, 'PATH': path, 'PYTHON': 'python', 'PORT': '1', 'GRACE': '20'},
    )  # fmt: skip
    assert done.returncode == 2 and time.monotonic() - began < 15


@pytest.mark.parametrize(('python', 'status'), [('exec sleep 60', 2), ('kill -KILL $$', 75)])
def test_several_killed_at_once_end_locally(tmp_path, python, status):
    """Those who do not end themselves in time, and by another's hand: bash tells one of them."""
    first = 'if [[ $JEPA_JAX_PROCESS == 0 ]]; then exit 2; fi\n' if status == 2 else ''
    path = programs(tmp_path / 'bin', python=first + python)
    with subprocess.Popen(
        ['bash', ROOT / 'launch/local.sh', '4', '--config=tiny'], stderr=subprocess.DEVNULL,
        env={**os.environ, 'PATH': path, 'PYTHON': 'python', 'PORT': '1', 'GRACE': '1'},
    ) as launcher:  # fmt: skip
        try:
            assert launcher.wait(15) == status
        finally:
            launcher.kill()


FSDP = 'mesh.fsdp=4'


def losses(workdir) -> dict[int, float]:
    return {row['step']: row['loss'] for row in metrics.read(workdir)}


def assert_same_losses(ours: dict[int, float], theirs: dict[int, float], steps: range) -> None:
    worst = max(abs(ours[step] / theirs[step] - 1) for step in steps)
    print(f'largest relative difference of a loss over {steps}: {worst:.1e}')
    assert worst < 1e-6, f'{worst} over {steps}'


def resume(config, workdir, devices: int, fsdp: int) -> int:
    """What `train` does, on so many of this process's devices; the step that it resumed from."""
    mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
    objective = build.masked_video(config)
    optimizer = optim.build(config.optim, objective)
    workdir.mkdir(exist_ok=True)
    stored = dataclasses.asdict(config)
    with (
        jax.set_mesh(mesh),
        VideoStream(config, None, devices=devices, process_index=0, process_count=1) as stream,
        checkpoint.Checkpoints(workdir / 'checkpoints', keep=9) as checkpoints,
    ):
        origin = origin_of(config, checkpoints)
        state, _ = start.initial_state(objective, optimizer, config, mesh, origin)
        first = int(state.step)
        with metrics.Metrics(
            workdir, start_step=first, total_steps=config.optim.steps, terminal=False
        ) as written:
            loop.fit(
                objective, optimizer, state, {}, stream, config, known={'config': stored},
                mesh=mesh, workdir=workdir, checkpoints=checkpoints, metrics=written,
                failures=FailureLog(config.data.max_failure_share),
                workload=start.workload(config, stream),
            )  # fmt: skip
    return first


@pytest.mark.slow
def test_fewer_and_fewer_devices(runs, tmp_path):
    """A run on 8 devices is resumed on 4, and that one on 2: ten steps and more as
    unbroken on 8."""
    config = cli.load(f'{runs.folder / "small.py"}:{runs.videos}')
    config.optim.steps, config.checkpoints.every, config.logging.health_every = 30, 10, 0
    eight, four, two = (tmp_path / name for name in ('eight', 'four', 'two'))
    assert resume(config, eight, 8, fsdp=4) == 0
    copy_until(10, eight, four)
    assert resume(config, four, 4, fsdp=2) == 10
    copy_until(20, four, two)
    assert resume(config, two, 2, fsdp=2) == 20
    unbroken = losses(eight)
    assert_same_losses(losses(four), unbroken, range(11, 31))
    assert_same_losses(losses(two), unbroken, range(21, 31))
    assert losses(four) != unbroken  # to rounding: sums over other numbers of devices


class Pair:
    """Two processes of four devices under launch/local.sh."""

    def __init__(self, runs, workdir):
        # of a cached program process 0 alone would have a copy, and Gloo waits 30 s for the other
        flags = [*runs.command(workdir, FSDP)[3:], '--no-compilation-cache']
        environment = {**runs.environment, 'PYTHON': sys.executable, 'DEVICES_PER_PROCESS': '4'}
        self._path = runs.folder / f'{workdir.name}-{time.monotonic_ns()}.log'
        with self._path.open('wb') as log:
            self.launcher = subprocess.Popen(
                ['bash', ROOT / 'launch/local.sh', '2', *flags], cwd=runs.folder,
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def until(self, met) -> None:
        end = time.monotonic() + 600
        while not met():
            assert self.launcher.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)

    def processes(self) -> list[int]:
        """Of the run, in the order of their index."""
        result = [pid for pid, parent in parents().items() if parent == self.launcher.pid]
        named = {}
        for pid in result:
            with open(f'/proc/{pid}/environ', 'rb') as file:
                values = dict(v.split(b'=', 1) for v in file.read().split(b'\0') if b'=' in v)
            if b'JEPA_JAX_PROCESS' in values:
                named[int(values[b'JEPA_JAX_PROCESS'])] = pid
        return [named[i] for i in sorted(named)]

    def end(self, seconds: float = 600) -> int:
        return self.launcher.wait(seconds)

    def log(self) -> str:
        return self._path.read_text(errors='replace')


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='reads /proc')
def test_two_processes_are_one_run(runs):
    """Resumed by two, killed, terminated, resumed, by fewer: one story, as starts are dear."""
    one, two = runs.workdir(), runs.workdir()
    alone = {**runs.environment, 'JAX_NUM_CPU_DEVICES': '8'}
    done = subprocess.run(
        runs.command(one, FSDP, 'checkpoints.keep=4'), cwd=runs.folder, env=alone,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    unbroken = losses(one)
    assert sorted(unbroken) == list(range(1, STEPS + 1))

    more = runs.workdir()  # resumed from its step 4 on two processes
    copy_until(4, one, more)
    pair = Pair(runs, more)
    assert pair.end() == 0, pair.log()
    assert 'resumes from step 4' in pair.log()
    assert_same_losses(losses(more), unbroken, range(5, STEPS + 1))

    pair = Pair(runs, two)  # one of them is killed: the other ends by itself, and says why
    pair.until(lambda: lines(two) > 0)
    processes = pair.processes()
    # at once: if it came to the next save, the other would wait there for its share
    pair.until(lambda: len(checkpoint.complete_steps(two / 'checkpoints')) > 0)
    os.kill(processes[1], signal.SIGKILL)
    # mostly at once, by an error of the collective; where that waits on, JAX's heartbeat ends the
    # process after distributed.SILENCE seconds, and the launcher says why
    assert pair.end(SILENCE + 60) == 75, pair.log()
    words = 'interrupted: process 0 of 2 lost another process', 'a process was killed; start again'
    assert any(each in pair.log() for each in words), pair.log()
    assert not set(processes) & parents().keys()

    pair = Pair(runs, two)  # SIGTERM to one of them: both save the same step and end
    pair.until(lambda: f'/{STEPS}  loss ' in pair.log() and lines(two) % 4 == 1)  # at its steps
    os.kill(pair.processes()[1], signal.SIGTERM)
    assert pair.end() == 75, pair.log()
    saved = checkpoint.complete_steps(two / 'checkpoints')[-1]
    assert f'interrupted: SIGTERM at step {saved} of {STEPS}, which is saved' in pair.log()

    fewer = runs.workdir()  # on one process of two devices
    shutil.copytree(two, fewer)
    pair = Pair(runs, two)
    assert pair.end() == 0, pair.log()
    assert_same_losses(losses(two), unbroken, range(1, STEPS + 1))
    report = json.loads((two / 'report.json').read_text())
    assert (report['processes'], report['devices']) == (2, 8)

    done = subprocess.run(
        runs.command(fewer, 'mesh.fsdp=2'), cwd=runs.folder,
        env={**runs.environment, 'JAX_NUM_CPU_DEVICES': '2'}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f'resumes from step {saved}' in done.stderr
    assert_same_losses(losses(fewer), unbroken, range(saved + 1, STEPS + 1))
