"""Install with `pip install .`; extras: torch hf llm robot sim tpu cuda tensorboard wandb
mlflow trackio bench test.

configs/ and tools/ are installed within the package, as jepa_jax.configs and jepa_jax.tools.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'jepa_jax/__init__.py').read_text()).group(1)

setup(
    name='jepa_jax',
    version=VERSION,
    description='V-JEPA 2 in JAX: pretrain, probe, plan, and carry weights to PyTorch and back',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=[
        *find_packages(include=['jepa_jax', 'jepa_jax.*']),
        'jepa_jax.configs',
        'jepa_jax.configs.eval',
        'jepa_jax.configs.qa',
        'jepa_jax.tools',
    ],
    package_dir={
        'jepa_jax.configs': 'configs',
        'jepa_jax.configs.eval': 'configs/eval',
        'jepa_jax.configs.qa': 'configs/qa',
        'jepa_jax.tools': 'tools',
    },
    package_data={'jepa_jax': ['bundled/*'], 'jepa_jax.tools': ['*.sh']},
    python_requires='>=3.11',
    install_requires=[
        'jax>=0.10,<0.12',
        'flax>=0.12.8',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'grain>=0.2.18',
        'einops',
        'tensorflow-datasets>=4.9.9',
        'ml_collections>=1.1',
        'numpy>=2',
        'ml_dtypes',
        'absl-py',
        'av>=17.1',
        'pillow',
        'scipy',
        'scikit-learn',
        'matplotlib',
        'tqdm',
    ],
    extras_require={
        'torch': ['torch>=2.6'],  # .pt files from before PyTorch 1.6; newer ones need nothing
        'hf': ['safetensors', 'huggingface_hub'],
        'llm': ['tokenizers>=0.22', 'safetensors'],  # answers of a language model
        'sim': ['mujoco>=3.8'],  # the simulated robot; pictures need EGL, see jepa_jax/sims
        'robot': ['h5py', 'pyarrow'],  # DROID and LeRobot recordings
        'tpu': ['jax[tpu]'],
        'cuda': ['jax[cuda13]'],
        'tensorboard': ['tensorboardX'],
        'wandb': ['wandb>=0.16'],  # logging.sinks, each of the three
        'mlflow': ['mlflow>=2.11'],
        'trackio': ['trackio'],
        'bench': ['eva-decord', 'psutil'],
        'test': [
            # a CPU build where one is offered; other releases bring CUDA packages of several GB
            'torch==2.13.0',
            'transformers',
            'safetensors',
            'tokenizers>=0.22',
            'opencv-python-headless',
            'h5py',
            'mujoco>=3.8',
            'pyarrow',
            'tensorboardX',
            'jupytext',
            'nbclient',
            'ipykernel',
            'moto[s3]',  # and what its server needs: a bucket for tests
            'flask',
            'flask-cors',
            'gcp-storage-emulator',
            'pytest',
            'pytest-xdist',
            'ruff',
        ],
    },
    entry_points={
        'console_scripts': ['jepa=jepa_jax.commands:main', 'jepa-train=jepa_jax.train:main']
    },
    license_files=['LICENSE'],
)
