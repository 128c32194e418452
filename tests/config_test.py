"""Settings refuse bad values with the flag, the value and the way out; what they accept is what they mean."""

import dataclasses
import re

import pytest

from boardrec import config
from boardrec.config import ConvertConfig, EvaluateConfig, ExportConfig, PredictConfig, TrainConfig, UserError

REQUIRED = {
    ConvertConfig: {'input_dir': 'IMAGES', 'output_dir': 'RECORDS'},  # or tfds
    TrainConfig: {'records': 'RECORDS', 'run_dir': 'RUN'},
    EvaluateConfig: {'run_dir': 'RUN'},  # or compare
    PredictConfig: {'run_dir': 'RUN', 'images': 'IMAGES', 'output': 'predictions.csv'},  # or saved_model
    ExportConfig: {'run_dir': 'RUN', 'export_dir': 'MODELS'},
}
# One of two is required.
ALTERNATIVES = {ConvertConfig: {'input_dir'}, EvaluateConfig: {'run_dir'}, PredictConfig: {'run_dir'}}


def make(config_class, **values):
    return config_class(**{**REQUIRED[config_class], **values})


@pytest.mark.parametrize('config_class', REQUIRED)
def test_the_defaults_are_good_and_cannot_be_changed_afterwards(config_class):
    settings = make(config_class)
    name = dataclasses.fields(config_class)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, 'other')
    with pytest.raises(TypeError, match='positional'):
        config_class(*REQUIRED[config_class].values())


@pytest.mark.parametrize('config_class', REQUIRED)
def test_every_setting_has_a_help_text_a_plain_type_and_a_default_among_its_choices(config_class):
    for field in dataclasses.fields(config_class):
        assert field.metadata['help'], field.name
        assert field.type in (str, int, float, bool), field.name
        if field.metadata['choices'] and field.default is not dataclasses.MISSING:
            assert field.default in field.metadata['choices'], field.name
        if field.default is not dataclasses.MISSING:
            assert type(field.default) is field.type, field.name
    required = {field.name for field in dataclasses.fields(config_class) if field.default is dataclasses.MISSING}
    assert required == set(REQUIRED[config_class]) - ALTERNATIVES.get(config_class, set())


