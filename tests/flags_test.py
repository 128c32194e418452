"""Flag files parse and say what they are for; every setting is read; RUN/run.flags gives the settings back."""

import ast
import dataclasses
import pathlib
import re

import pytest

from boardrec import cli
from boardrec import config as config_module
from boardrec.config import TrainConfig, UserError
from boardrec.training import run_dir

ROOT = pathlib.Path(__file__).parents[1]
FLAG_FILES = sorted((ROOT / 'flags').glob('*.flags'))
SOURCES = sorted([*ROOT.glob('boardrec/**/*.py'), *ROOT.glob('tools/*.py')])


def parsed(path, *args):
    return cli.parse(TrainConfig, [f'--flagfile={path}', '--records=RECORDS', '--run_dir=RUN', *args])


def head(path):
    """The comment at the head of a flag file, without its marks."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith('#'):
            break
        lines.append(line.removeprefix('#').strip())
    return lines


def test_each_kind_of_run_and_each_backbone_of_the_script_has_a_flag_file():
    backbones = {'vgg16', 'vgg19', 'resnet50', 'inception_v3', 'xception'}
    assert {path.stem for path in FLAG_FILES} == {'keras_script', 'smoke', 'multi_gpu', 'multi_worker'} | backbones
    assert all(parsed(ROOT / 'flags' / f'{name}.flags').backbone == name for name in backbones)


@pytest.mark.parametrize('path', FLAG_FILES, ids=lambda path: path.name)
def test_a_flag_file_makes_settings_and_sets_no_setting_twice(path):
    settings = parsed(path)
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith('#')]
    assert lines
    assert all(re.fullmatch(r'--\w+=\S+', line) for line in lines), 'a flag a line, without comments behind it'
    names = [line[2:].partition('=')[0] for line in lines]
    assert len(set(names)) == len(names)
    assert not {'records', 'run_dir'} & set(names), 'where a run lies is no kind of run'
    assert parsed(path, f'--epochs={settings.epochs + 1}').epochs == settings.epochs + 1, 'the command line wins'


@pytest.mark.parametrize('path', FLAG_FILES, ids=lambda path: path.name)
def test_a_flag_files_head_says_command_time_and_result(path):
    text = '\n'.join(head(path))
    match = re.search(r'^Command +(.+?)^Time +(.+?)^Result +(.+)', text, re.DOTALL | re.MULTILINE)
    assert match, text
    command, time, result = match.groups()
    assert f'python -m boardrec.train --flagfile=flags/{path.name} --records=RECORDS --run_dir=RUN\n' in command
    assert re.search(r'\d.* (s|min|minutes?|hours?)\b', time), time
    assert re.search(r'(accuracy|loss|AUC)\b.*\d\.\d', result), result


def test_the_keras_scripts_flag_file_has_the_scripts_values():
    settings = parsed(ROOT / 'flags' / 'keras_script.flags')
    script = {
        'image_size': '224', 'batch_size': 512, 'epochs': 100, 'optimizer': 'adam', 'learning_rate': 1e-3,
        'backbone': 'vgg16', 'weights': 'imagenet', 'trainable_layers': 4, 'dropout': 0.4,
        'early_stopping_patience': 10, 'schedule': 'plateau', 'plateau_factor': 0.5, 'plateau_patience': 5,
        'gpus': '', 'precision': 'auto'}
    assert {name: getattr(settings, name) for name in script} == script


def settings_classes():
    """{class name: (its definition in a source file, names of its fields)} of each dataclass of settings."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef) and node.name.endswith('Config'):
                found[node.name] = node, [item.target.id for item in node.body if isinstance(item, ast.AnnAssign)]
    return found


def read_attributes(tree, is_settings):
    """The attributes that are read, in a tree, from what `is_settings` says are settings."""
    return {node.attr for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_settings(node.value)}


def is_named(*names):
    return lambda node: isinstance(node, ast.Name) and node.id in names


def is_config_of(holder, attribute='config'):
    return lambda node: isinstance(node, ast.Attribute) and node.attr == attribute and is_named(holder)(node.value)


