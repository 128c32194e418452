"""The main job on real photographs, from download to served signature: what `make demo` runs."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

from boardrec import cli, progress
from boardrec.config import setting

ROOT = pathlib.Path(__file__).resolve().parents[1]
PUBLISHED_ACCURACY = 0.8842  # VGG-19 on a 75/25 split of these images: Deitsch et al., Solar Energy 185 (2019), 455-468


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of this tool."""

    demo_dir: str = setting('folder for all that the demo makes; what is there already is reused', 'demo')


def main(config: DemoConfig) -> None:
    """Fetches solar-cell photographs and VGG16 weights, converts, trains, evaluates, exports and serves the export."""
    demo = pathlib.Path(os.path.relpath(config.demo_dir, ROOT))
    os.chdir(ROOT)  # so that each command line below can be repeated as it is printed
    demo.mkdir(parents=True, exist_ok=True)
    images, records, run, models = demo / 'images', demo / 'records', demo / 'run', demo / 'models' / 'boardrec'
    converted = (records / 'manifest.json').is_file()
    start = time.perf_counter()
    _stage('1/7  photographs: 2,624 solar cells, sound and defective (87 MB)',
           'tools/fetch_demo_data.py', f'--output_dir={images}')
    _stage('2/7  VGG16 weights (58 MB)', 'tools/fetch_weights.py')
    conversion = _stage(
        '3/7  images to records', 'tools/make_records.py', f'--input_dir={images}', f'--output_dir={records}')
    _stage('4/7  training: the frozen layers once for each image, then the trained ones each epoch',
           '-m', 'boardrec.train', '--flagfile=flags/vgg16.flags', f'--records={records}', f'--run_dir={run}')
    _stage('5/7  evaluation on the test split, in float32, each image and its mirrored copy',
           '-m', 'boardrec.evaluate', f'--run_dir={run}', '--split=test')
    _stage('6/7  export for TF Serving', '-m', 'boardrec.export', f'--run_dir={run}', f'--export_dir={models}')
    export = max((path for path in models.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    _ask(models, min((images / 'test' / 'positive').iterdir()))
    seconds = time.perf_counter() - start
    progress.say(f'\n== done in {seconds // 60:.0f} min {seconds % 60:.0f} s')
    progress.say(_summary(demo, export, None if converted else conversion))


def _stage(title: str, *arguments: str) -> float:
    """Runs one command and returns its seconds; ends the demo with the command's status if it fails."""
    progress.say(f'\n== {title}\n   python {" ".join(arguments)}')
    start = time.perf_counter()
    status = subprocess.run([sys.executable, *arguments], check=False).returncode
    if status:
        sys.exit(status)
    return time.perf_counter() - start


def _ask(models: pathlib.Path, image: pathlib.Path) -> None:
    """Serves the export for as long as the answer for one image takes."""
    serve = ['-m', 'boardrec.serve', f'--model_dir={models}']
    progress.say(f'\n== 7/7  the export, served: one image\n   python {" ".join(serve)}')
    with subprocess.Popen([sys.executable, *serve, '--rest_port=0', '--grpc_port=0'], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as server:
        try:
            address = re.search(r'http://([^/]+)/', server.stdout.readline())[1]
            progress.say(server.stdout.readline().strip())
            _stage('a client', 'tools/predict_client.py', f'--server={address}', f'--images={image}', '--output=-')
        finally:
            server.terminate()


def _summary(demo: pathlib.Path, export: pathlib.Path, conversion: float | None) -> str:
    run = demo / 'run'
    metrics = json.loads((run / 'evaluation' / 'test' / 'metrics.json').read_bytes())
    manifest = json.loads((demo / 'records' / 'manifest.json').read_bytes())
    records = sum(split['records'] for split in manifest['splits'].values())
    with open(run / 'history.csv', newline='') as file:
        training = statistics.median(float(row['images_per_second']) for row in csv.DictReader(file))
    caches = [json.loads(path.read_bytes()) for path in (demo / 'feature_cache').glob('*/manifest.json')]
    rates = {
        'conversion': None if conversion is None else records / conversion,
        'frozen layers': max((cache['images_per_second'] or 0 for cache in caches), default=None),
        'an epoch': training,
        'evaluation': metrics['images_per_second'],
    }
    shown = ', '.join(f'{name} {rate:,.1f}' for name, rate in rates.items() if rate is not None)
    return '\n'.join([
        f'test accuracy  {metrics["at_half"]["accuracy"]:.4f} on {metrics["records"]} images, AUC {metrics["auc"]:.4f} '
        f'(a published VGG-19 on such a split: accuracy {PUBLISHED_ACCURACY})',
        f'               {metrics["accuracy"]:.4f} at the threshold chosen on validation, {metrics["threshold"]:.3f}',
        f'images/s       {shown}',
        f'report         {run / "report" / "index.html"}',
        f'run            {run}',
        f'export         {export}',
        f'try it         python -m boardrec.serve --model_dir={export.parent}, then http://127.0.0.1:8501/'])


if __name__ == '__main__':
    cli.run(main, DemoConfig, resumes=True)
