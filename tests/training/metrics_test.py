"""Metric files survive a torn line and a resumed run."""

from s8bqat_jax import training


def test_resume_drops_later_records_and_torn_lines(tmp_path):
  writer = training.MetricWriter(tmp_path)
  for step in (10, 20, 30):
    writer.write(step, {'loss': step / 10})
  writer.close()
  with writer.path.open('a') as f:
    f.write('{"step": 40, "lo')
  resumed = training.MetricWriter(tmp_path, start_step=20)
  resumed.write(30, {'loss': 9})
  resumed.close()
  records = training.read_metrics(writer.path.parent)
  assert records == [
    {'step': 10, 'loss': 1.0},
    {'step': 20, 'loss': 2.0},
    {'step': 30, 'loss': 9.0},
  ]


def test_no_file_means_no_records(tmp_path):
  assert training.read_metrics(tmp_path) == []
