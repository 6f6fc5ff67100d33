"""Objects of a bucket, `gs://BUCKET/PREFIX` or `s3://BUCKET/PREFIX`: listed, read and written
whole, removed. Through TensorStore, which Orbax brings.

Credentials of s3: AWS_ACCESS_KEY_ID and its like, a profile of ~/.aws (AWS_PROFILE, or `default`),
or the role of the machine or container; AWS_REGION and AWS_ENDPOINT_URL as in other programs. Of
gs: GOOGLE_APPLICATION_CREDENTIALS, what `gcloud auth application-default login` left, or the
machine's account; TENSORSTORE_GCS_HTTP_URL for an emulator.
"""

from __future__ import annotations

import configparser
import http.client
import os
import re
from collections.abc import Mapping
from typing import Any

from jepa_jax.errors import BucketError, ConfigError

DRIVERS = {'gs': 'gcs', 's3': 's3'}
ROLE, NOBODY = {'type': 'imds'}, {'type': 'anonymous'}  # credentials: the machine's own; none
_ADVICE = '; asked without credentials: set AWS_ACCESS_KEY_ID and its like, or `aws configure`'
_METADATA, _TOKEN = '169.254.169.254', 'X-aws-ec2-metadata-token-ttl-seconds'
_KEYS = {'aws_access_key_id', 'role_arn', 'credential_process'}  # a profile has one of them
ANSWER = 20.0  # seconds within which a bucket has to answer at the start
_TRANSFER = 1800.0  # likewise for one object later
# of one request that failed; later a store may be away for a while
_RETRIES = {True: {'max_retries': 3, 'max_delay': '1s'}, False: {'max_retries': 8}}


def is_url(path: Any) -> bool:
    """Whether a path is of a bucket."""
    return str(path).partition('://')[0] in DRIVERS and '://' in str(path)


class Bucket:
    """All objects below one prefix; their names are relative to it, `checkpoints/20/manifest.json`.

    Every method raises BucketError.
    """

    def __init__(self, url: str, single: bool = False):
        """single: the address is that of one object, whose name here is empty.

        Raises ConfigError: no such address can be.
        """
        self.url = url.rstrip('/')
        name = '[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]'
        match = re.fullmatch(rf'(gs|s3)://({name})((?:/[^/]+)+)', self.url)
        if not match or {'.', '..'} & set(match[3].split('/')):
            raise ConfigError(
                f'{url}: must be gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, BUCKET of lower-case '
                'letters, digits and hyphens'
            )
        self._spec = {
            'driver': DRIVERS[match[1]],
            'bucket': match[2],
            'path': match[3][1:] + ('' if single else '/'),
            **(_amazon(os.environ) if match[1] == 's3' else {}),
        }
        self._stores: dict[bool, Any] = {}

    def check(self) -> None:
        """Asks whether it is there and answers, within ANSWER seconds."""
        self._call('list', ANSWER, quick=True)

    def names(self) -> list[str]:
        """Of all objects, sorted; those that stand for a folder left out."""
        names = (key.decode() for key in self._call('list', _TRANSFER))
        return sorted(name for name in names if name and not name.endswith('/'))

    def read(self, name: str, unlike: bytes = b'') -> tuple[bytes | None, bytes]:
        """The content of an object, None where there is none, and which of its states that is.

        unlike: a state from `read`; the content is None, too, if that is its state still.
        """
        result = self._call('read', _TRANSFER, name, if_not_equal=unlike or None)
        content = result.value if result.state == 'value' else None
        return content, result.stamp.generation

    def write(self, name: str, content: bytes | None, over: bytes | None = None) -> bytes:
        """Writes an object at once, or removes it if content is None.

        over: a state from `read`, the only one that may be replaced.

        Returns:
          The new state; empty if the object was in another one than `over`.
        """
        return self._call('write', _TRANSFER, name, content, if_equal=over).generation

    def _store(self, quick: bool) -> Any:
        import tensorstore as ts

        if self._spec.get('aws_credentials') == ROLE and not self._stores and not _has_role():
            self._spec['aws_credentials'] = NOBODY  # public buckets can be read all the same
        if quick not in self._stores:
            retries = ts.Context({f'{self._spec["driver"]}_request_retries': _RETRIES[quick]})
            self._stores[quick] = ts.KvStore.open(self._spec, context=retries).result(
                timeout=ANSWER
            )
        return self._stores[quick]

    def _call(self, method: str, seconds: float, *args: Any, quick: bool = False, **kwargs: Any):
        try:
            return getattr(self._store(quick), method)(*args, **kwargs).result(timeout=seconds)
        except TimeoutError as error:
            raise BucketError(f'{self.url}: no answer within {seconds:.0f} s') from error
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:  # all of its own
            more = _ADVICE if self._spec.get('aws_credentials') == NOBODY else ''
            raise BucketError(f'{self.url}: {_short(error)}{more}') from error


