"""Builds the wheel, installs it apart from the checkout and imports it.

Part of `make lint`, not of the test suite: building needs the package index.
"""

import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
_IMPORT = """
import importlib, pathlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import s8bqat_jax
home = pathlib.Path(s8bqat_jax.__file__).parent
assert home.is_relative_to(sys.argv[1]), f'imported {home}, not the wheel'
assert (home / 'py.typed').exists(), 'py.typed is missing'
rooms = [m.name for m in pkgutil.iter_modules([str(home)])]
for room in rooms:
  importlib.import_module(f's8bqat_jax.{room}')
print(f's8bqat_jax {s8bqat_jax.__version__}: the wheel imports', *rooms)
"""


def main():
  with tempfile.TemporaryDirectory() as folder:
    run = lambda *args: subprocess.run(
      [sys.executable, *args], check=True, cwd=folder
    )
    run('-m', 'build', '--wheel', '--outdir', folder, str(ROOT))
    (wheel,) = pathlib.Path(folder).glob('*.whl')
    site = f'{folder}/site'
    run('-m', 'pip', 'install', '-q', '--no-deps', '--target', site, str(wheel))
    run('-I', '-c', _IMPORT, site)


if __name__ == '__main__':
  main()
