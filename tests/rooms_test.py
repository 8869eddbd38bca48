"""Dependencies point downwards: the package's docstring is the order."""

import ast
import pathlib
import re

import s8bqat_jax

ROOMS = re.findall(r'^  (\w+)  +\S', s8bqat_jax.__doc__, re.MULTILINE)
PACKAGE = pathlib.Path(s8bqat_jax.__file__).parent


def _imported(path):
  """Rooms that a module imports from, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
    names = []
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: a relative import'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    for name in names:
      package, _, rest = name.partition('.')
      assert package != 'experiments', f'{path} imports {name}'
      if package == 's8bqat_jax' and rest:
        yield rest.split('.')[0]


def test_every_room_is_listed():
  rooms = {p.parent.name for p in PACKAGE.glob('*/__init__.py')}
  rooms |= {p.stem for p in PACKAGE.glob('*.py')} - {'__init__'}
  assert rooms == set(ROOMS) and len(ROOMS) == len(set(ROOMS))


def test_rooms_import_from_rooms_below_only():
  for path in set(PACKAGE.glob('**/*.py')) - {PACKAGE / '__init__.py'}:
    room = path.relative_to(PACKAGE).with_suffix('').parts[0]
    allowed = ROOMS[ROOMS.index(room) :]
    assert set(_imported(path)) <= set(allowed), path