@pytest.mark.parametrize(('config_class', 'name', 'value', 'wanted'), [
    (ConvertConfig, 'shard_mib', 0, 'at least 1'),
    (ConvertConfig, 'workers', -1, 'at least 0'),
    (ConvertConfig, 'splits', '', 'add up to 1'),
    (ConvertConfig, 'splits', 'train', 'add up to 1'),
    (ConvertConfig, 'splits', 'train:0.8,val:0.1', 'add up to 1'),
    (ConvertConfig, 'splits', 'train:1.2,val:-0.2', 'add up to 1'),
    (ConvertConfig, 'splits', 'train:1,val:0', 'add up to 1'),
    (ConvertConfig, 'splits', 'train:0.5,train:0.5', 'add up to 1'),
    (ConvertConfig, 'splits', 'train:0.9,valid:0.1', 'like train:0.8,val:0.1,test:0.1'),
    (ConvertConfig, 'splits', 'train:0.9,val:nan', 'add up to 1'),
    (ConvertConfig, 'splits', 'train:half,val:half', 'add up to 1'),
    (ConvertConfig, 'resize', 'longer', 'one of shorter, squash, pad'),
    (ConvertConfig, 'encoding', 'webp', 'one of keep, jpeg, png, raw'),
    (ConvertConfig, 'resize', 'squash', 'given with --image_size'),
    (ConvertConfig, 'resize', 'pad', 'given with --image_size'),
    (ConvertConfig, 'encoding', 'raw', 'given with --image_size and --resize=squash or --resize=pad'),
    (ConvertConfig, 'jpeg_quality', 80, 'left out with --encoding=keep'),
    (TrainConfig, 'backbone', 'vgg61', 'a network of keras.applications, such as vgg19, vgg16'),
    (TrainConfig, 'backbone', 'dino', 'a network of keras.applications, such as vgg16, resnet50, efficient'),
    (TrainConfig, 'backbone', '', 'a network of keras.applications'),
    (TrainConfig, 'image_size', '224x', 'S or HEIGHTxWIDTH'),
    (TrainConfig, 'image_size', '224,224', 'S or HEIGHTxWIDTH'),
    (TrainConfig, 'image_size', '-224', 'S or HEIGHTxWIDTH'),
    (TrainConfig, 'image_size', '224x7', 'at least 8 pixels'),
    (TrainConfig, 'image_size', '100000', 'at most 100 megapixels'),
    (ConvertConfig, 'image_size', '10000x10001', 'of at most 100 megapixels'),
    (TrainConfig, 'trainable_layers', -1, 'at least 0'),
    (TrainConfig, 'dropout', -0.1, 'at least 0 and below 1'),
    (TrainConfig, 'dropout', 1.0, 'at least 0 and below 1'),
    (TrainConfig, 'dropout', float('nan'), 'at least 0 and below 1'),
    (TrainConfig, 'batch_size', 0, 'at least 1'),
    (TrainConfig, 'accumulate_steps', 0, 'at least 1'),
    (TrainConfig, 'accumulate_steps', 3, 'a divisor of --batch_size=64'),
    (TrainConfig, 'epochs', 0, 'at least 1'),
    (TrainConfig, 'optimizer', 'Adam', 'one of adam, adamw, sgd'),
    (TrainConfig, 'learning_rate', 0.0, 'above 0'),
    (TrainConfig, 'learning_rate', -1e-3, 'above 0'),
    (TrainConfig, 'learning_rate', float('nan'), 'above 0'),
    (TrainConfig, 'learning_rate', float('inf'), 'below 4294967296'),
    (TrainConfig, 'weight_decay', -0.1, 'at least 0'),
    (TrainConfig, 'weight_decay', float('nan'), 'at least 0'),
    (TrainConfig, 'momentum', 1.0, 'at least 0 and below 1'),
    (TrainConfig, 'momentum', 0.8, 'left out with --optimizer=adamw, or given with --optimizer=sgd'),
    (TrainConfig, 'head_epochs', -1, 'at least 0 and below --epochs=10'),
    (TrainConfig, 'head_epochs', 10, 'at least 0 and below --epochs=10'),
    (TrainConfig, 'warmup_epochs', -0.5, 'at least 0 and below 10'),
    (TrainConfig, 'warmup_epochs', 10.0, 'the epochs that --epochs=10 and --head_epochs=0 leave'),
    (TrainConfig, 'warmup_epochs', float('nan'), 'at least 0 and below 10'),
    (TrainConfig, 'clip_norm', -1.0, 'at least 0'),
    (TrainConfig, 'clip_norm', float('nan'), 'at least 0'),
    (TrainConfig, 'clip_norm', float('inf'), 'below'),
    (TrainConfig, 'ema_decay', 1.0, 'at least 0 and below 1'),
    (TrainConfig, 'label_smoothing', 1.0, 'at least 0 and below 1'),
    (TrainConfig, 'label_smoothing', -0.1, 'at least 0 and below 1'),
    (TrainConfig, 'class_weight', '', 'none, balanced or a CSV file'),
    (TrainConfig, 'class_weight', 's3://bucket/weights.csv', 'on a file system of this machine'),
    (TrainConfig, 'record_weights', 'gs://bucket/weights.csv', 'on a file system of this machine'),
    (TrainConfig, 'inference_views', 0, '1, 2 or 4'),
    (TrainConfig, 'inference_views', 3, '1, 2 or 4'),
    (TrainConfig, 'inference_views', 8, '1, 2 or 4'),
    (TrainConfig, 'schedule', 'step', 'one of constant, cosine, plateau'),
    (TrainConfig, 'plateau_factor', 0.0, 'between 0 and 1'),
    (TrainConfig, 'plateau_factor', 1.0, 'between 0 and 1'),
    (TrainConfig, 'plateau_patience', 0, 'at least 1'),
    (TrainConfig, 'plateau_factor', 0.1, 'left out with --schedule=cosine, or given with --schedule=plateau'),
    (TrainConfig, 'plateau_patience', 2, 'left out with --schedule=cosine, or given with --schedule=plateau'),
    (TrainConfig, 'profile_steps', '0,10', 'counted from 1'),
    (TrainConfig, 'profile_steps', '10,9', 'the first and last step'),
    (TrainConfig, 'early_stopping_patience', -1, 'at least 0'),
    (TrainConfig, 'shuffle_records', 0, 'at least 1'),
    (TrainConfig, 'seed', -1, 'at least 0'),
    (TrainConfig, 'seed', 2**32, ''),  # NumPy's and Keras's seeds have 32 bits
    (TrainConfig, 'precision', 'float64', 'one of auto, float32, bfloat16, float16'),
    (TrainConfig, 'inference_precision', 'auto', 'one of float32, bfloat16, float16'),
    (TrainConfig, 'feature_cache', 'yes', 'one of auto, on, off, memory'),
    (TrainConfig, 'cached_views', -1, 'at least 0'),
    (TrainConfig, 'cached_views', 2**16, 'below 65536'),
    (TrainConfig, 'cached_views', 2**32, 'below'),
    (TrainConfig, 'crop_area', 0.0, 'above 0 and at most 1'),
    (TrainConfig, 'crop_area', 1.01, 'above 0 and at most 1'),
    (TrainConfig, 'rotation', -1.0, 'from 0 to 180'),
    (TrainConfig, 'rotation', 181.0, 'from 0 to 180'),
    (TrainConfig, 'brightness', 1.0, 'at least 0 and below 1'),
    (TrainConfig, 'contrast', -0.1, 'at least 0 and below 1'),
    (TrainConfig, 'saturation', float('nan'), 'at least 0 and below 1'),
    (TrainConfig, 'erasing', 1.0, 'at least 0 and below 1'),
    (TrainConfig, 'hue', 0.6, 'from 0 to 0.5'),
    (TrainConfig, 'jpeg_quality', 0, 'from 1 to 100'),
    (TrainConfig, 'jpeg_quality', 101, 'from 1 to 100'),
    (TrainConfig, 'pipeline_ram_mb', 0, 'at least 1'),
    (TrainConfig, 'data_service', 'localhost:5000', 'like grpc://HOST:PORT'),
    (TrainConfig, 'data_service', 'grpc://localhost', 'like grpc://HOST:PORT'),
    (TrainConfig, 'strategy', 'two', 'one of auto, one, mirrored'),
    (TrainConfig, 'gpus', '0;1', 'numbers like 0,1'),
    (TrainConfig, 'gpus', '0,', 'numbers like 0,1'),
    (TrainConfig, 'gpus', '-1', 'numbers like 0,1'),
    (EvaluateConfig, 'split', 'dev', 'one of train, val, test'),
    (EvaluateConfig, 'batch_size', 0, 'at least 1'),
    (EvaluateConfig, 'check_sources', -1, 'at least 0'),
    (EvaluateConfig, 'threshold', '0.4', 'one of auto, f1, half'),
    (EvaluateConfig, 'min_precision', 1.5, 'from 0 to 1'),
    (EvaluateConfig, 'min_recall', -0.1, 'from 0 to 1'),
    (EvaluateConfig, 'slice_by', '(a', 'a regular expression'),
    (EvaluateConfig, 'check_sources', 5, 'given with --input_dir, the folder that the records were converted from'),
    (EvaluateConfig, 'input_dir', 'IMAGES', 'given with --check_sources'),
    (EvaluateConfig, 'compare', 'A', 'RUN_A,RUN_B, two different folders'),
    (EvaluateConfig, 'compare', 'A,B,C', 'RUN_A,RUN_B, two different folders'),
    (EvaluateConfig, 'compare', 'A,./A/', 'RUN_A,RUN_B, two different folders'),
    (PredictConfig, 'batch_size', 0, 'at least 1'),
    (PredictConfig, 'output_format', 'tsv', 'one of auto, csv, jsonl'),
    (PredictConfig, 'saved_model', 'MODELS', 'given without --run_dir=RUN'),
    (PredictConfig, 'max_image_mib', 0, 'at least 1'),
    (PredictConfig, 'max_megapixels', 0.0, 'above 0'),
    (PredictConfig, 'max_side', 0, 'at least 1'),
    (PredictConfig, 'max_side_ratio', 0.5, 'at least 1'),
])
def test_a_bad_value_is_refused_with_the_flag_and_the_value(config_class, name, value, wanted):
    with pytest.raises(UserError) as caught:
        make(config_class, **{name: value})
    message = str(caught.value)
    assert message.startswith(f'--{name}={value}: must be '), message
    assert wanted in message
    assert message.count('\n') == 0


