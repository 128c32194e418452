"""What holds training up, and the flag that helps: one line, from what was measured."""

from boardrec.config import TrainConfig
from boardrec.data import stage_rates
from boardrec.data.records import RecordSet, Storage
from boardrec.data.stage_rates import Rates
from boardrec.training import feed

_WORTH_A_WORD = 0.1  # of an epoch's time
_WORTH_MEASURING = 2.0  # seconds of an epoch, which is what measuring takes


def line(config: TrainConfig, record_set: RecordSet, *, asked: str, seconds: float, waiting: float) -> str | None:
    """Advice after so many seconds of training, of which the share `waiting` was spent waiting for input.

    `asked` is what --feature_cache was asked to be, of which config has what was decided. None where an epoch is too
    short for it to matter.
    """
    if waiting < _WORTH_A_WORD:
        return f'bottleneck: the training step ({_share(waiting)}); what helps: {_for_step(config, asked)}'
    if config.feature_cache != 'off':
        return f'bottleneck: reading cached features ({_share(waiting)}); what helps: {_for_features(config)}'
    if config.data_service:
        return f'bottleneck: the data service ({_share(waiting)}); what helps: more workers'
    if waiting * seconds < _WORTH_MEASURING:
        return None
    rates = stage_rates.measure(
        record_set, 'train', image_size=config.height_width(), batch_size=config.batch_size, seed=config.seed, epoch=0,
        shuffle_records=config.shuffle_records, views=feed.views(config), ram_mb=config.pipeline_ram_mb)
    stage = min(Rates._fields, key=lambda name: getattr(rates, name))
    name = {'read': 'storage', 'augment': 'augmentation'}.get(stage, stage)
    shown = ', '.join(f'{name} {rate:,.0f}' for name, rate in rates._asdict().items() if rate != float('inf'))
    helps = _for_input(config, record_set.manifest.storage)[stage]
    return f'bottleneck: {name} ({_share(waiting)}; images/s of each stage alone: {shown}); what helps: {helps}'


def _share(waiting: float) -> str:
    return f'{waiting:.0%} of the time waiting for input'


def _for_step(config: TrainConfig, asked: str) -> str:
    if asked == 'off' and config.cached_views:
        return '--feature_cache=auto, which computes the frozen layers once'
    if not config.cached_views:
        return 'a few views whose features can be cached (--cached_views=4), or a smaller --image_size'
    return 'a smaller --image_size, or fewer --trainable_layers'


def _for_features(config: TrainConfig) -> str:
    return ('a faster disk for --feature_cache_dir, or --feature_cache=memory' if config.feature_cache == 'on'
            else 'a larger --batch_size')


def _for_input(config: TrainConfig, storage: Storage) -> dict[str, str]:
    """By stage."""
    size = height, width = config.height_width()
    made = f'records made with --image_size={height if height == width else f"{height}x{width}"} --resize=squash'
    faster = 'more cores, or --data_service'
    return {
        'read': 'a faster disk for --records' + (
            '' if storage.image_size == size and storage.encoding == 'jpeg' else f', or {made} --encoding=jpeg'),
        'decode': faster if storage.encoding == 'raw' else
                  f'{made} --encoding=raw, or {faster}' if storage.image_size == size else
                  f'{made} --encoding=jpeg, or raw, which needs no decoding; or --data_service',
        'augment': 'fewer kinds of augmentation, --cached_views=4 with --feature_cache=auto, or --data_service',
        'batch': 'a smaller --image_size',
    }
