"""A TFDS data set as input: written by TFDS's own writer, compared with what TFDS itself reads from it."""

import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from boardrec.config import ConvertConfig, UserError
from boardrec.data import files, framing, records, tfds_source, tfrecord

TOOL = pathlib.Path(__file__).parents[2] / 'tools' / 'make_records.py'
CLASSES = ['zinc', 'copper']  # not in sorted order
FEATURES = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(names=CLASSES)}


def encoded(random, number):
    """An image file of 24x32 pixels: JPEG and PNG, in colour and grey, in turn."""
    pixels = random.integers(0, 256, (24, 32, 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert('L') if number % 4 > 1 else image).save(file, 'PNG' if number % 2 else 'JPEG')
    return file.getvalue()


def write(folder, counts, *, features=None, example=None, file_format='tfrecord', records_a_shard=10):
    """Writes a TFDS data set of {split: how many examples}, each `example(number, image)`."""
    random = np.random.default_rng(0)
    example = example or (lambda number, image: {'image': image, 'label': number % 2})
    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name='boards', version=tfds.core.Version('1.0.0'), data_dir=str(folder), module_name='boards')
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features or FEATURES))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=records_a_shard, file_format=file_format)
    writer.initialize_splits(list(counts))
    for split, count in counts.items():
        writer.add_examples({split: [example(number, encoded(random, number)) for number in range(count)]})
    writer.close_all()
    return folder


@pytest.fixture(scope='module')
def boards(tmp_path_factory):
    """A TFDS data set of three splits, train of three shards. Shared: never change it, copy it."""
    return write(tmp_path_factory.mktemp('tfds') / 'boards', {'train': 24, 'validation': 6, 'test': 8})


@pytest.fixture
def copied(boards, tmp_path):
    """A copy of it that a test may change."""
    return pathlib.Path(shutil.copytree(boards, tmp_path / 'copied'))


@pytest.fixture
def convert_tfds(convert_here):
    """A function that does make_records --tfds=FOLDER --output_dir=OUT in this process, in small shards."""
    def run(folder, out, **settings):
        return convert_here('', out, tfds=str(folder), **{'shard_bytes': 20_000, **settings})

    return run


def as_tfds_reads(folder, image='image', label='label'):
    """{tfds_id: (split, image's bytes, class)} of a TFDS data set."""
    builder = tfds.builder_from_directory(str(folder))
    read = {}
    for split in builder.info.splits:
        dataset = builder.as_dataset(split=split, read_config=tfds.ReadConfig(add_tfds_id=True),
                                     decoders={image: tfds.decode.SkipDecoding()})
        for example in dataset.as_numpy_iterator():
            name = builder.info.features[label].int2str(int(example[label]))
            read[example['tfds_id'].decode()] = (split, example[image], name)
    return read


def as_we_read(folder):
    """{source: (split, image's bytes, class)} of a record set."""
    record_set = records.open_record_set(folder)
    stored = dict(tfrecord.read_images(record_set, range(len(record_set.sources))))
    return {row.source: (row.split, stored[row.record_id], row.label) for row in records.read_index(folder)}


def renamed(read):
    """With our names of the splits."""
    return {name: ({'validation': 'val'}.get(split, split), *rest) for name, (split, *rest) in read.items()}


def tree(folder):
    return {path.name: files.sha256_of(path) for path in folder.iterdir() if path.is_file()}


def shard(folder, split='train', number=0):
    return sorted(folder.glob(f'boards-{split}.tfrecord-*'))[number]


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


# What becomes of it


def test_every_example_becomes_the_record_that_tfds_reads(boards, tmp_path, convert_tfds, capsys):
    manifest = convert_tfds(boards, tmp_path / 'out')
    expected = renamed(as_tfds_reads(boards))
    assert as_we_read(tmp_path / 'out') == expected
    assert len(expected) == 38 and len({image for _, image, _ in expected.values()}) == 38
    assert manifest.class_names == sorted(CLASSES) and len(manifest.shards) > 3
    assert {name: split.records for name, split in manifest.splits.items()} == {'train': 24, 'val': 6, 'test': 8}
    assert {row.sha256 for row in records.read_index(tmp_path / 'out')} == {
        hashlib.sha256(image).hexdigest() for _, image, _ in expected.values()}
    assert 'boards: 38 records, 38 of them in 2 classes (copper 19, zinc 19); train 24, val 6, test 8' in (
        capsys.readouterr().out)