@pytest.mark.parametrize(('values', 'named'), [
    ({'weight_decay': 0.01, 'optimizer': 'sgd'}, '--weight_decay=0.01: must be left out with --optimizer=sgd'),
    ({'gpus': '0,1', 'strategy': 'one'}, '--gpus=0,1: must be a single GPU with --strategy=one'),
    ({'data_service': 'grpc://10.0.0.1:5050', 'steps_per_call': 4},
     '--steps_per_call=4: must be left out with --data_service=grpc://10.0.0.1:5050'),
    ({'weights': 'my.h5', 'init_from': 'RUN'}, '--weights=my.h5: must be left out with --init_from=RUN')])
def test_what_would_have_no_effect_is_refused(values, named):
    with pytest.raises(UserError, match=f'^{re.escape(named)}'):
        make(TrainConfig, **values)


@pytest.mark.parametrize('values', [
    {'optimizer': 'sgd', 'weight_decay': 0.0}, {'optimizer': 'sgd', 'momentum': 0.5}, {'profile_steps': '1,1'},
    {'schedule': 'plateau', 'plateau_patience': 2}, {'gpus': '1', 'strategy': 'one'}, {'init_from': 'RUN'},
    {'dropout': 0.0}, {'momentum': 0.0}, {'weight_decay': 0.0}, {'trainable_layers': 0}, {'early_stopping_patience': 0},
    {'batch_size': 6, 'accumulate_steps': 6}, {'gpus': '0'}, {'gpus': '0,1,12'}, {'image_size': '8'},
    {'seed': 2**32 - 1}, {'cached_views': 2**16 - 1}, {'cached_views': 0}, {'crop_area': 1.0},
    {'hue': 0.5, 'cached_views': 2}, {'rotation': 180.0, 'cached_views': 0}, {'jpeg_quality': 1, 'cached_views': 0},
    {'head_epochs': 9}, {'warmup_epochs': 9.9}, {'head_epochs': 2, 'warmup_epochs': 7.9}, {'clip_norm': 1e-3},
    {'ema_decay': 0.9999}, {'label_smoothing': 0.99}, {'class_weight': 'balanced'}, {'class_weight': 'weights.csv'},
    {'data_service': 'grpc://10.0.0.1:5050'}, {'data_service': ''},
    *({'backbone': name} for name in ('vgg16', 'vgg19', 'resnet50', 'inception_v3', 'xception')),
    *({'feature_cache': name} for name in ('auto', 'on', 'off', 'memory')),
])
def test_values_at_the_edge_are_accepted(values):
    settings = make(TrainConfig, **values)
    assert {name: getattr(settings, name) for name in values} == values


