"""What a person watches: lines at once, a bar that a log file can bear, and a TensorFlow that starts quietly."""

import os
import subprocess
import sys

import pytest

from boardrec import progress


class Terminal:
    """A standard error that says it is a terminal."""

    def __init__(self):
        self.text = ''

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The bar's clock; clock.now is in seconds."""
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr('tqdm.std.time', clock)
    return clock


def test_say_prints_one_line_to_standard_output(capsys):
    progress.say('3 records')
    assert capsys.readouterr() == ('3 records\n', '')


def test_say_reaches_a_pipe_at_once():
    code = 'import os; from boardrec import progress; progress.say("3 records"); os._exit(0)'  # no flush at exit
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ('3 records\n', '')


def test_what_was_done_before_counts_for_no_rate(capsys, clock):
    with progress.bar('epoch 1', total=1000, unit='images', initial=900) as bar:
        clock.now += 20
        bar.update(20)
    assert '| 920/1000 [00:20<01:20,  1.00 images/s]' in capsys.readouterr().err


def test_a_log_file_gets_whole_lines_about_every_ten_seconds(capsys, clock):
    with progress.bar('converting', total=100, unit='images') as bar:
        for _ in range(100):
            clock.now += 1
            bar.update(1)
    out, err = capsys.readouterr()
    lines = err.split('\n')
    assert out == ''
    assert '\r' not in err
    assert lines.pop() == ''
    assert 8 <= len(lines) <= 12
    assert all(line.startswith('converting: ') for line in lines)
    assert ' 50/100 ' in err
    assert ' images/s' in err


def test_a_short_job_leaves_nothing_in_a_log_file(capsys, clock):
    with progress.bar('converting', total=9, unit='images') as bar:
        for _ in range(9):
            clock.now += 1
            bar.update(1)
    assert capsys.readouterr() == ('', '')


def test_a_terminal_sees_the_bar_redrawn_and_then_removed(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    with progress.bar('converting', total=4, unit='images') as bar:
        for _ in range(4):
            clock.now += 1
            bar.update(1)
    assert '\n' not in terminal.text
    assert '2/4' in terminal.text
    assert terminal.text.endswith('\r')
    assert terminal.text.rstrip('\r').rpartition('\r')[2].strip() == '', 'blanks over the last state'


STAND_IN = '''
import os
os.write(2, b"note of a C++ library\\n")
{failure}

class config:
    @staticmethod
    def list_physical_devices():
        os.write(2, b"note of a GPU library\\n")

class get_logger:
    @staticmethod
    def setLevel(level):
        pass
'''


@pytest.fixture
def import_stand_in(tmp_path):
    """A function that runs import_tensorflow() on a stand-in for TensorFlow that writes notes; returns the process."""
    def run(failure='', code='', **environment):
        (tmp_path / 'tensorflow.py').write_text(STAND_IN.format(failure=failure))
        code = f'import os, sys; from boardrec import progress; progress.import_tensorflow(); {code}'
        path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep)
        outer = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
        return subprocess.run([sys.executable, '-c', code], env={**outer, 'PYTHONPATH': path, **environment},
                              capture_output=True, text=True, check=False)
    return run


def test_tensorflow_starts_without_its_notes_and_standard_error_works_afterwards(import_stand_in):
    done = import_stand_in(code='os.write(2, b"later\\n"); print(os.environ["TF_CPP_MIN_LOG_LEVEL"])')
    assert (done.returncode, done.stdout, done.stderr) == (0, '3\n', 'later\n')


def test_a_tensorflow_that_does_not_start_shows_its_notes(import_stand_in):
    done = import_stand_in(failure='raise ImportError("libcudart.so.12")')
    assert done.returncode == 1
    assert done.stderr.startswith('note of a C++ library\n')
    assert 'ImportError: libcudart.so.12' in done.stderr


def test_a_log_level_that_the_user_chose_stays(import_stand_in):
    done = import_stand_in(code='print(os.environ["TF_CPP_MIN_LOG_LEVEL"])', TF_CPP_MIN_LOG_LEVEL='0')
    assert done.stdout == '0\n'