def test_tfds_reads_the_same_pixels_from_the_result(boards, tmp_path, convert_tfds):
    convert_tfds(boards, tmp_path / 'out')
    read = {}
    for split in ('train', 'val', 'test'):
        for example in tfds.builder_from_directory(str(tmp_path / 'out')).as_dataset(split=split).as_numpy_iterator():
            read[example['source_id'].decode()] = example['image']
    builder = tfds.builder_from_directory(str(boards))
    for split in builder.info.splits:
        dataset = builder.as_dataset(split=split, read_config=tfds.ReadConfig(add_tfds_id=True))
        for example in dataset.as_numpy_iterator():
            np.testing.assert_array_equal(read.pop(example['tfds_id'].decode()), example['image'])
    assert read == {}


def test_features_may_be_nested_and_others_may_stand_beside_them(tmp_path, convert_tfds):
    label = tfds.features.ClassLabel(num_classes=2)
    write(tmp_path / 'in', {'train': 6}, features={
        'a': {'photo/x': tfds.features.Image(encoding_format='png')}, 'b': {'c': {'kind': label}},
        'text': tfds.features.Text(), 'parts': tfds.features.Sequence({
            'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(num_classes=5)}),
    }, example=lambda number, image: {'a': {'photo/x': image}, 'b': {'c': {'kind': number % 2}}, 'text': 'label',
                                      'parts': []})
    convert_tfds(tmp_path / 'in', tmp_path / 'out', splits='train:1')
    random = np.random.default_rng(0)
    assert as_we_read(tmp_path / 'out') == {
        f'boards-train.tfrecord-00000__{number}': ('train', encoded(random, number), str(number % 2))
        for number in range(6)}


def test_the_names_of_a_nested_label_are_found(tmp_path, convert_tfds):
    write(tmp_path / 'in', {'train': 4}, features={
        'image': FEATURES['image'], 'a': {'b/c': {'kind': tfds.features.ClassLabel(names=CLASSES)}},
    }, example=lambda number, image: {'image': image, 'a': {'b/c': {'kind': number % 2}}})
    assert convert_tfds(tmp_path / 'in', tmp_path / 'out', splits='train:1').class_names == sorted(CLASSES)


def test_the_older_form_of_features_json_is_read(copied, boards, tmp_path, convert_tfds):
    """As TFDS wrote it up to 4.4, and reads it still."""
    core = 'tensorflow_datasets.core.features'
    (copied / 'features.json').write_text(json.dumps({
        'type': f'{core}.features_dict.FeaturesDict', 'content': {
            'image': {'type': f'{core}.image_feature.Image',
                      'content': {'shape': [None, None, 3], 'dtype': 'uint8', 'encoding_format': None}},
            'label': {'type': f'{core}.class_label_feature.ClassLabel', 'content': {'num_classes': 2}}}}))
    assert as_tfds_reads(copied) == as_tfds_reads(boards)
    convert_tfds(copied, tmp_path / 'out')
    assert as_we_read(tmp_path / 'out') == renamed(as_tfds_reads(boards))


def test_modules_that_features_json_names_are_not_imported(copied, monkeypatch):
    """As tfds.builder_from_directory does, which is why it is not called."""
    (copied / 'evil.py').write_text('raise SystemExit("foreign code ran")')
    monkeypatch.syspath_prepend(str(copied))
    features = json.loads((copied / 'features.json').read_text())
    features['featuresDict']['features']['other'] = {'pythonClassName': 'evil.Feature', 'jsonFeature': {'json': '{}'}}
    (copied / 'features.json').write_text(json.dumps(features))
    with pytest.raises(SystemExit, match='foreign code ran'):
        tfds.builder_from_directory(str(copied))
    assert tfds_source.describe(copied).image == 'image'
    assert 'evil' not in sys.modules


def test_a_record_set_of_our_own_is_converted_to_the_same_images(record_set_path, tmp_path, convert_tfds):
    convert_tfds(record_set_path, tmp_path / 'out')
    assert sorted(as_we_read(tmp_path / 'out').values()) == sorted(as_we_read(record_set_path).values())


# Splits


@pytest.mark.parametrize(('counts', 'splits', 'expected'), [
    ({'train': 60, 'test': 8}, 'train:0.8,val:0.1,test:0.1', 'train val'),
    ({'train': 60}, 'train:0.6,val:0.2,test:0.2', 'train val test'),
    ({'train': 60, 'test': 8}, 'train:1', 'train'),
    ({'train': 60, 'val': 8}, 'train:0.6,val:0.2,test:0.2', 'train'),
], ids=str)
def test_training_records_fill_the_splits_that_lack_where_validation_does(
        tmp_path, convert_tfds, counts, splits, expected):
    write(tmp_path / 'in', counts)
    convert_tfds(tmp_path / 'in', tmp_path / 'out', splits=splits)
    read = as_we_read(tmp_path / 'out')
    assert {split for name, (split, *_) in read.items() if name.startswith('boards-train')} == set(expected.split())
    for other in set(counts) - {'train'}:
        assert {split for name, (split, *_) in read.items() if name.startswith(f'boards-{other}')} == {other}
    assert len(read) == sum(counts.values())


def test_a_split_of_another_name_is_left_out_and_told(tmp_path, convert_tfds, capsys):
    write(tmp_path / 'in', {'train': 8, 'extra': 4, 'validation': 2})
    manifest = convert_tfds(tmp_path / 'in', tmp_path / 'out')
    assert {name: split.records for name, split in manifest.splits.items()} == {'train': 8, 'val': 2}
    assert "note: the split 'extra' of 4 records is left out: it is none of train, val, validation, test" in (
        capsys.readouterr().out)


def test_records_without_a_label_are_rejected_with_their_sums(tmp_path, convert_tfds):
    write(tmp_path / 'in', {'train': 8}, example=lambda number, image: {
        'image': image, 'label': -1 if number == 5 else number % 2})
    convert_tfds(tmp_path / 'in', tmp_path / 'out', splits='train:1', max_bad_fraction=0.0)
    name = 'boards-train.tfrecord-00000__5'
    assert records.read_rejected(tmp_path / 'out') == [
        (name, 'no label: class number -1', hashlib.sha256(as_image(tmp_path / 'in', 5)).hexdigest())]


def as_image(folder, number):
    """The bytes of one training image, by TFDS."""
    dataset = tfds.builder_from_directory(str(folder)).as_dataset(
        split='train', decoders={'image': tfds.decode.SkipDecoding()})
    return list(dataset.as_numpy_iterator())[number]['image']


# Damage


def offsets(path):
    return [piece.offset for piece in framing.walk(path)]


@pytest.mark.parametrize(('place', 'reason'), [
    (100, 'damaged record: its bytes are damaged'), (2, 'damaged record: its length is damaged')])
def test_a_damaged_record_is_rejected_alone(copied, boards, tmp_path, convert_tfds, place, reason):
    path = shard(copied)
    flip(path, offsets(path)[3] + place)
    convert_tfds(copied, tmp_path / 'out')
    name = f'{path.name}__3'
    assert records.read_rejected(tmp_path / 'out') == [(name, reason, '')]
    expected = renamed(as_tfds_reads(boards))
    del expected[name]
    assert as_we_read(tmp_path / 'out') == expected


def test_a_file_that_ends_between_two_records_is_noticed(copied, boards, tmp_path, convert_tfds):
    path = shard(copied, number=1)
    os.truncate(path, offsets(path)[8])
    convert_tfds(copied, tmp_path / 'out')
    lost = [f'{path.name}__{number}' for number in range(8, len(offsets(shard(boards, number=1))))]
    assert records.read_rejected(tmp_path / 'out') == [
        (name, 'damaged shard: it ends before this record', '') for name in lost]
    assert set(as_we_read(tmp_path / 'out')) | set(lost) == set(as_tfds_reads(boards)) and lost


def test_records_that_a_gap_has_swallowed_are_counted(copied, boards, tmp_path, convert_tfds):
    path = shard(copied)
    for place in offsets(path)[3:5]:
        flip(path, place)
    convert_tfds(copied, tmp_path / 'out')
    lost = {f'{path.name}__3', f'{path.name}__4'}
    assert {name for name, *_ in records.read_rejected(tmp_path / 'out')} == lost
    expected = renamed(as_tfds_reads(boards))
    assert as_we_read(tmp_path / 'out') == {name: row for name, row in expected.items() if name not in lost}


def test_too_much_damage_ends_the_conversion(copied, tmp_path, convert_tfds):
    path = shard(copied)
    flip(path, 100)
    convert_tfds(copied, tmp_path / 'out', max_bad_fraction=1 / 38)
    with pytest.raises(UserError, match=r'1 of 38 records can be read no more, which is more than --max_bad_fraction='
                                        rf'0\.02, the first {path.name}__0 \(damaged record: its bytes are damaged\)'):
        convert_tfds(copied, tmp_path / 'other', max_bad_fraction=0.02)
    with pytest.raises(UserError, match=rf'{path.name}__0: damaged record: .* \(--on_bad_image=fail\)'):
        convert_tfds(copied, tmp_path / 'other', on_bad_image='fail')


def test_bytes_that_are_no_image_or_too_many_are_rejected_like_files(tmp_path, convert_tfds):
    def example(number, image):
        odd = {6: b'text', 7: b'', 8: image[:-2], 9: image + bytes(1 << 20)}
        return {'image': odd.get(number, image), 'label': number % 2}

    write(tmp_path / 'in', {'train': 12}, example=example)
    convert_tfds(tmp_path / 'in', tmp_path / 'out', splits='train:1', max_image_mib=1)
    rows = {name.split('__')[1]: reason for name, reason, _ in records.read_rejected(tmp_path / 'out')}
    size = len(as_image(tmp_path / 'in', 9))
    assert rows == {'6': 'not an image', '7': 'empty', '8': 'truncated',
                    '9': f'too large: {size} bytes, at most {1 << 20}'}
    assert records.read_manifest(tmp_path / 'out').splits['train'].records == 8


def test_a_shard_that_changes_after_it_was_read_gives_no_wrong_image(copied, tmp_path, convert_tfds, monkeypatch):
    real = tfds_source.scan_records

    def then_changed(config, pool):
        result = real(config, pool)
        flip(shard(copied), offsets(shard(copied))[2] + 200)
        return result

    monkeypatch.setattr(tfds_source, 'scan_records', then_changed)
    convert_tfds(copied, tmp_path / 'out')
    assert records.read_rejected(tmp_path / 'out') == [
        (f'{shard(copied).name}__2', 'unreadable: it is no longer what the scan read', '')]


# A second run


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize('touch', [False, True])
def test_a_second_run_does_nothing(copied, tmp_path, convert_tfds, capsys, touch):
    for path in copied.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    manifest = convert_tfds(copied, tmp_path / 'out')
    before = stamps(tmp_path / 'out')
    if touch:
        for path in copied.iterdir():
            os.utime(path)
    capsys.readouterr()
    assert convert_tfds(copied, tmp_path / 'out') == manifest
    assert stamps(tmp_path / 'out') == before
    assert 'nothing to do' in capsys.readouterr().out


def test_after_a_change_only_what_it_touches_is_built_again(copied, tmp_path, convert_tfds):
    manifest = convert_tfds(copied, tmp_path / 'out', shard_bytes=5000)
    before = stamps(tmp_path / 'out')
    mended = shard(copied).read_bytes()
    flip(shard(copied), offsets(shard(copied))[2] + 200)
    convert_tfds(copied, tmp_path / 'out', shard_bytes=5000)
    after = stamps(tmp_path / 'out')
    names = [one.file for one in manifest.shards]
    assert len(names) > 5 and sum(before[name] != after[name] for name in names) == 1
    shard(copied).write_bytes(mended)
    assert convert_tfds(copied, tmp_path / 'out', shard_bytes=5000) == manifest


def test_another_data_set_is_refused(copied, tmp_path, convert_tfds, image_folder, convert_here):
    convert_here(image_folder({'a': 4, 'b': 4}), tmp_path / 'out')
    with pytest.raises(UserError, match=rf'was made of 8 files, of which 8 are not in --tfds={copied}'):
        convert_tfds(copied, tmp_path / 'out')


@pytest.mark.parametrize('settings', [
    {'encoding': 'jpeg', 'image_size': '16'}, {'encoding': 'raw', 'image_size': '16', 'resize': 'squash'}], ids=str)
def test_images_are_resized_and_measured_like_files(boards, tmp_path, convert_tfds, capsys, settings):
    manifest = convert_tfds(boards, tmp_path / 'out', **settings)
    assert sum(split.records for split in manifest.splits.values()) == 38
    assert re.search(r'\([1-9]\d* images measured\)', capsys.readouterr().out)  # as many as there was time for


# What is refused


def change_json(name, **values):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))
    return change