AS_THEY_ARE = {'flip_horizontal': False, 'flip_vertical': False, 'crop_area': 1.0, 'brightness': 0.0, 'contrast': 0.0}
FLIP, TURN = {'flip_vertical': True}, {'quarter_turns': True}


@pytest.mark.parametrize(('settings', 'poses'), [
    ({}, 1), (FLIP, 2), ({**FLIP, 'flip_horizontal': True}, 4), (TURN, 4), ({**TURN, 'image_size': '64x32'}, 2),
    ({**TURN, **FLIP}, 8), ({**TURN, **FLIP, 'image_size': '64x32'}, 4)])
def test_views_that_cannot_differ_are_refused(settings, poses):
    make(TrainConfig, cached_views=poses, **{**AS_THEY_ARE, **settings})
    with pytest.raises(UserError, match=f'^--cached_views={poses + 1}: must be at most {poses}, or views would be the'):
        make(TrainConfig, cached_views=poses + 1, **{**AS_THEY_ARE, **settings})


@pytest.mark.parametrize(('flips', 'most'), [((True, True), 4), ((True, False), 2), ((False, True), 2),
                                             ((False, False), 1)])
def test_inference_mirrors_only_as_training_may(flips, most):
    settings = dict(zip(('flip_horizontal', 'flip_vertical'), flips, strict=True))
    for views in (1, 2, 4):
        if views <= most:
            assert make(TrainConfig, inference_views=views, **settings).inference_views == views
        else:
            with pytest.raises(UserError, match=f'^--inference_views={views}: must be 1, 2 or 4, .* at most {most}'):
                make(TrainConfig, inference_views=views, **settings)


@pytest.mark.parametrize('op', [
    {'rotation': 1.0}, {'saturation': 0.1}, {'hue': 0.1}, {'jpeg_quality': 99}, {'erasing': 0.1}, TURN])
def test_an_op_that_one_view_does_not_take_is_refused(op):
    (name, value), = op.items()
    with pytest.raises(UserError, match=f'^--{name}={value}: must be given with --cached_views=4, for example, or 0'):
        make(TrainConfig, **op)
    make(TrainConfig, cached_views=0, **op)


@pytest.mark.parametrize('other', [
    {'crop_area': 0.9}, {'rotation': 1.0}, {'brightness': 0.1}, {'contrast': 0.1}, {'saturation': 0.1}, {'hue': 0.1},
    {'jpeg_quality': 99}, {'erasing': 0.1}])
