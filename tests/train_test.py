"""The command itself: what it looks at before TensorFlow is imported."""

import shutil

import pytest

from boardrec import train
from boardrec.config import TrainConfig, UserError
from boardrec.data import records


def test_a_record_that_turns_out_to_be_damaged_is_told_in_one_sentence(record_set_path, tmp_path):
    folder = shutil.copytree(record_set_path, tmp_path / 'records')
    path = folder / records.read_manifest(folder).shards[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    config = TrainConfig(records=str(folder), run_dir=str(tmp_path / 'run'), image_size='32', epochs=1, batch_size=16,
                         weights='none', feature_cache='off', precision='float32')
    with pytest.raises(UserError, match=f'^--records={folder}: a record is damaged: .* --verify says which'):
        train.main(config)


def test_with_verify_records_a_flipped_bit_is_told_before_anything_is_made(record_set_path, tmp_path):
    folder = shutil.copytree(record_set_path, tmp_path / 'records')
    path = folder / records.read_manifest(folder).shards[0].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match='is damaged'):
        train.main(TrainConfig(records=str(folder), run_dir=str(tmp_path / 'run'), verify_records=True))
    assert not (tmp_path / 'run').exists()
