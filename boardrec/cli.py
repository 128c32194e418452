"""Settings dataclasses from and to the command line and flag files. The only module that imports absl.flags.

Each command has flags of its own, not absl's global ones, so that importing a command defines nothing.
"""

import atexit
from collections.abc import Callable, Sequence
import dataclasses
import errno
import inspect
import os
import signal
import sys
import textwrap
from typing import Any, TypeVar

from absl import flags

from boardrec.config import UserError

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it; SIGTERM gives 143
CLOSED_PIPE = 141  # 128 + SIGPIPE

Config = TypeVar('Config')


class Interrupted(KeyboardInterrupt):
    """A signal ended a command that had time to save what it had."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def run(main: Callable[[Any], None], config_class: type, argv: Sequence[str] | None = None, *, resumes: bool = False,
        hidden: Sequence[str] = ()) -> None:
    """Parses `argv` (default: the command line), calls `main(config)` and exits.

    With status 0, with 2 for a user's mistake, with 130 for Ctrl-C and 143 for a SIGTERM that the command heard, after
    which it `resumes` if it is given again. A mistake is told in one sentence; anything unforeseen keeps its traceback.
    --help does not list the flags that are `hidden`.
    """
    argv = sys.argv if argv is None else argv
    try:
        if any(arg in ('-h', '--help', '-help') for arg in argv[1:]):
            print(usage(config_class, argv[0], main.__doc__ or '', hidden), flush=True)
            sys.exit(0)
        main(parse(config_class, argv[1:]))
    except UserError as error:
        _fail(_with_notes(str(error), error))
    except BrokenPipeError:  # whoever read what we print, such as `head`, wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it exits
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        _fail(_with_notes(_sentence(error), error))
    except KeyboardInterrupt as error:
        goes_on = ['the same command goes on from what is complete'] if resumes else []
        print('; '.join(['Interrupted', *getattr(error, '__notes__', goes_on)]) + '.', file=sys.stderr)
        sys.exit(128 + error.number if isinstance(error, Interrupted) else INTERRUPTED)
    finally:
        # The status is known by now, but TensorFlow takes a second to leave. Registered last, it is done first.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def parse(config_class: type[Config], args: Sequence[str]) -> Config:
    """Builds `config_class` from arguments like --name=value and --flagfile=FILE; the last one wins.

    Raises UserError for an unknown flag, a bad value, a missing required flag or a positional argument.
    """
    values = flags.FlagValues()
    _define(config_class, values)
    try:
        rest = values(['boardrec', *args])[1:]
    except UnicodeDecodeError:
        raise UserError(f'{[arg for arg in args if arg.startswith("--flagfile")][-1]}: is no UTF-8 text.') from None
    except flags.Error as error:
        raise UserError(f'{_tidy(config_class, str(error))} (--help lists the flags)') from None
    if rest:
        raise UserError(
            f'{rest[0]!r} is not a flag: write --name=value, quote a glob, and in a flag file begin each '
            'line with -- or, for a comment, with # in the first column.')
    given = values.flag_values_dict()
    missing = [f.name for f in dataclasses.fields(config_class) if _required(f) and not given[f.name]]
    if missing:
        raise UserError(f'--{missing[0]} is missing: {_help(config_class, missing[0])} (--help lists the flags).')
    return config_class(**given)


def read_flagfile(config_class: type[Config], path: os.PathLike | str) -> Config:
    """Builds `config_class` from a flag file alone."""
    return parse(config_class, [f'--flagfile={path}'])


def to_flagfile(config: Any) -> str:
    """The text of a flag file that gives `config` back. Raises UserError for a value that no flag file can hold."""
    lines = [f'--{f.name}={_flag_text(getattr(config, f.name))}' for f in dataclasses.fields(config)]
    for line in lines:
        if line != line.rstrip() or '\n' in line or '\r' in line or any('\udc80' <= c <= '\udcff' for c in line):
            raise UserError(f'{line!r}: a flag file holds no line breaks, blanks at the end or bytes that are not '
                            'UTF-8; rename it.')
    return '\n'.join(lines) + '\n'


def usage(config_class: type, program: str, purpose: str, hidden: Sequence[str] = ()) -> str:
    """What --help prints."""
    lines = [inspect.cleandoc(purpose).strip(), '', f'{program} --name=value ... [--flagfile=FILE]', '']
    for field in dataclasses.fields(config_class):
        if field.name in hidden:
            continue
        value = 'required' if _required(field) else f'default {_flag_text(field.default) or "empty"}'
        choices = field.metadata['choices']
        lines.append(f'  --{field.name}  ({value}{"; " + "|".join(choices) if choices else ""})')
        lines += textwrap.wrap(field.metadata['help'], 100, initial_indent=' ' * 8, subsequent_indent=' ' * 8)
    return '\n'.join(lines)


_DEFINE = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
_USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR,
                errno.EISDIR, errno.EIO, errno.ENAMETOOLONG, errno.EFBIG}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the last: a file may not be larger there


def _define(config_class: type, values: flags.FlagValues) -> None:
    for field in dataclasses.fields(config_class):
        default = None if _required(field) else field.default
        _DEFINE[field.type](field.name, default, field.metadata['help'], flag_values=values)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING


def _help(config_class: type, name: str) -> str:
    return next(f.metadata['help'] for f in dataclasses.fields(config_class) if f.name == name)


def _flag_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_KINDS = {str: 'text', int: 'a whole number', float: 'a number', bool: 'true or false'}


def _tidy(config_class: type, message: str) -> str:
    """absl's message without its marks and without Python's words for a value of the wrong kind."""
    for field in dataclasses.fields(config_class):
        if message.startswith(f'flag --{field.name}='):
            value = message.removeprefix(f'flag --{field.name}=').partition(': ')[0]
            return f'--{field.name}={value}: must be {_KINDS[field.type]}.'
    message = message.removeprefix('ERROR:: ').strip().replace(' ?', '?').rstrip('.')
    return message if message.endswith('?') else f'{message}.'


def _with_notes(sentence: str, error: Exception) -> str:
    """A sentence, and what was added to its error on the way out: such as what is kept."""
    return ' '.join([sentence, *(f'{note}.' for note in getattr(error, '__notes__', []))])


def _sentence(error: OSError) -> str:
    way_out = ('make room there and run the same command again' if error.errno in _FULL
               else 'check the path and its permissions')
    return f'{error.filename or "a file"}: {error.strerror}; {way_out}.'


def _fail(sentence: str) -> None:
    print(f'error: {sentence}', file=sys.stderr)
    sys.exit(USER_ERROR)