def _amazon(environment: Mapping[str, str]) -> dict[str, Any]:
    """What a TensorStore of S3 is told beside bucket and path: its own search for credentials finds
    no profile that is not named, and says on the terminal what it looks for.

    Raises ConfigError: a file that cannot be understood, or the profile that is named in neither;
      unless the environment has the keys themselves.
    """
    folder = os.path.expanduser('~/.aws')
    places = {
        'credentials_file': environment.get('AWS_SHARED_CREDENTIALS_FILE', f'{folder}/credentials'),
        'config_file': environment.get('AWS_CONFIG_FILE', f'{folder}/config'),
    }
    there = {name: path for name, path in places.items() if os.path.exists(path)}
    files = configparser.ConfigParser(interpolation=None, strict=False)
    own = 'AWS_ACCESS_KEY_ID' in environment
    try:
        files.read(there.values())
    except (configparser.Error, UnicodeDecodeError) as error:
        if not own:
            raise ConfigError(f'credentials of S3: {" ".join(str(error).split())}') from error
    named = environment.get('AWS_PROFILE', 'default')
    sections = [name for name in (named, f'profile {named}') if name in files]
    if 'AWS_PROFILE' in environment and not sections and not own:
        known = ', '.join(name.removeprefix('profile ') for name in files.sections()) or 'none'
        raise ConfigError(
            f"AWS_PROFILE = '{named}': no such profile in {' and '.join(places.values())}; "
            f'profiles there: {known}'
        )
    profile = {key: value for name in sections for key, value in files[name].items()}
    spec: dict[str, Any] = {}
    if endpoint := environment.get('AWS_ENDPOINT_URL_S3') or environment.get('AWS_ENDPOINT_URL'):
        spec = {'endpoint': endpoint, 'aws_region': 'us-east-1'}
    regions = environment.get('AWS_REGION'), environment.get('AWS_DEFAULT_REGION')
    if region := regions[0] or regions[1] or profile.get('region'):
        spec['aws_region'] = region
    absent = dict.fromkeys(places, os.devnull)
    if own:
        kind = {'type': 'environment'}
    elif _KEYS & profile.keys():
        kind = {'type': 'profile', 'profile': named} | absent | there
    elif any(name.startswith('AWS_CONTAINER_CREDENTIALS_') for name in environment):
        kind = {'type': 'ecs'}
    elif 'AWS_WEB_IDENTITY_TOKEN_FILE' in environment:
        kind = {'type': 'default', 'profile': named}
    else:
        kind = ROLE
    return spec | {'aws_credentials': kind}


def _has_role() -> bool:
    """Whether a machine of Amazon's says who it is: asked first, as TensorStore tells the terminal
    that it does not find out."""
    asked = http.client.HTTPConnection(_METADATA, timeout=1)
    try:
        asked.request('PUT', '/latest/api/token', headers={_TOKEN: '60'})
        return asked.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


def _short(error: Exception) -> str:
    """What TensorStore says before it quotes the answer: `NOT_FOUND: NoSuchBucket: ...`."""
    text = re.sub(r'^Error opening .*?: (?=[A-Z_]+: )', '', ' '.join(str(error).split()))
    return text.partition(' [')[0][:300] or type(error).__name__