@pytest.mark.parametrize(('change', 'match'), [
    (lambda folder: (folder / 'dataset_info.json').unlink(), 'holds no dataset_info.json: name the folder of a data '
     'set, in which TFDS wrote one version'),
    (lambda folder: (folder / 'features.json').unlink(), 'holds no features.json'),
    (lambda folder: (folder / 'features.json').write_text('{'), 'features.json is damaged'),
    (lambda folder: (folder / 'features.json').write_text('[1]'), 'features.json is damaged'),
    (lambda folder: shard(folder).unlink(), r'its shard boards-train\S+ is missing'),
    (change_json('dataset_info.json', splits=[]), 'has no split train, validation or test'),
    (change_json('dataset_info.json', splits=3), 'dataset_info.json or features.json is damaged'),
    (change_json('dataset_info.json', fileFormat='riegeli'), 'is in the format riegeli: write it again'),
    (change_json('dataset_info.json', splits=[{
        'name': 'train', 'shardLengths': ['1'], 'filepathTemplate': '../{SPLIT}'}]), "'../train' lies outside"),
])
def test_a_folder_that_is_no_whole_data_set_is_refused(copied, tmp_path, convert_tfds, change, match):
    change(copied)
    with pytest.raises(UserError, match=rf'^--tfds={copied}.*{match}'):
        convert_tfds(copied, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_folder_above_is_refused_with_the_one_that_is_meant(boards, tmp_path, convert_tfds):
    with pytest.raises(UserError, match=f'such as {boards}[.]$'):
        convert_tfds(boards.parent, tmp_path / 'out')


@pytest.mark.parametrize(('features', 'match'), [
    ({'one': FEATURES['image'], 'a': {'two': tfds.features.Image()}, 'label': FEATURES['label']},
     '2 features are Image, which must be exactly one, among a/two (Image), label (ClassLabel), one (Image)'),
    ({'image': FEATURES['image'], 'label': tfds.features.Text()},
     'no features are ClassLabel, which must be exactly one, among image (Image), label (Text)'),
    ({'image': tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8), 'label': FEATURES['label']},
     'no features are Image, which must be exactly one, among image (Tensor), label (ClassLabel)'),
    ({'image': tfds.features.Image(shape=(None, None, 1), dtype=np.float32), 'label': FEATURES['label']},
     "its image 'image' holds floats"),
], ids=lambda value: value[:30] if isinstance(value, str) else '')
def test_features_that_make_no_classifier_are_refused_and_listed(tmp_path, features, match):
    tfds.features.FeaturesDict(features).save_config(str(tmp_path))
    (tmp_path / 'dataset_info.json').write_text('{"name": "boards", "splits": []}')
    with pytest.raises(UserError, match=re.escape(match)):
        tfds_source.describe(tmp_path)


