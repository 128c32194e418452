"""The command line: what it takes, what it refuses in one sentence, and the exit status of each end."""

import dataclasses
import errno
import os
import subprocess
import sys

from absl import flags
import pytest

from boardrec import cli
from boardrec.config import ConvertConfig, TrainConfig, UserError

REQUIRED = ['--records=RECORDS', '--run_dir=RUN']


def parse(*args):
    return cli.parse(TrainConfig, [*REQUIRED, *args])


def test_values_arrive_with_their_types_and_the_last_one_wins():
    settings = parse('--epochs=3', '--learning_rate=1e-5', '--image_size=96x128', '--epochs=4')
    assert settings == TrainConfig(
        records='RECORDS', run_dir='RUN', epochs=4, learning_rate=1e-5, image_size='96x128')


@pytest.mark.parametrize(('arg', 'value'), [
    ('--overwrite', True), ('--overwrite=true', True), ('--nooverwrite', False), ('--overwrite=false', False)])
def test_a_switch_may_be_written_in_each_usual_way(arg, value):
    assert cli.parse(ConvertConfig, ['--input_dir=a', '--output_dir=b', arg]).overwrite is value


def test_the_settings_of_cached_features():
    settings = parse('--backbone=resnet50', '--feature_cache=memory', '--cached_views=2', '--noflip_vertical')
    assert (settings.backbone, settings.feature_cache, settings.cached_views) == ('resnet50', 'memory', 2)
    assert settings.flip_horizontal is True and settings.flip_vertical is False
    assert '--flip_vertical=false\n' in cli.to_flagfile(settings)
    with pytest.raises(UserError, match='^--cached_views=4: must be at most 1, or views'):
        parse('--cached_views=4', '--noflip_vertical', '--flip_horizontal=false', '--crop_area=1', '--brightness=0',
              '--contrast=0')


@pytest.mark.parametrize(('args', 'match'), [
    (['--epoch=3'], r"Unknown command line flag 'epoch'.*--help lists"),
    (['--epochs=three'], r'--epochs=three.*--help lists'),
    (['--epochs=1.5'], r'--epochs=1\.5'),
    (['--epochs='], r'--epochs='),
    (['--epochs=0'], r'^--epochs=0: must be at least 1\.$'),
    (['RECORDS'], r"^'RECORDS' is not a flag: write --name=value"),
    (['--', '--epochs=3'], r"'--epochs=3' is not a flag"),
    (['--flagfile=missing.flags'], r'missing\.flags'),
    (['--run_dir='], r'^--run_dir is missing: folder for this run'),
])
def test_a_mistake_is_one_sentence(args, match):
    with pytest.raises(UserError, match=match) as caught:
        parse(*args)
    assert '\n' not in str(caught.value)


def test_a_missing_flag_is_told_with_what_it_is_for():
    with pytest.raises(UserError, match=r'^--records is missing: folder that tools/make_records\.py wrote'):
        cli.parse(TrainConfig, ['--run_dir=RUN'])


def test_a_flag_file_is_read_where_it_stands(tmp_path):
    (tmp_path / 'inner.flags').write_text('--dropout=0.25\n')
    path = tmp_path / 'a.flags'
    path.write_text(f'# a comment\n\n--epochs=3\n--batch_size=8\n--flagfile={tmp_path / "inner.flags"}\n')
    settings = parse('--epochs=2', f'--flagfile={path}', '--batch_size=16')
    assert (settings.epochs, settings.batch_size, settings.dropout) == (3, 16, 0.25)


@pytest.mark.parametrize('text', ['  # a comment after spaces\n', 'epochs=3\n'])
def test_a_line_of_a_flag_file_that_is_no_flag_is_refused(tmp_path, text):
    path = tmp_path / 'a.flags'
    path.write_text(text)
    with pytest.raises(UserError, match='in a flag file begin each line with --'):
        parse(f'--flagfile={path}')


@pytest.mark.parametrize('content', [b'--epochs=3\n\xff\xfe\n', None])
def test_a_flag_file_that_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / 'a.flags'
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r'a\.flags'):
        parse(f'--flagfile={path}')


def test_parsing_leaves_absls_global_flags_alone():
    before = set(flags.FLAGS)
    parse('--epochs=3')
    assert set(flags.FLAGS) == before
    assert 'epochs' not in before


def test_usage_lists_each_setting_with_its_default_its_choices_and_its_purpose():
    text = cli.usage(TrainConfig, 'train', '  Trains a classifier.  ')
    assert text.startswith('Trains a classifier.\n')
    words = ' '.join(text.split())
    for field in dataclasses.fields(TrainConfig):
        assert f'--{field.name} (' in words
        assert ' '.join(field.metadata['help'].split()) in words
    assert '--records (required)' in words
    assert '--optimizer (default adamw; adam|adamw|sgd)' in words
    assert '--gpus (default empty)' in words
    assert '--overwrite (default false)' in ' '.join(cli.usage(ConvertConfig, 'convert', '').split())


def run(main, *args, config_class=TrainConfig):
    """The exit status of cli.run, None if it returned."""
    try:
        cli.run(main, config_class, ['train', *args])
    except SystemExit as end:
        return end.code
    return None