def test_any_other_difference_allows_as_many_views_as_one_likes(other):
    make(TrainConfig, cached_views=100, **{**AS_THEY_ARE, **other})


@pytest.mark.parametrize(('backbone', 'name', 'size'), [
    ('vgg16', 'vgg16', 224), ('Xception', 'xception', 299), ('EfficientNetB4', 'efficientnet_b4', 380)])
def test_a_backbone_has_one_name_and_a_size(backbone, name, size):
    config = make(TrainConfig, backbone=backbone)
    assert (config.backbone, config.height_width()) == (name, (size, size))
    assert make(TrainConfig, backbone=backbone, image_size='96x128').height_width() == (96, 128)


@pytest.mark.parametrize(('text', 'height_width'), [('224', (224, 224)), ('96x128', (96, 128)), ('8x8', (8, 8))])
def test_image_size_is_height_then_width(text, height_width):
    assert make(TrainConfig, image_size=text).height_width() == height_width


@pytest.mark.parametrize(('values', 'message'), [
    ({'image_size': '256'}, '--encoding=keep: must be jpeg (small), png (lossless) or raw (fastest) with '
                            '--image_size=256'),
    ({'image_size': '256x', 'encoding': 'png'}, '--image_size=256x: must be S or HEIGHTxWIDTH'),
    ({'image_size': '7', 'encoding': 'png'}, '--image_size=7: must be S or HEIGHTxWIDTH, each at least 8 pixels'),
    ({'image_size': '200x300', 'encoding': 'png'}, '--image_size=200x300: must be S with --resize=shorter; give '
                                                   '--resize=squash or --resize=pad'),
    ({'image_size': '256', 'encoding': 'raw'}, '--encoding=raw: must be given with --image_size and --resize=squash'),
    ({'resize': 'squash', 'encoding': 'raw'}, '--resize=squash: must be given with --image_size'),
    ({'encoding': 'jpeg', 'jpeg_quality': 0}, '--jpeg_quality=0: must be from 1 to 100'),
    ({'encoding': 'jpeg', 'jpeg_quality': 101}, '--jpeg_quality=101: must be from 1 to 100'),
    ({'encoding': 'png', 'jpeg_quality': 90}, '--jpeg_quality=90: must be left out with --encoding=png'),
], ids=str)
def test_what_records_cannot_hold_is_refused(values, message):
    with pytest.raises(UserError) as caught:
        make(ConvertConfig, **values)
    assert str(caught.value).startswith(message)
    assert str(caught.value).count('\n') == 0


@pytest.mark.parametrize(('values', 'height_width'), [
    ({}, None), ({'encoding': 'png'}, None), ({'encoding': 'jpeg', 'jpeg_quality': 1}, None),
    ({'encoding': 'jpeg', 'image_size': '256'}, (256, 256)), ({'encoding': 'png', 'image_size': '8'}, (8, 8)),
    ({'encoding': 'raw', 'image_size': '200x300', 'resize': 'pad'}, (200, 300)),
    ({'encoding': 'jpeg', 'image_size': '200x300', 'resize': 'squash'}, (200, 300)),
], ids=str)
def test_what_records_can_hold_is_accepted(values, height_width):
    assert make(ConvertConfig, **values).height_width() == height_width


@pytest.mark.parametrize(('text', 'fractions'), [
    ('train:0.8,val:0.1,test:0.1', {'train': 0.8, 'val': 0.1, 'test': 0.1}),
    ('test:0.25, train:0.75', {'train': 0.75, 'test': 0.25}),
    ('train:1', {'train': 1.0}),
])
def test_splits_are_fractions_in_the_order_train_val_test(text, fractions):
    split_fractions = make(ConvertConfig, splits=text).split_fractions()
    assert split_fractions == fractions
    assert list(split_fractions) == [name for name in config.SPLITS if name in fractions]


def test_a_users_mistake_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_a_comparison_takes_the_place_of_a_run():
    assert EvaluateConfig(compare='A, B', split='val', records='R').compared() == ('A', 'B')
    with pytest.raises(UserError, match='--run_dir is missing: name a finished run, or two of them with --compare'):
        EvaluateConfig()
    for name, value in {'run_dir': 'RUN', 'calibrate': True, 'slice_by': 'x', 'batch_size': 8}.items():
        with pytest.raises(UserError, match=f'--{name}={value}: must be left out with --compare'):
            EvaluateConfig(compare='A,B', **{name: value})
