"""Lists cached features and removes those that are no longer wanted; whatever is removed can be computed again."""

import dataclasses
import pathlib
import time

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.training import feature_store
from boardrec.training.feature_store import Entry


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectFeaturesConfig:
    """Settings of this tool."""

    feature_cache_dir: str = setting('folder of cached features, such as the feature_cache/ beside the records')
    prune: str = setting('what to remove: nothing, those not used for --unused_days, incomplete ones, or all',
                         'nothing', ('nothing', 'unused', 'incomplete', 'all'))
    unused_days: float = setting('days without use after which --prune=unused removes features', 30.0)

    def __post_init__(self):
        if self.prune not in ('nothing', 'unused', 'incomplete', 'all'):
            raise UserError(f'--prune={self.prune}: must be one of nothing, unused, incomplete, all.')
        if self.unused_days < 0:
            raise UserError(f'--unused_days={self.unused_days}: must be at least 0.')


def main(config: InspectFeaturesConfig) -> None:
    """Prints a line for each cache, longest unused first, and removes what --prune names."""
    folder = pathlib.Path(config.feature_cache_dir)
    if not folder.is_dir():
        problem = 'is no folder' if folder.exists() else 'there is no such folder'
        raise UserError(f'--feature_cache_dir={folder}: {problem}.')
    entries = feature_store.entries(folder)
    kept = removed = 0
    for entry in entries:
        wanted = _is_wanted(entry, config)
        gone = not wanted and feature_store.remove(entry)
        kept, removed = kept + (0 if gone else entry.bytes), removed + (entry.bytes if gone else 0)
        state = 'removed' if gone else 'kept' if wanted else 'kept: a process uses it'
        progress.say(f'{entry.folder.name}  {entry.bytes / 2**20:8,.1f} MiB  {_describe(entry)}'
                     + (f'  {state}' if config.prune != 'nothing' else ''))
    progress.say(f'{folder}: {len(entries)} caches, {kept / 2**20:,.1f} MiB'
                 + (f'; {removed / 2**20:,.1f} MiB removed' if config.prune != 'nothing' else ''))


def _is_wanted(entry: Entry, config: InspectFeaturesConfig) -> bool:
    return {'nothing': True, 'all': False, 'incomplete': entry.manifest is not None,
            'unused': time.time() - entry.used < 86400 * config.unused_days}[config.prune]


def _describe(entry: Entry) -> str:
    used = f'used {time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))}'
    if entry.manifest is None:
        return f'incomplete, {used}'
    key = entry.manifest['key']
    view = '' if key['view'] is None else f' view {key["view"]["view"] + 1}'
    return (f'{key["split"]}{view}, {entry.manifest["records"]:,} records, {key["backbone"]} up to '
            f'{entry.manifest["boundary"]}, {"x".join(map(str, key["image_size"]))}, {key["precision"]}, '
            f'records {key["records"][:8]}, {used}')


if __name__ == '__main__':
    cli.run(main, InspectFeaturesConfig)