def test_a_command_gets_its_settings_and_returns(capsys):
    seen = []
    assert run(seen.append, *REQUIRED, '--epochs=3') in (None, 0)
    assert seen == [parse('--epochs=3')]
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('arg', ['--help', '-h', '-help'])
def test_help_goes_to_standard_output_and_does_nothing(arg, capsys):
    def main(config):
        """Trains a classifier."""
        raise AssertionError

    assert run(main, '--nonsense', arg) == 0
    out, err = capsys.readouterr()
    assert out.startswith('Trains a classifier.\n')
    assert '--learning_rate  (default 0.0001)' in out
    assert err == ''


def raiser(error):
    def main(config):
        raise error
    return main


@pytest.mark.parametrize(('error', 'sentence'), [
    (UserError('--records=X: there is no such folder.'), '--records=X: there is no such folder.'),
    (OSError(errno.ENOSPC, 'No space left on device', 'RUN/history.csv'),
     'RUN/history.csv: No space left on device; make room there and run the same command again.'),
    (PermissionError(errno.EACCES, 'Permission denied', 'RUN'),
     'RUN: Permission denied; check the path and its permissions.'),
    (OSError(errno.EIO, 'Input/output error'), 'a file: Input/output error; check the path and its permissions.'),
])
def test_what_the_user_can_mend_is_one_line_and_status_2(error, sentence, capsys):
    assert run(raiser(error), *REQUIRED) == 2
    assert capsys.readouterr() == ('', f'error: {sentence}\n')


def test_a_bad_flag_is_one_line_and_status_2(capsys):
    assert run(raiser(AssertionError()), *REQUIRED, '--epochs=none') == 2
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert err.startswith('error: ')


def test_ctrl_c_is_status_130(capsys):
    assert run(raiser(KeyboardInterrupt()), *REQUIRED) == 130
    assert capsys.readouterr() == ('', 'Interrupted.\n')
    with pytest.raises(SystemExit, match='130'):
        cli.run(raiser(KeyboardInterrupt()), TrainConfig, ['train', *REQUIRED], resumes=True)
    assert capsys.readouterr() == ('', 'Interrupted; the same command goes on from what is complete.\n')
    error = KeyboardInterrupt()
    error.add_note('2 rows are written')
    with pytest.raises(SystemExit, match='130'):
        cli.run(raiser(error), TrainConfig, ['train', *REQUIRED], resumes=True)
    assert capsys.readouterr() == ('', 'Interrupted; 2 rows are written.\n')


def test_what_is_known_on_the_way_out_follows_the_mistake(capsys):
    error = UserError('--server=S: away.')
    error.add_note('2 rows are written')
    assert run(raiser(error), *REQUIRED) == 2
    assert capsys.readouterr() == ('', 'error: --server=S: away. 2 rows are written.\n')


def test_ctrl_c_once_all_is_done_changes_nothing():
    script = ("import atexit, os, signal, sys; from boardrec import cli; from boardrec.config import PredictConfig\n"
              "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
              "cli.run(lambda _: None, PredictConfig, ['x', '--run_dir=r', '--images=i', '--output=o'])")
    done = subprocess.run([sys.executable, '-c', script], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b'')


def test_a_reader_that_wants_no_more_gets_no_traceback():
    """As in `make_records.py ... | head -1`: the reading end is closed before all is written."""
    script = ("from boardrec import cli, progress; from boardrec.config import PredictConfig\n"
              "def main(config):\n"
              "    for number in range(100_000):\n"
              "        progress.say(f'line {number}')\n"
              "cli.run(main, PredictConfig, ['x', '--run_dir=r', '--images=i', '--output=o'])")
    with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'line 0\n'
        process.stdout.close()
        assert process.stderr.read() == b''
    assert process.returncode == 141


def test_a_reader_of_the_help_that_wants_no_more_gets_no_traceback():
    script = ("import sys; from boardrec import cli; from boardrec.config import TrainConfig\n"
              "sys.stdin.read()\n"
              "cli.run(print, TrainConfig, ['x', '--help'])")
    with subprocess.Popen([sys.executable, '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b''
    assert process.returncode == 141


@pytest.mark.parametrize('error', [ValueError('a bug'), TypeError('a bug'), OSError(errno.EBADF, 'Bad descriptor')])
def test_what_nobody_foresaw_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught:
        cli.run(raiser(error), TrainConfig, ['train', *REQUIRED])
    assert caught.value is error


def test_settings_become_a_flag_file_and_settings_again(tmp_path):
    settings = parse('--epochs=3', '--learning_rate=3e-7', '--positive_class=a b')
    text = cli.to_flagfile(settings)
    names = [f'--{field.name}' for field in dataclasses.fields(TrainConfig)]
    assert [line.partition('=')[0] for line in text.splitlines()] == names
    (tmp_path / 'run.flags').write_text(text)
    assert cli.read_flagfile(TrainConfig, tmp_path / 'run.flags') == settings
    assert cli.read_flagfile(TrainConfig, os.fspath(tmp_path / 'run.flags')) == settings


def test_a_switch_becomes_a_flag_file_and_a_switch_again(tmp_path):
    settings = ConvertConfig(input_dir='a', output_dir='b', overwrite=True)
    assert '--overwrite=true\n' in cli.to_flagfile(settings)
    (tmp_path / 'a.flags').write_text(cli.to_flagfile(settings))
    assert cli.read_flagfile(ConvertConfig, tmp_path / 'a.flags') == settings