def test_array_record_is_refused(tmp_path, convert_tfds):
    write(tmp_path / 'in', {'train': 4}, file_format='array_record')
    with pytest.raises(UserError, match='is in the format array_record: write it again with TFDS as tfrecord'):
        convert_tfds(tmp_path / 'in', tmp_path / 'out')


@pytest.mark.parametrize(('settings', 'match'), [
    ({'input_dir': 'IMAGES', 'tfds': 'SET'}, '--tfds=SET: must be given without --input_dir=IMAGES'),
    ({}, '--input_dir is missing: name a folder of images, or a TFDS data set with --tfds'),
    ({'tfds': 'SET', 'labels_csv': 'x.csv'}, '--labels_csv=x.csv: must be left out with --tfds'),
    ({'tfds': 'SET', 'group_by': 'x'}, '--group_by=x: must be left out with --tfds'),
])
def test_settings_that_contradict_each_other_are_refused(settings, match):
    with pytest.raises(UserError, match=match):
        ConvertConfig(output_dir='OUT', **settings)


# As a command


def test_two_workers_write_what_none_writes_and_the_parent_stays_without_tensorflow(boards, tmp_path, convert_tfds):
    code = ('import sys\nfrom boardrec.config import ConvertConfig\nfrom boardrec.data import convert\n'
            'convert.convert(ConvertConfig(tfds=sys.argv[1], output_dir=sys.argv[2], workers=2))\n'
            'assert not {"tensorflow", "tensorflow_datasets"} & set(sys.modules)')
    done = subprocess.run([sys.executable, '-c', code, str(boards), str(tmp_path / 'out')], capture_output=True,
                          text=True, check=False, timeout=120)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    convert_tfds(boards, tmp_path / 'here', shard_bytes=32 << 20)
    assert tree(tmp_path / 'out') == tree(tmp_path / 'here')


def test_a_mistake_ends_with_status_2_and_one_line(tmp_path):
    done = subprocess.run([sys.executable, str(TOOL), '--tfds=nowhere', '--output_dir=out'], cwd=tmp_path,
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, 'error: --tfds=nowhere: there is no such folder.\n')