def takes(node, name, annotation):
    """Whether a node is a function with a parameter `name: annotation`."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
        arg.arg == name and isinstance(arg.annotation, ast.Name) and arg.annotation.id == annotation
        for arg in [*node.args.args, *node.args.kwonlyargs])


def holds(node, name):
    """Whether a node is a class that is made with `config: name`."""
    return isinstance(node, ast.ClassDef) and any(
        takes(method, 'config', name) for method in node.body if getattr(method, 'name', '') == '__init__')


def reads():
    """{class name: attributes read from it}: as `config.NAME` in a function that takes `config: CLASS`, as
    `self._config.NAME` in a class that does, as `predictor.config.NAME`, as `session.config.NAME` or, in a function
    that takes a session, `config.NAME`, or through a method of the class that is called in one of these ways.
    """
    classes, result = settings_classes(), {}
    trees = [ast.parse(path.read_bytes()) for path in SOURCES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    for name, (definition, _) in classes.items():
        found = [read_attributes(node, is_named('config')) for node in nodes if takes(node, 'config', name)]
        found += [read_attributes(node, is_config_of('self', '_config')) for node in nodes if holds(node, name)]
        if name == 'TrainConfig':
            found += [read_attributes(tree, is_config_of('predictor')) for tree in trees]
            for node in nodes:
                if takes(node, 'session', 'Session'):
                    found += [read_attributes(node, is_config_of('session')),
                              read_attributes(node, is_named('config'))]
        seen = set().union(*found)
        for method in definition.body:
            if isinstance(method, ast.FunctionDef) and method.name in seen:
                seen |= read_attributes(method, is_named('self'))
        result[name] = seen
    return result


def test_every_setting_is_read_somewhere():
    seen = reads()
    unread = {f'{name}.{field}' for name, (_, fields) in settings_classes().items() for field in fields
              if field not in seen[name]}
    assert unread == {'InspectRecordsConfig.run_dir'}  # which a training's flag file may name


def test_the_check_of_settings_sees_all_of_them():
    classes = {name: fields for name, (_, fields) in settings_classes().items()}
    expected = [value for value in vars(config_module).values()
                if isinstance(value, type) and dataclasses.is_dataclass(value)]
    assert len(expected) >= 5
    for config_class in expected:
        assert classes[config_class.__name__] == [field.name for field in dataclasses.fields(config_class)]


def round_trip(folder, **values):
    settings = TrainConfig(**{'records': 'RECORDS', 'run_dir': 'RUN', **values})
    run = run_dir.RunDir(folder / 'run')
    run_dir.create(run, settings, facts={})
    return settings, run_dir.read_config(run.path)


@pytest.mark.parametrize('values', [
    {},
    {'records': 'a b/c'},
    {'records': '# no comment'},
    {'records': 'x # no comment either'},
    {'records': "it's \"quoted\" \\ $HOME ~"},
    {'records': '--epochs=3'},
    {'records': 'a=b=c'},
    {'records': '[x]*?{y}'},
    {'records': ' begins with a space'},
    {'records': 'Übung/図/😀'},
    {'records': 'tab\there'},
    {'positive_class': 'not ok, at all'},
    {'positive_class': '0'},
    {'positive_class': 'None'},
    {'positive_class': 'false'},
    {'learning_rate': 1e-300},
    {'learning_rate': 0.1 + 0.2},
    {'weight_decay': 0.0},
    {'seed': 2**31 + 1},
    {'image_size': '96x128', 'gpus': '0,1'},
    {'cached_views': 2, 'flip_horizontal': False, 'feature_cache': 'memory', 'backbone': 'inception_v3'},
], ids=str)
def test_run_flags_gives_odd_settings_back(tmp_path, values):
    before, after = round_trip(tmp_path, **values)
    assert after == before
    assert repr(after) == repr(before)


@pytest.mark.parametrize('value', ['two\nlines', 'two\rlines', 'ends with a space ', '\udcff no UTF-8'], ids=ascii)
def test_what_a_flag_file_cannot_hold_is_refused_before_it_is_written(tmp_path, value):
    with pytest.raises(UserError, match='--records'):
        round_trip(tmp_path, records=value)
    assert not (tmp_path / 'run' / 'run.flags').exists()
